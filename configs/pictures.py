"""Your own pictures, in one folder per class: ViT-S/16 at 224 pixels, labels and masked tokens.

supmim data check folder:PATH
supmim train --config=pictures --workdir=runs/pictures --config.data.train=folder:PATH

The arm :baseline trains the same encoder on labels alone.

Pictures are PATH/CLASS/IMAGE, of which a tenth is held out, or in PATH/train and PATH/val. The
preset is meant for 10,000 to 100,000 pictures on one accelerator. Hours and result: not run yet.
"""

from supmim import config as base


def get_config(arm="supmim"):
    """Return the preset. arm: supmim or baseline."""
    config = base.get_config()
    config.batch_size = 256
    config.total_epochs = 100
    config.data.train = "folder:PATH"
    config.data.update(image_size=224, channels=3, eval_resize=256)
    config.data.update(crop="inception", flip=True, mixup=0.2)
    config.encoder.update(**base.variant("S/16"), dtype="bfloat16", stochastic_depth=0.1)
    config.tokenizer.update(patch_size=16, codebook_size=1024)
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, warmup_steps=1_000)
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    return base.arm(config, arm)
