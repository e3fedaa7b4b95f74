"""Spikes: steps whose loss or gradient norm is far above that of the steps before.

They are counted and, if requested, their updates are skipped. The rule is that of OLMo-core's
SkipStepOptimizer: more than `sigmas` standard deviations above the mean of the last steps.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

NEVER = np.iinfo(np.int32).max  # optax lets the update after this many bad ones through
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

    Its state is that of optax.apply_if_finite, whose inner state is Watched. A gradient that is not
    finite changes neither and is no spike: optax counts it. skip: whether a spike leaves the inner
    state and all parameters unchanged.
    """
    guarded = optax.apply_if_finite(inner, max_consecutive_errors=NEVER)

    def init(params):
        none, count = jnp.array(False), jnp.zeros((), jnp.int32)
        state = cast(optax.ApplyIfFiniteState, guarded.init(params))
        watched = Watched(jnp.zeros((2, WINDOW)), count, count, none, state.inner_state)
        return state._replace(inner_state=watched)

    def update(updates, state: Any, params=None, *, loss: Any = 0.0, **extra):
        # Inside of the guard, XLA would copy the whole state of the optimizer on GPUs.
        before = state.inner_state
        guard: Any = state._replace(inner_state=before.inner_state)
        sound = jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates)]).all()
        now = jnp.stack([jnp.asarray(loss, jnp.float32), optax.tree.norm(updates)])
        usual, deviation = before.recent.mean(axis=1), before.recent.std(axis=1)
        finite = jnp.isfinite(now)  # a loss may be infinite though its gradient is finite
        far = (~finite | (now > usual + sigmas * deviation)).any()
        is_spike = sound & (before.seen >= WINDOW) & far
        left_out = is_spike & skip

        def take():
            return guarded.update(updates, guard, params, **extra)

        def leave():
            finite_gradient = {"notfinite_count": jnp.int32(0), "last_finite": jnp.array(True)}
            return optax.tree.zeros_like(updates), guard._replace(**finite_gradient)

        updates, guard = jax.lax.cond(left_out, leave, take) if skip else take()
        place = before.seen % WINDOW
        noted = jnp.where(sound, jnp.where(finite, now, usual), before.recent[:, place])
        watched = Watched(
            recent=before.recent.at[:, place].set(noted),
            seen=before.seen + sound,
            spikes=before.spikes + is_spike,
            left_out=left_out,
            inner_state=guard.inner_state,
        )
        return updates, guard._replace(inner_state=watched)

    return optax.GradientTransformationExtraArgs(init, update)


def count(opt_state: optax.OptState) -> int:
    """Return how many spikes the state of an optimizer has counted."""
    return int(optax.tree.get(opt_state, "spikes"))
