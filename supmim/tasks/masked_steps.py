"""The part of a training's steps that have a masked pass, as config.mim says."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from supmim.config import options
from supmim.config.option import MAX_INT
from supmim.errors import ConfigError, counted
from supmim.tasks.base import Step, Terms

SCOPE = "masked_steps"  # by which a FLOP count knows the branch


def of_training(mim: options.Mim, total_steps: int | None) -> range | None:
    """Return the steps that have a masked pass; None if all have one, whatever their number.

    ConfigError if a training of total_steps has none. If total_steps is None, as in a plan, the
    range has no end.
    """
    if mim.step_share == 1:
        return None
    if total_steps is None:
        return range(MAX_INT)
    found = range(round(mim.start_share * total_steps), round(mim.end_share * total_steps))
    if not found:
        raise ConfigError(
            f"config.mim.start_share={mim.start_share:g} and config.mim.end_share="
            f"{mim.end_share:g} leave none of {counted(total_steps, 'step')} with a masked pass"
        )
    return found


def within(steps: range | None, step: Step, make: Callable[[], Terms]) -> Terms:
    """Return the terms of `make` if the step is one of these.

    Otherwise nothing is computed: the loss is 0 and the metrics have counted nothing.
    """
    if steps is None:
        return make()
    shapes = jax.eval_shape(make)
    is_inside = (jnp.asarray(step) >= steps.start) & (step < steps.stop)
    with jax.named_scope(SCOPE):
        return jax.lax.cond(is_inside, make, lambda: jax.tree.map(jnp.zeros_like, shapes))
