"""The step: pure functions of state, batch and key. They know a task, not what it trains."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from supmim import metrics

Batch = dict[str, jax.Array]


class Task(Protocol):
    """What is trained. frozen: a pytree of arrays for `prepare` that training leaves alone."""

    frozen: Any

    def init(self, rng: jax.Array) -> Any:
        """Parameters."""

    def fingerprint(self) -> dict[str, str]:
        """What of the task, besides config and data, must be equal for a run to go on."""

    def prepare(self, frozen: Any, batch: Batch) -> Batch:
        """Raw batch -> the views and targets of a step; a program of its own, ahead of it."""

    def loss_fn(self, params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict]:
        """Scalar loss and metric totals of a prepared batch."""

    def predict(self, params: Any, batch: Batch) -> Batch:
        """What evaluators ask of a raw batch: at least `embedding` [B, D] and `logits` [B, C]."""


@struct.dataclass
class State:
    """All that changes in training; averaged parameters and skip counts are in opt_state."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def create_state(rng: jax.Array, task: Task, tx: optax.GradientTransformation) -> State:
    """The state before the first step."""
    params = task.init(rng)
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def train_step(
    state: State, batch: Batch, rng: jax.Array, *, task: Task, tx: optax.GradientTransformation
) -> tuple[State, metrics.Metrics]:
    """One update from a prepared batch; `rng` is the same at every step."""
    rng = jax.random.fold_in(rng, state.step)
    grads, totals = jax.grad(task.loss_fn, has_aux=True)(state.params, batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    totals["grad_norm"] = metrics.scalar(optax.tree.norm(grads))
    totals["skipped_in_a_row"] = metrics.Last(opt_state.notfinite_count)
    totals["skipped_steps"] = metrics.Last(opt_state.total_notfinite)
    return State(state.step + 1, params, opt_state), totals


def eval_step(params: Any, batch: Batch, *, task: Task) -> Batch:
    """Predictions for a raw batch, with what identifies each example: label, index, valid."""
    kept = {name: batch[name] for name in ("label", "index", "valid")}
    return task.predict(params, batch) | kept
