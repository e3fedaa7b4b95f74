"""Muon: updates of matrices that are orthogonal, after Jordan 2024 and arXiv 2502.16982."""

import re

import jax
import optax

from supmim import sharding
from supmim.config import options

# The kernels that muon treats as matrices, with the axes that are summed over and the other axes.
MATRICES = {
    re.compile(r"/blocks/.*/(query|key|value)/kernel$"): ((-3,), (-2, -1)),  # [D, heads, head]
    re.compile(r"/blocks/.*/out/kernel$"): ((-3, -2), (-1,)),  # [heads, head, D]
    re.compile(r"/blocks/.*/mlp/(up|down)/kernel$"): ((-2,), (-1,)),
}
ADAMS_RMS = 0.2  # RMS of updates, about that of AdamW, whose learning rates then fit


def scale(config: options.Optimizer) -> optax.GradientTransformation:
    """Orthogonalize the updates of the blocks' kernels, as in arXiv 2502.16982; see optax's muon.

    A kernel with heads is one matrix, and a stack of scanned blocks one for each block. All other
    parameters have Adam's updates, with Nesterov's momentum too.
    """

    def matrices(params):
        def axes(path, _):
            name = sharding.path_name(path)
            found = [axes for pattern, axes in MATRICES.items() if pattern.search(name)]
            return optax.contrib.MuonDimensionNumbers(*found[0]) if found else None

        return jax.tree_util.tree_map_with_path(axes, params)

    return optax.contrib.muon(
        learning_rate=-1.0,  # keeps the sign of the gradient, as optax's scale_by_adam does
        consistent_rms=ADAMS_RMS,
        muon_weight_dimension_numbers=matrices,
        mu_dtype=config.moment_dtype,
        adam_b1=config.b1,
        adam_b2=config.b2,
    )
