"""What features of digits keep: corrupted images, multi-scale heads and nearest patches.

supmim sweep run --sweep=mim_features --folder=sweeps/mim_features --results=results

labels_N: labels alone for N epochs; 262 have the FLOPs of supmim. Their classifiers are tested on
corrupted images too. dense_ARM: a multi-scale head on that arm's frozen encoder segments scenes of
digits, and so do the nearest patches without any head; dense_random: of an encoder that was not
trained. Nothing was tuned for this comparison. Three seeds; docs/features.md has the results.
"""

from supmim import config as base
from supmim import grid

PRESET = "digits"


def get_sweep():
    """Return every arm and its multi-scale head, seed by seed."""
    arms = {f"labels_{n}": {"mim_weight": 0.0, "total_epochs": n} for n in (60, 262)}
    arms["supmim"] = {}
    tested = {"eval.evaluators": "classification,corruptions,knn"}
    arms = {name: tested | own for name, own in arms.items()}
    dense = base.flatten(base.preset("segment_scenes"))
    for seed in ("seed", "data.seed"):
        del dense[seed]
    dense |= {"segmentation.head": "multiscale", "segmentation.width": 32}
    dense["eval.evaluators"] = "segmentation,patch_knn"
    heads = {f"dense_{name}": dense | {"init.model": f"member:{name}"} for name in arms}
    heads["dense_random"] = dense
    return grid.product(grid.seeds(0, 1, 2), arms | heads)
