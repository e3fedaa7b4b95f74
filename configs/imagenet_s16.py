"""ViT-S/16, ImageNet-1k, 90 epochs: the regression test of the training stack.

supmim train --config=imagenet_s16 --workdir=runs/s16
supmim train --config=imagenet_s16:baseline --workdir=runs/s16_baseline

Model, optimizer, schedule, batch size and augmentation are those of big_vision's vit_s16_i1k. It
reports 76.5 % top-1, which is expected of the baseline. Hardware, hours and SupMIM: not run yet.
"""

from supmim import config as base


def get_config(arm="supmim"):
    """Return the preset. arm: supmim, baseline or efficient."""
    config = base.get_config()
    config.batch_size = 1024
    config.total_epochs = 90
    config.data.update(train="imagenet2012:train[:99%]", eval="imagenet2012:validation")
    config.data.update(image_size=224, channels=3, eval_resize=256)
    config.data.update(**base.augmentation("light2"))
    config.encoder.update(**base.variant("S/16"), dtype="bfloat16")
    config.classifier.update(num_classes=1000, rep_size=384)
    config.tokenizer.update(patch_size=16, codebook_size=1024)
    # big_vision's Adam: at this learning rate its decay is 0.1 in AdamW's terms.
    config.optimizer.update(name="adam_decoupled", moment_dtype="bfloat16")
    config.optimizer.update(learning_rate=1e-3, weight_decay=1e-4, warmup_steps=10_000)
    config.update(log_every=50, eval_every=5_000, save_every=1_000)
    return base.arm(config, arm)
