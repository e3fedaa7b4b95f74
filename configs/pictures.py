"""Your own pictures, in one folder per class: a ViT with labels and masked tokens.

supmim data check folder:PATH
supmim train --config=pictures --workdir=runs/pictures --config.data.train=folder:PATH
supmim train --config=pictures:Ti/16,baseline ...                 (labels alone, a smaller encoder)
supmim train --config=pictures:cpu ...                  (96 pixels, for two CPU cores and no hours)

Pictures are PATH/CLASS/IMAGE, of which a tenth is held out, or in PATH/train and PATH/val. Without
an argument it is S/16 at 224 pixels, for 10,000 to 100,000 pictures on one accelerator. Hours and
result: not run yet.
"""

from supmim import config as base


def get_config(arguments=""):
    """Return the preset. arguments: an encoder such as S/16, or cpu; and an arm."""
    size, arm = base.size_and_arm(arguments, "S/16", others=("cpu",))
    config = base.get_config()
    config.total_epochs = 100
    config.data.train = "folder:PATH"
    config.data.update(image_size=224, channels=3, eval_resize=256)
    config.data.update(crop="inception", flip=True, mixup=0.2)
    config.tokenizer.codebook_size = 1024
    config.optimizer.update(weight_decay=0.05, warmup_steps=0, warmup_share=0.05)
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    if size != "cpu":
        config = base.sized(config, size)
        config.encoder.update(dtype="bfloat16", stochastic_depth=0.1)
        return base.arm(config, arm)
    config = base.sized(config, "Ti/12")
    config.update(batch_size=32, total_epochs=50, log_every=10)
    config.data.update(image_size=96, eval_resize=112)
    config.encoder.depth = 6
    config.decoder.depth = 1
    config.tokenizer.codebook_size = 256
    return base.arm(config, arm)
