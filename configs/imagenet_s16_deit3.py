"""ViT-S/16, ImageNet-1k, 800 epochs, after DeiT-III: LAMB, binary losses, 3-Augment, CutMix.

supmim train --config=imagenet_s16_deit3 --workdir=runs/s16_deit3
supmim train --config=imagenet_s16_deit3:baseline --workdir=runs/s16_deit3_baseline

Sizes and rates are those of DeiT-III's S at 224 pixels (81.4 % top-1). Repeated
augmentation is missing. Hardware, hours and result of this preset: not run yet.
"""

from supmim import config as base


def get_config(arm="supmim"):
    """Return the preset. arm: supmim, baseline or efficient."""
    config = base.get_config()
    config.batch_size = 2048
    config.total_epochs = 800
    config.data.update(train="imagenet2012:train[:99%]", eval="imagenet2012:validation")
    config.data.update(image_size=224, channels=3, eval_resize=256)
    config.data.update(**base.augmentation("deit3"))
    config.encoder.update(**base.variant("S/16"), dtype="bfloat16", stochastic_depth=0.05)
    config.encoder.layer_scale = 1e-4
    config.classifier.update(num_classes=1000, loss="sigmoid")
    config.tokenizer.update(patch_size=16, codebook_size=1024)
    config.optimizer.update(name="lamb", learning_rate=4e-3, weight_decay=0.05)
    config.optimizer.update(clip_norm=1.0, warmup_steps=3_100)  # 5 epochs
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    return base.arm(config, arm)
