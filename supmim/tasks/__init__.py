"""What can be trained: the loop and the step know a task by this protocol, and nothing of it."""

from typing import Any, Protocol

import jax

from supmim.metrics import Metrics
from supmim.tasks import supmim

Batch = dict[str, jax.Array]


class Task(Protocol):
    """frozen: a pytree of arrays that `prepare` needs and training does not change."""

    frozen: Any

    def init(self, rng: jax.Array) -> Any:
        """Parameters."""

    def prepare(self, frozen: Any, batch: Batch) -> Batch:
        """Raw batch -> the views and targets of a step; a program of its own, ahead of it."""

    def loss_fn(self, params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """Scalar loss and metric totals of a prepared batch."""

    def predict(self, params: Any, batch: Batch) -> Batch:
        """What evaluators ask of a raw batch: at least `embedding` [B, D] and `logits` [B, C]."""


TASKS = {"supmim": supmim.create}
