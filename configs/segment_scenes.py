"""Digits strewn over a canvas, a class for each pixel; begins with an encoder of single digits.

supmim train --config=configs/segment_scenes.py --workdir=runs/frozen \\
    --config.init.workdir=runs/digits                               (linear head, frozen encoder)
supmim train --config=configs/segment_scenes.py:finetune --workdir=runs/finetuned \\
    --config.init.workdir=runs/digits                               (everything, multi-scale head)

Not run yet.
"""

from supmim import config as base


def get_config(arm="linear"):
    """arm: linear (frozen) or finetune (all of it, with the multi-scale head)."""
    config = base.get_config()
    config.task = "segmentation"
    config.batch_size = 50
    config.total_epochs = 4
    config.data.update(train="scenes:train", image_size=32, channels=1)
    config.encoder.update(patch_size=2, width=64, depth=3, num_heads=4, mlp_dim=256)
    config.segmentation.width = 32
    config.optimizer.update(learning_rate=3e-3, b2=0.98, warmup_steps=60, frozen="encoder")
    config.update(log_every=60, eval_every=0, save_every=300)
    config.eval.update(evaluators="segmentation", batch_size=100)
    config.checkpoint.keep_best_metric = "segmentation/miou"
    if arm == "finetune":
        config.segmentation.head = "multiscale"
        config.optimizer.frozen = "none"
    return config
