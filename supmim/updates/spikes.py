"""Spikes: steps whose loss or gradient norm is far above that of the steps before.

They are counted and, if requested, their updates are skipped. The rule is that of OLMo-core's
SkipStepOptimizer: more than `sigmas` standard deviations above the mean of the last steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

WINDOW = 128  # steps that define what is usual, as in OLMo-core; the first 128 are no spikes


class Watched(NamedTuple):
    """recent: loss and gradient norm of the last steps, [2, WINDOW], the oldest of which is next.

    seen, spikes: how many steps and spikes there were. left_out: whether the last was skipped.
    """

    recent: jax.Array
    seen: jax.Array
    spikes: jax.Array
    left_out: jax.Array
    inner_state: optax.OptState


def watched(
    inner: optax.GradientTransformation, sigmas: float, skip: bool
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that counts spikes; its `update` takes the loss, if there is one.

    skip: whether a spike leaves the inner state and all parameters unchanged.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        none, count = jnp.array(False), jnp.zeros((), jnp.int32)
        return Watched(jnp.zeros((2, WINDOW)), count, count, none, inner.init(params))

    def update(updates, state, params=None, *, loss: Any = 0.0, **extra):
        now = jnp.stack([jnp.asarray(loss, jnp.float32), optax.tree.norm(updates)])
        usual, deviation = state.recent.mean(axis=1), state.recent.std(axis=1)
        finite = jnp.isfinite(now)  # a loss may be infinite though its gradient is finite
        is_spike = (state.seen >= WINDOW) & (~finite | (now > usual + sigmas * deviation)).any()
        left_out = is_spike & skip

        def take():
            return inner.update(updates, state.inner_state, params, **extra)

        def leave():
            return optax.tree.zeros_like(updates), state.inner_state

        updates, inner_state = jax.lax.cond(left_out, leave, take) if skip else take()
        return updates, Watched(
            recent=state.recent.at[:, state.seen % WINDOW].set(jnp.where(finite, now, usual)),
            seen=state.seen + 1,
            spikes=state.spikes + is_spike,
            left_out=left_out,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def count(opt_state: optax.OptState) -> int:
    """Return how many spikes the state of an optimizer has counted."""
    return int(optax.tree.get(opt_state, "spikes"))
