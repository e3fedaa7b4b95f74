"""Few labels on digits: labels alone against SupMIM on the same images, and on all the others too.

supmim sweep run --sweep=mim_few_labels --folder=sweeps/mim_few_labels --results=results

labels_N: labels alone for N steps; 2,000 were best on the validation images, and 4,000 have the
FLOPs of the other arms. same: SupMIM on the images with labels alone. rest: and the others without
labels. features: that with codes of the features of a small network that learns the labels first,
in 300 steps that are not counted in its FLOPs.
mim_first: masked modelling alone on all images, then mim_tuned: labels alone from its encoder. The
weights, and lengths and rate of the latter two, are those that tune_few_labels chose at 100 labels.
50 and 100 labels with ten seeds, 20 and 500 with three; which labels are kept depends on the seed.
"""

from supmim import grid

PRESET = "digits:few_labels"
EVALUATION = {"eval.evaluators": "classification,knn", "eval.all_labels": True, "eval_every": 0}
ALONE = {"mim_weight": 0.0, "data.unlabelled": ""}
FEATURES = {
    "tokenizer.name": "feature_codes",
    "tokenizer.filters": 32,
    "tokenizer.network_steps": 300,
    "tokenizer.dtype": "float32",
}
ARMS = {
    "labels_2000": ALONE | {"total_steps": 2000},
    "labels_4000": ALONE | {"total_steps": 4000},
    "same": {"data.unlabelled": "", "total_steps": 2650},
    "rest": {"total_steps": 2000},
    "features": FEATURES | {"total_steps": 1750},
}
MIM = {"class_weight": 0.0, "data.labels": 0.0, "data.unlabelled": "", "total_steps": 4000}
TUNED = ALONE | {
    "init.model": "member:mim_first",
    "total_steps": 2000,
    "optimizer.learning_rate": 1e-3,
}
COUNTS = {50: range(10), 100: range(10), 20: range(3), 500: range(3)}  # labels -> seeds


def get_sweep():
    """Return the arms seed by seed, those of 50 and 100 labels first."""
    first = {"mim_first": EVALUATION | MIM}
    members = {}
    for seed in range(10):
        arms = dict(first)
        for labels in (count for count, seeds in COUNTS.items() if seed in seeds):
            kept = EVALUATION | {"data.labels": float(labels)}
            arms |= {f"{name}_of_{labels}": kept | own for name, own in ARMS.items()}
            arms[f"mim_tuned_of_{labels}"] = kept | TUNED
        members |= grid.product(grid.seeds(seed), arms)
    return members
