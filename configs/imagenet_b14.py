"""ViT-B/14, ImageNet-1k, 300 epochs: the paper's model on a light recipe (values are ours).

supmim train --config=imagenet_b14 --workdir=runs/b14
supmim train --config=imagenet_b14:baseline --workdir=runs/b14_baseline
supmim data tokens --config=imagenet_b14:efficient --out=ids
supmim train --config=imagenet_b14:efficient --config.data.targets=ids --workdir=runs/b14_efficient

The paper reports 81.72 % top-1, 2.01 above its baseline; only its abstract is known, not its
recipe. By the count of supmim plan it costs 1.57 x the FLOPs of the baseline, and the efficient arm
0.90 x. Hardware, hours and result of this preset: not run yet.
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
    config.encoder.update(**base.variant("B/14"), dtype="bfloat16")
    config.classifier.num_classes = 1000
    config.tokenizer.update(patch_size=14, codebook_size=1024)
    # big_vision's Adam: at this learning rate its decay is 0.1 in AdamW's terms.
    config.optimizer.update(name="adam_decoupled", moment_dtype="bfloat16")
    config.optimizer.update(learning_rate=1e-3, weight_decay=1e-4, warmup_steps=10_000)
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    return base.arm(config, arm)
