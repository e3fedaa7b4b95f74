"""What masked image modelling adds on digits: four arms, three seeds, 12 members.

supmim sweep run --sweep=configs/sweeps/mim_gain.py --folder=sweeps/mim_gain

baseline: labels alone. baseline_matched: labels alone for as many FLOPs as two_pass trains with,
by `sweep plan`'s count (by time on two CPU cores it would be 268 epochs). two_pass: digits.py as it
is. one_pass: the class loss on the masked pass, which takes unmixed images, so without mixup.

Two CPU cores that other jobs shared, one member at a time: about 45 minutes. Results: README.md.
"""

from supmim import grid

PRESET = "../digits.py"


def get_sweep():
    """Arms x seeds."""
    arms = {
        "baseline": {"mim_weight": 0.0},
        "baseline_matched": {"mim_weight": 0.0, "total_epochs": 262},
        "two_pass": {},
        "one_pass": {"mim.passes": "one", "data.mixup": 0.0},
    }
    return grid.product(arms, grid.seeds(0, 1, 2))
