"""Layer-wise learning rates: the nearer a layer is to the image, the less it moves."""

import re
from typing import Any

import jax
import numpy as np
import optax

from supmim import sharding

FIRST = re.compile(r"encoder/(embedding/|positions$|cls$|registers$|mask_token$)")
BLOCK = re.compile(r"encoder/blocks/block_(\d+)/")
STACK = "encoder/blocks/stack/"


def scale(decay: float) -> optax.GradientTransformation:
    """Multiply updates, weight decay included, by the factors of their layers.

    The numbers are those of BEiT (optim_factory.py) and MAE (util/lr_decay.py). With L blocks,
    embedding, positions and learned tokens are layer 0, block l from 0 is layer l + 1, and the rest
    (last norm, head, decoder) is layer L + 1. A layer's factor is decay ** (L + 1 - layer).
    """

    def rescale(updates, params):
        return jax.tree.map(lambda update, factor: update * factor, updates, factors(params, decay))

    return optax.stateless(rescale)


def factors(params: Any, decay: float) -> Any:
    """Return a tree of factors: numbers or, for a stack of L blocks, arrays [L, 1, ...]."""
    depth = depth_of(params["encoder"])

    def factor(path, param):
        name = sharding.path_name(path)
        if FIRST.match(name):
            return decay ** (depth + 1)
        if block := BLOCK.match(name):
            return decay ** (depth - int(block[1]))
        if name.startswith(STACK):
            rows = [decay ** (depth - block) for block in range(depth)]
            return np.asarray(rows, param.dtype).reshape(-1, *[1] * (param.ndim - 1))
        return 1.0

    return jax.tree_util.tree_map_with_path(factor, params)


def depth_of(encoder_params: Any) -> int:
    """Return the number of blocks, unrolled or scanned."""
    blocks = encoder_params["blocks"]
    return len(jax.tree.leaves(blocks)[0]) if "stack" in blocks else len(blocks)
