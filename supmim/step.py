"""The step: pure functions of state, batch and key, for any task."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from supmim import metrics, sharding
from supmim.data.raw import Raw
from supmim.tasks.base import Drawn, Prepared, Task


@struct.dataclass
class State:
    """Everything that training changes; averaged parameters and skip counts are in opt_state."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def create_state(rng: jax.Array, task: Task, tx: optax.GradientTransformation) -> State:
    """Return the state before the first step, with new parameters."""
    return begin(task.init(rng), task, tx)


def begin(params: Any, task: Task, tx: optax.GradientTransformation, loaded: Any = None) -> State:
    """Return the state before the first step; loaded: values of some parameters, by group."""
    params |= {name: params[name] | group for name, group in (loaded or {}).items()}
    return State(jnp.zeros((), jnp.int32), params, tx.init(divided(params, task)[0]))


def divided(params: Any, task: Task) -> tuple[Any, Any]:
    """Return the groups of parameters that are trained, and those that are fixed."""
    fixed = {name: params[name] for name in task.fixed}
    return {name: group for name, group in params.items() if name not in fixed}, fixed


def train_steps(
    state: State,
    batches: Raw,
    count: jax.Array,
    rng: jax.Array,
    *,
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    parts: int = 1,
) -> tuple[State, metrics.Metrics]:
    """Return the state after a step on each of the first batches, and the metrics of each step.

    batches: tokenized, each field [S, B, ...]. count: (), number of steps, up to S. The metrics
    have a leading axis S, of which `count` are filled. `count` is traced: one program serves all
    counts, and results depend neither on it nor on S.
    """

    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes and for the loop
    def at(
        number: jax.Array, state: State, batches: Raw, rng: jax.Array
    ) -> tuple[State, metrics.Metrics]:
        batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, 0, False), batches)
        prepared = jax.tree.map(sharding.constrain_batch, task.prepare(batch))
        return train_step(state, prepared, rng, task=task, tx=tx, parts=parts)

    def add(number: jax.Array, carry: tuple[State, metrics.Metrics]) -> Any:
        state, each = carry
        state, totals = at(number, state, batches, rng)
        return state, jax.tree.map(lambda all, one: all.at[number].set(one), each, totals)

    first = jnp.zeros_like(count)  # of the type that the loop's number has, so of the same trace
    _, shapes = jax.eval_shape(at, first, state, batches, rng)
    slots = len(batches["index"])
    empty = jax.tree.map(lambda one: jnp.zeros((slots, *one.shape), one.dtype), shapes)
    return jax.lax.fori_loop(first, count, add, (state, empty))


def train_step(
    state: State,
    batch: Prepared,
    rng: jax.Array,
    *,
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    parts: int = 1,
) -> tuple[State, metrics.Metrics]:
    """Return the next state, and metrics, from a prepared batch.

    rng: the same at every step. parts: into how many parts the batch is split to save memory.
    """
    rng = jax.random.fold_in(rng, state.step)
    drawn = task.draw(batch, rng)
    free, fixed = divided(state.params, task)
    loss_fn = functools.partial(task.loss_fn, step=state.step)
    grads, totals = gradients(
        lambda params, *rest: loss_fn(params | fixed, *rest), free, drawn, rng, parts
    )
    updates, new_opt_state = tx.update(
        grads, state.opt_state, free, step=state.step, loss=totals["loss"].compute()
    )
    opt_state = cast(optax.ApplyIfFiniteState, new_opt_state)
    watched = cast(Any, opt_state.inner_state)  # updates.spikes
    params = optax.apply_updates(free, updates) | fixed
    changed, totals = task.after_update(params, totals)
    taken = (opt_state.notfinite_count == 0) & ~watched.left_out
    params = jax.tree.map(lambda new, old: jnp.where(taken, new, old), changed, params)
    totals["grad_norm"] = metrics.scalar(optax.tree.norm(grads))
    totals["skipped_in_a_row"] = metrics.Last(opt_state.notfinite_count)
    totals["skipped_steps"] = metrics.Last(opt_state.total_notfinite)
    totals["spikes"] = metrics.Last(watched.spikes)
    return State(state.step + 1, params, opt_state), totals


def gradients(
    loss_fn: Callable, params: Any, batch: Drawn, rng: jax.Array, parts: int
) -> tuple[Any, metrics.Metrics]:
    """Return gradients and metrics of a batch; they do not depend on `parts`, except for dropout.

    A part is every parts-th row, so that each device keeps its own rows.
    """
    grad = jax.grad(loss_fn, has_aux=True)
    if parts == 1:
        return grad(params, batch, rng)

    def add(sums, part):
        number, rows = part
        grads, totals = grad(params, rows, jax.random.fold_in(rng, number))
        share = rows.valid.sum() / batch.valid.sum()
        return jax.tree.map(lambda total, one: total + share * one, sums, grads), totals

    rows = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    grads, stacked = jax.lax.scan(
        add, jax.tree.map(jnp.zeros_like, params), (jnp.arange(parts), rows)
    )
    each = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(parts)]
    return grads, metrics.merge(each)


Forward = Callable[[Any, Raw], dict[str, jax.Array]]  # a method of a task, e.g. Task.predict


def eval_step(params: Any, batch: Raw, *, forward: Forward) -> dict[str, jax.Array]:
    """Return what a task computes from a raw batch, with label, index and valid of each example."""
    kept = {"label": batch["label"], "index": batch["index"], "valid": batch["valid"]}
    return forward(params, batch) | kept
