"""ADE20K, 150 classes: a linear head on the frozen encoder of `imagenet_b14.py`, after DINOv3.

supmim data prepare scene_parse150
supmim train --config=segment_ade20k --workdir=runs/ade20k \
    --config.init.model=runs/b14

DINOv3's linear protocol is 40,000 steps of 16 images, AdamW 1e-3, decay 1e-3, 1,500 steps of
warm-up, a cosine, short side and crop 512, windows every 341. These differ: 518 and 345 pixels,
which patches of 14 divide; no batch norm before the layer; random square crops of at least a
tenth of the image. Mean IoU is 51.8 % for DINOv3's ViT-B, 51.3 % for DINOv2's. Hardware, hours
and result: not run yet.
"""

from supmim import config as base


def get_config():
    """Return the preset; id 0 of the masks is ignored, ids 1 to 150 are the classes."""
    config = base.get_config()
    config.task = "segmentation"
    config.batch_size = 16
    config.total_epochs = 32  # of 20,210 images
    config.data.update(train="pairs:scene_parse150:train", eval="pairs:scene_parse150:test")
    config.data.update(image_size=518, channels=3, mask_classes=150, ignore_label=0)
    config.data.update(crop="inception", area_min=0.1, aspect_min=1.0, aspect_max=1.0, flip=True)
    config.encoder.update(**base.variant("B/14"), dtype="bfloat16")
    config.encoder.position_grid = 16  # of imagenet_b14.py
    config.optimizer.update(learning_rate=1e-3, weight_decay=1e-3, warmup_steps=1_500)
    config.optimizer.frozen = "encoder"
    config.update(log_every=50, eval_every=10_000, save_every=1_000)
    config.eval.update(evaluators="segmentation", batch_size=16)
    config.checkpoint.keep_best_metric = "segmentation/miou"
    return config
