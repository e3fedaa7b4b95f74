"""Adam's family and Muon: decay on kernels only, warm-up, cosine, clipping, averages."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from supmim import sharding
from supmim.config import options
from supmim.updates import layer_decay, muon, spikes


def schedule(config: options.Optimizer, total_steps: int) -> optax.Schedule:
    """Return a linear warm-up to the learning rate, then a cosine to 0 at total_steps."""
    warmup_steps = config.warmup_steps or int(config.warmup_share * total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup_steps, total_steps)


def decayed(name: str) -> bool:
    """Return whether a parameter is decayed: kernels are, not biases, norms and positions.

    The name decides, not the rank, since scanned blocks have another rank.
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


def follow(learning_rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Scale updates by minus the learning rate of a step; `step` is a keyword of `update`.

    optax counts the updates itself, so its learning rate would lag by one step for each update that
    was skipped. Its count stays in the state but is not used.
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
    """Return the transformation of config.optimizer.

    Its `update` takes `step`, counted from 0, and `loss`, see updates.spikes.

    adamw decays by weight_decay times the learning rate (arXiv 1711.05101), adam_decoupled by
    weight_decay times the schedule alone, which peaks at 1 (big_vision). lamb decays as adamw does
    and adds `trust_ratio`; `muon` decays as adamw does.

    A non-finite gradient changes nothing in the state, averages included. It is counted in
    `notfinite_count` (in a row) and `total_notfinite`; the loop reads them, and the spikes.
    """
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    decay = config.weight_decay
    if config.name == "adam_decoupled":
        decay = decay / config.learning_rate
    parts.append(
        optax.chain(
            muon.scale(config) if config.name == "muon" else adam(config),
            optax.add_decayed_weights(decay, decay_mask),
            *([trust_ratio()] if config.name == "lamb" else []),
            *([layer_decay.scale(config.layer_decay)] if config.layer_decay != 1 else []),
            follow(learning_rate),
        )
    )
    if config.ema_decay:
        parts.append(average_params(config.ema_decay))
    return spikes.watched(optax.chain(*parts), config.spike_sigmas, config.skip_spikes)


def evaluated_params(state: Any) -> Any:
    """Return the averaged parameters if there are any, else the parameters."""
    averages = optax.tree_utils.tree_get_all_with_path(state.opt_state, "average")
    return state.params | averages[0][1] if averages else state.params
