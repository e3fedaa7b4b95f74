"""ViT-g/14 (heads of 88), ImageNet-1k, 300 epochs: the L/14 recipe, with the state split 16 ways.

supmim train --config=imagenet_g14 --workdir=runs/g14
supmim train --config=imagenet_g14:baseline --workdir=runs/g14_baseline

Hardware, hours and top-1: not run yet. docs/plan.md has plans for pods.
"""

from supmim import config as base


def get_config(arm="supmim"):
    """Return the preset. arm: supmim, baseline or efficient."""
    config = base.get_config()
    config.batch_size = 4096
    config.total_epochs = 300
    config.data.update(train="imagenet2012:train[:99%]", eval="imagenet2012:validation")
    config.data.update(image_size=224, channels=3, eval_resize=256)
    config.data.update(**base.augmentation("medium2"))
    config.encoder.update(**base.variant("g/14"), dtype="bfloat16", scan=True, remat="dots")
    config.encoder.stochastic_depth = 0.3
    config.classifier.num_classes = 1000
    config.tokenizer.update(patch_size=14, codebook_size=1024)
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.1, warmup_steps=10_000)
    config.mesh.fsdp = 16
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    return base.arm(config, arm)
