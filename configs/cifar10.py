"""CIFAR-10, 32 x 32 pixels: a small ViT on real photographs.

supmim train --config=cifar10 --workdir=runs/cifar10
supmim train --config=cifar10:baseline --workdir=runs/cifar10_baseline

Run `supmim data prepare cifar10` once before it, or train on your own pictures with
--config.data.train=folder:PATH. Hardware, hours and result: not run yet.
"""

from supmim import config as base


def get_config(arm="supmim"):
    """Return the preset. arm: supmim, baseline or efficient."""
    config = base.get_config()
    config.batch_size = 256
    config.total_epochs = 200
    config.data.train = "cifar10:train"
    config.data.update(image_size=32, channels=3, flip=True, mixup=0.2)
    config.data.update(crop="inception", area_min=0.3)
    config.encoder.update(patch_size=4, width=192, depth=9, num_heads=3, mlp_dim=768)
    config.encoder.stochastic_depth = 0.1
    config.decoder.update(width=128, depth=1, num_heads=4, mlp_dim=512)
    config.tokenizer.update(patch_size=4, codebook_size=512)
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, warmup_steps=2_000)
    config.update(log_every=100, eval_every=5_000, save_every=1_000)
    return base.arm(config, arm)
