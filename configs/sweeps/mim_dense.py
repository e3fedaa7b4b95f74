"""Dense features on digits: longer training on labels alone against masked image modelling.

supmim sweep run --sweep=mim_dense --folder=sweeps/mim_dense --results=results

labels_N: labels alone for N epochs; 262 have the FLOPs of supmim by the count of `sweep plan`.
dense_ARM: a linear head on the patch tokens of that arm's encoder, which is frozen, segments scenes
of digits (configs/segment_scenes.py); dense_random: of an encoder that was not trained. Nothing was
tuned for this comparison. Five seeds, one after the other; docs/results.md has the results.
"""

from supmim import config as base
from supmim import grid

PRESET = "digits"
EPOCHS = (60, 120, 175, 262)


def get_sweep():
    """Return every arm and its linear head, seed by seed."""
    arms = {f"labels_{n}": {"mim_weight": 0.0, "total_epochs": n} for n in EPOCHS}
    arms["supmim"] = {}
    dense = base.flatten(base.preset("segment_scenes"))
    for seed in ("seed", "data.seed"):
        del dense[seed]
    heads = {f"dense_{name}": dense | {"init.model": f"member:{name}"} for name in arms}
    heads["dense_random"] = dense
    return grid.product(grid.seeds(0, 1, 2, 3, 4), arms | heads)
