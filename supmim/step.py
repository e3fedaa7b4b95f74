"""The step: pure functions of state, batch and key. They know a task, not what it trains."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from supmim import metrics

Batch = dict[str, jax.Array]


class Task(Protocol):
    """What is trained. frozen: what training leaves alone: a tokenizer of arrays, or None.

    fixed: groups of parameters that have no gradient and no optimizer state.
    """

    frozen: Any
    fixed: tuple[str, ...]

    def init(self, rng: jax.Array) -> Any:
        """Parameters."""

    def fingerprint(self) -> dict[str, str]:
        """What of the task, besides config and data, must be equal for a run to go on."""

    def tokenize(self, frozen: Any, batch: Batch) -> Batch:
        """Adds target_ids [B, N] to a raw batch, row by row; a program of its own, ahead of all."""

    def prepare(self, batch: Batch) -> Batch:
        """Raw batch, tokenized -> the views and targets of a step; a program of its own, too."""

    def draw(self, batch: Batch, rng: jax.Array) -> Batch:
        """Adds to a prepared batch what is drawn over all of it, such as masks and mixing."""

    def loss_fn(self, params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict]:
        """Scalar loss and metric totals of a drawn batch, or of some of its rows."""

    def after_update(self, params: Any, totals: dict) -> tuple[Any, dict]:
        """What changes besides by gradients, from the totals of the batch, and what is logged.

        Such a change is undone where the gradient was not finite.
        """

    def predict(self, params: Any, batch: Batch) -> Batch:
        """What evaluators ask of a raw batch, e.g. `embedding` [B, D] and `logits` [B, C]."""


@struct.dataclass
class State:
    """All that changes in training; averaged parameters and skip counts are in opt_state."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def create_state(
    rng: jax.Array, task: Task, tx: optax.GradientTransformation, loaded: Any = None
) -> State:
    """The state before the first step; loaded: what some groups of its parameters begin with."""
    params = task.init(rng)
    params |= {name: params[name] | group for name, group in (loaded or {}).items()}
    return State(jnp.zeros((), jnp.int32), params, tx.init(divided(params, task)[0]))


def divided(params: Any, task: Task) -> tuple[Any, Any]:
    """The groups of parameters that are trained, and those that are not."""
    fixed = {name: params[name] for name in task.fixed}
    return {name: group for name, group in params.items() if name not in fixed}, fixed


def train_step(
    state: State,
    batch: Batch,
    rng: jax.Array,
    *,
    task: Task,
    tx: optax.GradientTransformation,
    parts: int = 1,
) -> tuple[State, metrics.Metrics]:
    """One update from a prepared batch, taken in so many parts; `rng` is the same at every step."""
    rng = jax.random.fold_in(rng, state.step)
    batch = task.draw(batch, rng)
    free, fixed = divided(state.params, task)
    grads, totals = gradients(
        lambda params, *rest: task.loss_fn(params | fixed, *rest), free, batch, rng, parts
    )
    updates, opt_state = tx.update(grads, state.opt_state, free)
    params = optax.apply_updates(free, updates) | fixed
    changed, totals = task.after_update(params, totals)
    finite = opt_state.notfinite_count == 0
    params = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, params)
    totals["grad_norm"] = metrics.scalar(optax.tree.norm(grads))
    totals["skipped_in_a_row"] = metrics.Last(opt_state.notfinite_count)
    totals["skipped_steps"] = metrics.Last(opt_state.total_notfinite)
    return State(state.step + 1, params, opt_state), totals


def gradients(
    loss_fn: Callable, params: Any, batch: Batch, rng: jax.Array, parts: int
) -> tuple[Any, metrics.Metrics]:
    """Gradients and metric totals of a batch; taken in parts, they are those of the whole.

    A part is every parts-th row, so that each device keeps its own. Only what the model draws
    itself, such as dropout, differs from part to part.
    """
    grad = jax.grad(loss_fn, has_aux=True)
    if parts == 1:
        return grad(params, batch, rng)

    def add(sums, part):
        number, rows = part
        grads, totals = grad(params, rows, jax.random.fold_in(rng, number))
        share = rows["valid"].sum() / batch["valid"].sum()
        return jax.tree.map(lambda total, one: total + share * one, sums, grads), totals

    rows = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    grads, stacked = jax.lax.scan(
        add, jax.tree.map(jnp.zeros_like, params), (jnp.arange(parts), rows)
    )
    each = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(parts)]
    return grads, metrics.merge(each)


View = Callable[[Any, Batch], Batch]  # (params, raw batch) -> arrays [B, ...], e.g. Task.predict


def eval_step(params: Any, batch: Batch, *, view: View) -> Batch:
    """A view of a raw batch, with what identifies each example: label, index, valid."""
    kept = {name: batch[name] for name in ("label", "index", "valid")}
    return view(params, batch) | kept
