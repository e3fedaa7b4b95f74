"""CIFAR-10 at a GPU size: 4,000 labels of 50,000 images, for a quarter of an hour of one H200.

supmim data prepare cifar10
supmim sweep run --sweep=mim_cifar10_h200 --folder=sweeps/mim_cifar10_h200 --results=results

The preset's ViT, of 9 blocks of width 192, with 256 images with labels a step and, in the arm that
has them, 256 without. labels_N: labels alone for N steps; 12,600 have the FLOPs of rest.
same: SupMIM on the images with labels. rest: and the others without. Top-1 and kNN on the 10,000
test images. One seed; the arms that matter the most come first; not tuned and not run yet.
"""

PRESET = "cifar10"
SHARED = {
    "data.labels": 4000.0,
    "encoder.dtype": "bfloat16",
    "eval.evaluators": "classification,knn",
    "eval.all_labels": True,
    "eval_every": 0,
    "optimizer.warmup_steps": 500,
    "log_every": 500,
    "save_every": 2000,
    "checkpoint.keep_best": 0,
}
ALONE = {"mim_weight": 0.0}
ARMS = {
    "rest": {"total_steps": 6000, "data.unlabelled": "rest", "data.unlabelled_batch": 256},
    "labels_6000": ALONE | {"total_steps": 6000},
    "labels_12600": ALONE | {"total_steps": 12600},
    "same": {"total_steps": 6000},
    "labels_2000": ALONE | {"total_steps": 2000},
}


def get_sweep():
    """Return the arms."""
    return {name: SHARED | own for name, own in ARMS.items()}
