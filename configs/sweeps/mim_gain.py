"""The gain from masked image modelling on digits: eight arms, three seeds, 24 members.

supmim sweep run --sweep=mim_gain --folder=sweeps/mim_gain

baseline: labels alone. baseline_matched: labels alone, with as many FLOPs as two_pass by the count
of `sweep plan` (matched by time on two CPU cores, it would be 268 epochs). two_pass: digits.py as
it is. one_pass: the class loss on the masked pass, without mixup, since that pass needs unmixed
images. ssat and supmae: the nearest relatives, by their papers alone. SSAT (arXiv 2310.20704)
weighs the class loss 0.1 and that of pixels 0.9, without mixup; SupMAE (arXiv 2205.14540) has one
pass, normalized pixels, and a class loss of weight 0.01, whose head we do not follow. Both hide
75 %, as two_pass does here. efficient: the preset's arm. muon: two_pass with that optimizer.

The first four arms take about 45 minutes on two CPU cores shared with other jobs, one member at a
time; the others are not run yet. docs/results.md has the results.
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
    }
    return grid.product(arms, grid.seeds(0, 1, 2))
