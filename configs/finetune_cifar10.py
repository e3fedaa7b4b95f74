"""Fine-tuning on CIFAR-10 at 48 x 48 pixels, from the encoder of `cifar10.py`, after MAE.

supmim train --config=finetune_cifar10 --workdir=runs/cifar10_finetuned \
    --config.init.model=runs/cifar10

Weight decay, layer decay, stochastic depth, mixup, CutMix and label smoothing are those of MAE's
ViT-B; the length is ours. Hardware, hours and result: not run yet.
"""

from supmim import config as base


def get_config():
    """Return the preset, which starts from the encoder of the source run alone."""
    config = base.get_config()
    config.init.model = "runs/cifar10"
    config.mim_weight = 0.0
    config.batch_size = 256
    config.total_epochs = 50
    config.data.train = "cifar10:train"
    config.data.update(image_size=48, channels=3, flip=True, mixup=0.8, cutmix=1.0)
    config.data.update(crop="inception", area_min=0.3)
    config.encoder.update(patch_size=4, width=192, depth=9, num_heads=3, mlp_dim=768)
    config.encoder.update(stochastic_depth=0.1, position_grid=8)  # the grid of cifar10.py
    config.classifier.label_smoothing = 0.1
    config.optimizer.update(learning_rate=5e-4, weight_decay=0.05, warmup_steps=900)  # 5 epochs
    config.optimizer.update(layer_decay=0.65, clip_norm=0.0)
    config.update(log_every=100, eval_every=2_000, save_every=1_000)
    return config
