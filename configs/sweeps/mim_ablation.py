"""An ablation of masked image modelling on digits: one option at a time, three seeds, 51 members.

supmim sweep run --sweep=mim_ablation --folder=sweeps/mim_ablation

The options are the weight, the mask ratio, the decoder depth, one pass or two (both without mixup,
which one pass cannot use), dropped patches or mask tokens, pooling, and tokens or pixels as
targets. Entries that equal digits.py are one member with several names.

On two CPU cores, one member at a time: not run yet.
"""

from supmim import grid

PRESET = "digits"


def get_sweep():
    """Return every single change with every seed."""
    changes = (
        grid.values("mim_weight", 0.1, 0.3, 1.0, 3.0)
        | grid.values("mim.mask_ratio", 0.25, 0.5, 0.75, 0.9)
        | grid.values("decoder.depth", 1, 2, 4, 8)
        | grid.product({"no_mixup": {"data.mixup": 0.0}}, grid.values("mim.passes", "one", "two"))
        | grid.values("mim.hidden", "drop", "mask_token")
        | grid.values("encoder.pool", "gap", "cls", "map")
        | grid.values("mim.target", "tokens", "pixels", "normalized_pixels")
    )
    return grid.product(changes, grid.seeds(0, 1, 2))
