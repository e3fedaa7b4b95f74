"""AdamW with decay on kernels only, warm-up and cosine, clipping, averaged parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from supmim import sharding


def schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Linear warm-up to the learning rate of config.optimizer, then cosine to 0 at total_steps."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, total_steps
    )


def decay_mask(params: Any) -> Any:
    """True for kernels: by name, since scan changes ranks. Not for biases, norms, positions."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: sharding.path_name(path).endswith("/kernel"), params
    )


class AverageState(NamedTuple):
    """Averaged parameters and the number of updates they have seen."""

    count: jax.Array
    average: Any


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; leaves the updates as they are.

    The first updates use min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.
    """

    def init(params):
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        rate = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        average = jax.tree.map(
            lambda old, param, step: rate * old + (1 - rate) * (param + step),
            state.average, params, updates,
        )  # fmt: skip
        return updates, AverageState(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def create(config: Any, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """The transformation of config.optimizer.

    A gradient that is not finite changes nothing inside, averages included, and is counted in
    `notfinite_count` (in a row) and `total_notfinite`; the loop reads them.
    """
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(
        optax.adamw(
            learning_rate,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )  # fmt: skip
    )
    if config.ema_decay:
        parts.append(average_params(config.ema_decay))
    never = np.iinfo(np.int32).max  # optax lets the update after this many bad ones through
    return optax.apply_if_finite(optax.chain(*parts), max_consecutive_errors=never)


def evaluated_params(state: Any) -> Any:
    """The averaged parameters where there are any, else the parameters."""
    averages = optax.tree_utils.tree_get_all_with_path(state.opt_state, "average")
    return averages[0][1] if averages else state.params
