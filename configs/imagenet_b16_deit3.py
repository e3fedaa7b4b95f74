"""ViT-B/16, ImageNet-1k, 400 epochs, after DeiT-III: LAMB, binary losses, stochastic depth.

supmim train --config=imagenet_b16_deit3 --workdir=runs/b16_deit3
supmim train --config=imagenet_b16_deit3:baseline --workdir=runs/b16_deit3_baseline

Sizes, rates and decay are those of deit3-jax (83.6 % top-1). Repeated augmentation is
missing. Hardware, hours and result of this preset: not run yet.
"""

from supmim import config as base


def get_config(arm="supmim"):
    """Return the preset. arm: supmim, baseline or efficient."""
    config = base.get_config()
    config.batch_size = 2048
    config.total_epochs = 400
    config.data.update(train="imagenet2012:train[:99%]", eval="imagenet2012:validation")
    config.data.update(image_size=224, channels=3, eval_resize=256)
    config.data.update(**base.augmentation("deit3"))
    config.encoder.update(**base.variant("B/16"), dtype="bfloat16", stochastic_depth=0.1)
    config.encoder.layer_scale = 1e-4
    config.classifier.update(num_classes=1000, loss="sigmoid")
    config.tokenizer.update(patch_size=16, codebook_size=1024)
    config.optimizer.update(name="lamb", learning_rate=3e-3, weight_decay=0.02)
    config.optimizer.update(clip_norm=1.0, warmup_steps=3_100)  # 5 epochs
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    return base.arm(config, arm)
