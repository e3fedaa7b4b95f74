"""CIFAR-10 at a CPU size: 1,000 labels of 10,000 images, and classes without labels.

python tools/cifar10_folders.py cifar10_files cifar10
supmim sweep run --sweep=mim_cifar10 --folder=sweeps/mim_cifar10 --results=results

A ViT of 4 blocks of width 64 with patches of 4 pixels; 64 images with labels a step and, in the
arms that have them, 64 without. labels_N: labels alone for N steps; 8,000 have the FLOPs of rest.
labels_dropped: labels alone for 3,000 steps that see 75 % of the patches. same: SupMIM on the
images with labels. efficient: that with the cheaper passes of the presets, of which the class pass
sees 75 % of the patches too. rest: same, and the others without labels. features: that with codes
of the features of a small network that learns the labels first. few_ARM: 1,000 labels, top-1 and
kNN on 3,000 test images. unseen_ARM: labels of six classes, retrieval among test images of the
other four; only labels_N, same and rest. Three seeds; not tuned.
"""

from supmim import grid

PRESET = "cifar10"
SIZE = {
    "batch_size": 64,
    "data.train": "folder:cifar10/train",
    "data.eval": "folder:cifar10/test",
    "encoder.width": 64,
    "encoder.depth": 4,
    "encoder.num_heads": 4,
    "encoder.mlp_dim": 256,
    "encoder.stochastic_depth": 0.0,
    "decoder.width": 64,
    "decoder.mlp_dim": 256,
    "optimizer.warmup_steps": 100,
    "log_every": 500,
    "eval_every": 0,
    "save_every": 1000,
    "checkpoint.keep_best": 0,
}
ALONE = {"mim_weight": 0.0}
REST = {"total_steps": 3000, "data.unlabelled": "rest"}
FEATURES = {
    "tokenizer.name": "feature_codes",
    "tokenizer.filters": 16,
    "tokenizer.dtype": "float32",
}
ARMS = {f"labels_{n}": ALONE | {"total_steps": n} for n in (1000, 3000, 8000)} | {
    "labels_dropped": ALONE | {"total_steps": 3000, "class_pass.keep": 0.75},
    "same": {"total_steps": 3000},
    "efficient": {"total_steps": 3000, "class_pass.keep": 0.75, "mim.row_share": 0.5},
    "rest": REST,
    "features": REST | FEATURES,
}
FEW = {"data.labels": 1000.0, "eval.evaluators": "classification,knn", "eval.all_labels": True}
UNSEEN = {
    "data.labelled_classes": "0,2,4,6,8,9",
    "data.eval_classes": "1,3,5,7",
    "eval.evaluators": "retrieval",
}


def get_sweep():
    """Return both studies seed by seed."""
    arms = {f"few_{name}": SIZE | FEW | own for name, own in ARMS.items()}
    for name in ("labels_1000", "labels_3000", "labels_8000", "same", "rest"):
        arms[f"unseen_{name}"] = SIZE | UNSEEN | ARMS[name]
    return grid.product(grid.seeds(0, 1, 2), arms)
