"""Handwritten digits, 8 x 8 pixels, bundled with scikit-learn: the first run, and the test.

supmim train --config=configs/digits.py --workdir=runs/digits
supmim train --config=configs/digits.py:baseline --workdir=runs/baseline    (labels alone)
"""

from supmim import config as base


def get_config(arm="supmim"):
    """arm: supmim or baseline."""
    config = base.get_config()
    config.batch_size = 100
    config.total_epochs = 80
    config.data.update(image_size=8, channels=1, shift=1.0, rotate=10.0, scale=0.1, shear=5.0)
    config.encoder.update(patch_size=2, width=96, depth=4, num_heads=4, mlp_dim=384)
    config.decoder.update(width=96, depth=2, num_heads=4, mlp_dim=384)
    config.classifier.num_classes = 10
    config.tokenizer.update(patch_size=2, codebook_size=64)
    config.optimizer.update(warmup_steps=100, ema_decay=0.99)
    config.update(log_every=50, eval_every=400, save_every=400)
    return base.arm(config, arm)
