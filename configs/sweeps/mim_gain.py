"""The gain from masked image modelling on digits: nine arms, three seeds, 27 members.

supmim sweep run --sweep=mim_gain --folder=sweeps/mim_gain --results=results

baseline: labels alone. baseline_matched: labels alone, with as many FLOPs as two_pass by the count
of `sweep plan` (matched by time on two CPU cores, it would be 268 epochs). two_pass: digits.py as
it is. one_pass: the class loss on the masked pass, without mixup, since that pass needs unmixed
images. ssat and supmae: the nearest relatives, by their papers alone. SSAT (arXiv 2310.20704)
weighs the class loss 0.1 and that of pixels 0.9, without mixup; SupMAE (arXiv 2205.14540) has one
pass, normalized pixels, and a class loss of weight 0.01, whose head we do not follow. Both hide
75 %, as two_pass does here. efficient: the preset's arm. muon: two_pass with that optimizer.
features: two_pass with codes of the features of a small network, which learns the labels first.

A member takes three to six minutes on two CPU cores. docs/results.md has the results.
"""

from supmim import grid

PRESET = "digits"


def get_sweep():
    """Return every arm with every seed."""
    arms = {
        "baseline": {"mim_weight": 0.0},
        "baseline_matched": {"mim_weight": 0.0, "total_epochs": 262},
        "two_pass": {},
        "one_pass": {"mim.passes": "one", "data.mixup": 0.0},
        "ssat": {
            "class_weight": 0.1,
            "mim_weight": 0.9,
            "mim.target": "pixels",
            "data.mixup": 0.0,
        },
        "supmae": {
            "class_weight": 0.01,
            "mim.passes": "one",
            "mim.target": "normalized_pixels",
            "data.mixup": 0.0,
        },
        "efficient": {"class_pass.keep": 0.75, "mim.row_share": 0.5},
        "muon": {"optimizer.name": "muon"},
        "features": {
            "tokenizer.name": "feature_codes",
            "tokenizer.filters": 32,
            "tokenizer.network_steps": 300,
            "tokenizer.dtype": "float32",
        },
    }
    return grid.product(grid.seeds(0, 1, 2), arms)
