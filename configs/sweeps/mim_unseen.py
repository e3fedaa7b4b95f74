"""Classes without labels: labels of six digits, retrieval among test images of the other four.

supmim sweep run --sweep=mim_unseen --folder=sweeps/mim_unseen --results=results

labels_N: labels alone for N steps; 4,500 have the FLOPs of the other arms. same: SupMIM on the six
labelled classes. rest: and the other four classes without labels. Nothing was tuned for this
comparison. Five seeds, each with other classes; over all of them each class is without labels
twice.
"""

from supmim import grid

PRESET = "digits"
ALONE = {"mim_weight": 0.0}
ARMS = {f"labels_{n}": ALONE | {"total_steps": n} for n in (1000, 2250, 4500)} | {
    "same": {"total_steps": 3000},
    "rest": {"data.unlabelled": "rest", "total_steps": 2250},
}


def get_sweep():
    """Return the arms seed by seed."""
    members = {}
    for seed in range(5):
        unseen = [(2 * seed + n) % 10 for n in range(4)]
        classes = {
            "data.labelled_classes": ",".join(str(n) for n in range(10) if n not in unseen),
            "data.eval_classes": ",".join(map(str, sorted(unseen))),
            "eval.evaluators": "retrieval",
            "checkpoint.keep_best": 0,
            "eval_every": 0,
        }
        arms = {name: classes | own for name, own in ARMS.items()}
        members |= grid.product(grid.seeds(seed), arms)
    return members
