"""ViT-B/14, ImageNet-21k, 90 epochs, after AugReg's i21k recipe: light2, sigmoid, GAP.

supmim train --config=imagenet21k_b14 --workdir=runs/b14_i21k
supmim train --config=imagenet21k_b14:baseline --workdir=runs/b14_i21k_baseline

TFDS does not have this dataset. Run `supmim data convert folder:PATH --out=imagenet21k` once and
train from the folder that contains imagenet21k, or set --config.data.train=records:PATH. Hardware,
hours and result: not run yet.
"""

from supmim import config as base


def get_config(arm="supmim"):
    """Return the preset. arm: supmim, baseline or efficient."""
    config = base.get_config()
    config.batch_size = 4096
    config.total_epochs = 90
    config.data.train = "records:imagenet21k"
    config.data.update(image_size=224, channels=3, eval_resize=256)
    config.data.update(**base.augmentation("light2"))
    config.encoder.update(**base.variant("B/14"), dtype="bfloat16")
    config.classifier.update(num_classes=21_843, loss="sigmoid", head_bias=-10.0)
    config.tokenizer.update(patch_size=14, codebook_size=1024)
    # big_vision's Adam: at this learning rate its decay is 0.1 in AdamW's terms.
    config.optimizer.update(name="adam_decoupled", moment_dtype="bfloat16")
    config.optimizer.update(learning_rate=1e-3, weight_decay=1e-4, warmup_steps=10_000)
    config.update(log_every=50, eval_every=10_000, save_every=1_000)
    return base.arm(config, arm)
