"""Digits strewn over a canvas, a class for each pixel; begins with an encoder of single digits.

supmim train --config=configs/segment_scenes.py --workdir=runs/frozen \
    --config.init.workdir=runs/digits                               (linear head, frozen encoder)
supmim train --config=configs/segment_scenes.py:finetune --workdir=runs/finetuned \
    --config.init.workdir=runs/digits                               (everything, multi-scale head)

Not run yet.
"""

from supmim import config as base


def get_config(arm="linear"):
    """arm: linear (frozen) or finetune (all of it, with the multi-scale head)."""
    config = base.get_config()
    config.task = "segmentation"
    config.batch_size = 32
    config.total_epochs = 20
    # Quarters of the canvas, pixel for pixel; evaluation slides over all of it.
    config.data.update(train="scenes:train", image_size=16, channels=1, eval_resize=32)
    config.data.update(
        crop="inception", area_min=0.25, area_max=0.25, aspect_min=1.0, aspect_max=1.0
    )
    config.encoder.update(patch_size=2, width=64, depth=3, num_heads=4, mlp_dim=256)
    config.segmentation.update(width=32, stride=8)
    config.optimizer.update(learning_rate=2e-3, b2=0.98, warmup_steps=100, frozen="encoder")
    config.update(log_every=100, save_every=500)
    config.eval.update(evaluators="segmentation", batch_size=300)
    config.checkpoint.keep_best_metric = "segmentation/miou"
    if arm == "finetune":
        config.segmentation.head = "multiscale"
        config.optimizer.frozen = "none"
    return config
