"""Adam's family and Muon, with decay on kernels only, warm-up and cosine, clipping, averaged parameters."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from supmim import sharding
from supmim.config import options

FIRST = re.compile(r"encoder/(embedding/|positions$|cls$|registers$|mask_token$)")
BLOCK = re.compile(r"encoder/blocks/block_(\d+)/")
STACK = "encoder/blocks/stack/"
# The kernels that muon treats as matrices, and which of their axes are summed over and which not.
MATRICES = {
    re.compile(r"/blocks/.*/(query|key|value)/kernel$"): ((-3,), (-2, -1)),  # [D, heads, head]
    re.compile(r"/blocks/.*/out/kernel$"): ((-3, -2), (-1,)),  # [heads, head, D]
    re.compile(r"/blocks/.*/mlp/(up|down)/kernel$"): ((-2,), (-1,)),
}
ADAMS_RMS = 0.2  # of an update of muon, about that of AdamW, whose learning rates then fit


def schedule(config: options.Optimizer, total_steps: int) -> optax.Schedule:
    """Return a linear warm-up to the learning rate, then a cosine to 0 at total_steps."""
    warmup_steps = config.warmup_steps or int(config.warmup_share * total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup_steps, total_steps)


def decayed(name: str) -> bool:
    """Return whether a parameter is decayed: kernels are, not biases, norms and positions.

    It goes by the name, since scanned blocks have other ranks.
    """
    return name.endswith("/kernel")


def decay_mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decayed(sharding.path_name(path)), params
    )


def trust_ratio() -> optax.GradientTransformation:
    """Scale updates by |param| / |update|, as LAMB (arXiv 1904.00962), where they are decayed.

    NVIDIA's and timm's LAMB, with which DeiT-III was trained, leave the other parameters alone. A
    stack of scanned blocks has one ratio per block, as unrolled ones have.
    """

    def scale(path, update, param):
        name = sharding.path_name(path)
        if not decayed(name):
            return update
        axes = tuple(range("/stack/" in name, update.ndim))
        sizes = [jnp.sqrt((x**2).sum(axis=axes, keepdims=True)) for x in (param, update)]
        usable = (sizes[0] > 0) & (sizes[1] > 0)
        return update * jnp.where(usable, sizes[0] / jnp.where(usable, sizes[1], 1), 1)

    def rescale(updates, params):
        return jax.tree_util.tree_map_with_path(scale, updates, params)

    return optax.stateless(rescale)


def adam(config: options.Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, mu_dtype=config.moment_dtype)


def muon(config: options.Optimizer) -> optax.GradientTransformation:
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


def layer_decay(decay: float) -> optax.GradientTransformation:
    """Multiply updates, weight decay included, by the factors of their layers.

    Numbered as in BEiT (optim_factory.py) and MAE (util/lr_decay.py): with L blocks, embedding,
    positions and learned tokens are layer 0, block l from 0 is layer l + 1, and all else, from the
    last norm to head and decoder, is layer L + 1. A layer's factor is decay ** (L + 1 - layer).
    """

    def rescale(updates, params):
        return jax.tree.map(
            lambda update, factor: update * factor, updates, layer_factors(params, decay)
        )

    return optax.stateless(rescale)


def layer_factors(params: Any, decay: float) -> Any:
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


def follow(learning_rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Scale updates by minus the learning rate of a step; `update` takes the step by name.

    optax counts the updates itself, so that the learning rate would lag by one for each update that
    was skipped. That count, which stays in the state, is not used.
    """
    scale = optax.scale_by_learning_rate(learning_rate)

    def update(updates, state, params=None, **extra):
        return scale.update(updates, optax.ScaleByScheduleState(extra["step"]), params)

    return optax.GradientTransformationExtraArgs(scale.init, update)


class AverageState(NamedTuple):
    """Averaged parameters, and the number of updates that they have seen."""

    count: jax.Array
    average: Any


def average_params(decay: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters; do not change the updates.

    The first updates use min(decay, (1 + n) / (10 + n)), so that initial values soon lose weight.
    """

    def init(params):
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        rate = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        average = jax.tree.map(
            lambda old, param, step: rate * old + (1 - rate) * (param + step),
            state.average, params, updates,
        )  # fmt: skip
        return updates, AverageState(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def create(
    config: options.Optimizer, learning_rate: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of config.optimizer; its `update` takes `step`, counted from 0.

    adamw decays by weight_decay times the learning rate (arXiv 1711.05101), adam_decoupled by
    weight_decay times the schedule alone, which peaks at 1 (big_vision), lamb as adamw and with
    `trust_ratio`, and `muon` as adamw.

    A gradient that is not finite changes nothing inside, averages included, and is counted in
    `notfinite_count` (in a row) and `total_notfinite`; the loop reads them.
    """
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    decay = config.weight_decay
    if config.name == "adam_decoupled":
        decay = decay / config.learning_rate
    parts.append(
        optax.chain(
            muon(config) if config.name == "muon" else adam(config),
            optax.add_decayed_weights(decay, decay_mask),
            *([trust_ratio()] if config.name == "lamb" else []),
            *([layer_decay(config.layer_decay)] if config.layer_decay != 1 else []),
            follow(learning_rate),
        )
    )
    if config.ema_decay:
        parts.append(average_params(config.ema_decay))
    never = np.iinfo(np.int32).max  # optax lets the update after this many bad ones through
    return optax.with_extra_args_support(
        optax.apply_if_finite(optax.chain(*parts), max_consecutive_errors=never)
    )


def evaluated_params(state: Any) -> Any:
    """Return the averaged parameters if there are any, else the parameters."""
    averages = optax.tree_utils.tree_get_all_with_path(state.opt_state, "average")
    return state.params | averages[0][1] if averages else state.params
