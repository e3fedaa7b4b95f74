"""Fine-tuning of ViT-B/14 on ImageNet-1k at 336 pixels, from `imagenet_b14.py`, after MAE.

supmim train --config=finetune_imagenet --workdir=runs/b14_finetuned \
    --config.init.model=runs/b14

The values are MAE's for ViT-B (FINETUNE.md and main_finetune.py of facebookresearch/mae, 83.66 %
top-1 at 224 pixels from its own encoder): 5e-4 per 256 images, 100 epochs, 5 of them warm-up. These
differ: RandAugment's operations, erased boxes are grey, the last learning rate is 0, not 1e-6.
Hardware, hours and result: not run yet.
"""

from supmim import config as base


def get_config():
    """Return the preset, which starts from the encoder of the source run alone."""
    config = base.get_config()
    config.init.model = "runs/b14"
    config.mim_weight = 0.0
    config.batch_size = 1024
    config.total_epochs = 100
    config.data.update(train="imagenet2012:train[:99%]", eval="imagenet2012:validation")
    config.data.update(image_size=336, channels=3, eval_resize=384)
    config.data.update(**base.augmentation("inception"))
    config.data.update(area_min=0.08, interpolation="bicubic")
    config.data.update(randaug_num=2, randaug_magnitude=9.0, erase=0.25, mixup=0.8, cutmix=1.0)
    config.encoder.update(**base.variant("B/14"), dtype="bfloat16", stochastic_depth=0.1)
    config.encoder.position_grid = 16  # of imagenet_b14.py
    config.classifier.update(num_classes=1000, label_smoothing=0.1)
    config.optimizer.update(learning_rate=2e-3, weight_decay=0.05, warmup_steps=6_200)
    config.optimizer.update(layer_decay=0.65, clip_norm=0.0)
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    return config
