"""The gain from masked image modelling on digits: four arms, three seeds, 12 members.

supmim sweep run --sweep=mim_gain --folder=sweeps/mim_gain

baseline: labels alone. baseline_matched: labels alone, with as many FLOPs as two_pass by the count
of `sweep plan` (matched by time on two CPU cores, it would be 268 epochs). two_pass: digits.py as
it is. one_pass: the class loss on the masked pass, without mixup, since that pass needs unmixed
images.

It takes about 45 minutes on two CPU cores shared with other jobs, one member at a time.
docs/results.md has the results.
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
    }
    return grid.product(arms, grid.seeds(0, 1, 2))
