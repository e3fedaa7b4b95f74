"""Linear probe: DINOv2's grid of heads on frozen features, all trained at once.

Facts from facebookresearch/dinov2, dinov2/eval/linear.py. Unlike there, heads start at zero, small
sets take fewer steps, training images are cropped as in evaluation, and the head is not chosen on
the images that score it.
Shapes: n images, S steps, B images of a step, F feature values, f those of a kind, R learning
rates, C classes. Heads of a kind: [f + 1, R, C]; the last row is the bias.

Memory: features are float16, n x F x 2 bytes on every host (twice that while they are computed). A
device holds the heads twice, and its share of CHUNK steps.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from supmim import sharding
from supmim.config import Config
from supmim.errors import DataError, counted
from supmim.evaluators.classification import top_k
from supmim.evaluators.lib.predictions import Predictions
from supmim.tasks import probe
from supmim.tasks.probe import Kind

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
BATCH_SIZE = 256  # of these rates, which are scaled down for the batches of smaller sets
STEPS = 12_500  # for any larger set, as in DINOv2, whose "epochs" have 1,250
MIN_STEPS = 1_250  # a small set takes a step per image, which costs no more than its features
MOMENTUM = 0.9
SEED = 0  # of the split and of the order
CHUNK = 64  # steps whose features are sent to the devices at once
PADDING = -1  # in place of a row, where a batch or a chunk is filled up


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and the tenth held out to choose by; the same every time."""
    order = np.random.default_rng(SEED).permutation(count)
    few = -(-count // 10)
    return np.sort(order[few:]), np.sort(order[:few])


def learnable_split(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `split` of labels [n]; DataError unless two classes are left to learn from."""
    rows, held_out = split(len(label))
    if len(np.unique(label[rows])) < 2:
        raise DataError(
            f"a probe learns from {counted(len(rows), 'training image')} and holds out "
            f"{len(held_out)}, but those it learns from have fewer than two classes. Give it more "
            "training images, or leave linear and logistic out of config.eval.evaluators"
        )
    return rows, held_out


def schedule(rows: np.ndarray) -> np.ndarray:
    """Return rows [S, B] of reshuffled passes over rows [n]; S is n within [MIN_STEPS, STEPS]."""
    batch_size = min(BATCH_SIZE, len(rows))
    steps = min(max(MIN_STEPS, len(rows)), STEPS)
    passes = [
        rows[np.random.default_rng((SEED, epoch)).permutation(len(rows))]
        for epoch in range(-(-steps * batch_size // len(rows)))
    ]
    return np.concatenate(passes)[: steps * batch_size].reshape(steps, batch_size)


def device_chunks(
    features: np.ndarray, label: np.ndarray, rows: np.ndarray, mesh: Mesh
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Yield features [s, B, F], labels and `valid` [s, B] of rows [S, B], s steps at a time.

    Batches are split over the devices. Padding in a batch, and steps that fill up the last chunk,
    are not valid.
    """
    steps, batch_size = rows.shape
    size = -(-steps // -(-steps // CHUNK))
    fill = ((0, -steps % size), (0, -batch_size % sharding.batch_shards(mesh)))
    rows = np.pad(rows, fill, constant_values=PADDING)
    where = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH))

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, where, lambda part: x[part])

    for some in np.split(rows, len(rows) // size):
        valid = (some != PADDING).astype(np.float32)
        yield place(features[some]), place(label[some]), place(valid)


def logits(heads: jax.Array, features: jax.Array, kind: Kind) -> jax.Array:
    """Return logits [B, R, C], float32, of heads [f + 1, R, C] for features [B, F]."""
    x = features[:, kind.first : kind.last].astype(jnp.float32)
    x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)
    flat = jnp.matmul(x, heads.reshape(len(heads), -1), precision="highest")
    return flat.reshape(len(x), *heads.shape[1:])


def losses(scores: jax.Array, label: jax.Array) -> jax.Array:
    """Return the cross-entropy [B, R] of logits [B, R, C] and labels [B]."""
    label = jnp.broadcast_to(label[:, None], scores.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(scores, label)


@functools.partial(jax.jit, static_argnames=("kinds", "mesh"), donate_argnums=(0, 1))
def _train(heads, velocity, rates, chunk, kinds, mesh):
    """Take the steps of a chunk by momentum: rates [s, R]; heads, velocity: one array per kind."""

    def loss(heads, features, label, valid):
        each = [
            losses(logits(one, features, k), label) for one, k in zip(heads, kinds, strict=True)
        ]
        return sum((x * valid[:, None]).sum() for x in each) / jnp.maximum(valid.sum(), 1)

    def step(state, inputs):
        (heads, velocity), (rate, batch) = state, inputs
        grads = jax.grad(loss)(heads, *batch)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        heads = jax.tree.map(lambda h, v: h - rate[None, :, None] * v, heads, velocity)
        return (heads, velocity), None

    state, _ = jax.lax.scan(step, (heads, velocity), (rates, chunk))
    return jax.lax.with_sharding_constraint(state, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnames=("kinds", "mesh"))
def _score(heads, chunk, kinds, mesh):
    """Return sums [2, kinds, R] over images: hits (a tie is a miss) and losses."""

    def step(sums, batch):
        features, label, valid = batch
        found = []
        for one, kind in zip(heads, kinds, strict=True):
            scores = logits(one, features, kind)
            own = jnp.take_along_axis(scores, label[:, None, None], axis=2)
            right = ((scores >= own).sum(axis=2) == 1).astype(jnp.float32)
            found.append(jnp.stack([right, losses(scores, label)]) * valid[None, :, None])
        return sums + jnp.stack(found, axis=1).sum(axis=2), None

    zero = jnp.zeros((2, len(kinds), heads[0].shape[1]))
    return jax.lax.with_sharding_constraint(
        jax.lax.scan(step, zero, chunk)[0], NamedSharding(mesh, PartitionSpec())
    )


def train(
    features: np.ndarray,
    label: np.ndarray,
    rows: np.ndarray,
    kinds: tuple[Kind, ...],
    num_classes: int,
    mesh: Mesh,
    rates: tuple[float, ...] = LEARNING_RATES,
) -> list[jax.Array]:
    """Return the heads of every kind, trained on rows [S, B] of features [n, F] and labels [n].

    The learning rates follow a cosine to zero.
    """
    shapes = [(kind.last - kind.first + 1, len(rates), num_classes) for kind in kinds]
    everywhere = sharding.replicated(mesh)
    heads, velocity = ([jnp.zeros(s, device=everywhere) for s in shapes] for _ in range(2))
    steps, batch_size = rows.shape
    cosine = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    each = np.outer(cosine, np.array(rates) * batch_size / 256).astype(np.float32)
    first = 0
    for chunk in device_chunks(features, label, rows, mesh):
        size = len(chunk[1])
        now = np.pad(each[first : first + size], ((0, max(0, first + size - steps)), (0, 0)))
        heads, velocity = _train(heads, velocity, now, chunk, kinds, mesh)
        first += size
    return heads


def score(
    heads: list[jax.Array],
    features: np.ndarray,
    label: np.ndarray,
    rows: np.ndarray,
    kinds: tuple[Kind, ...],
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the top-1 accuracy and the mean loss of each head on rows [n]: [kinds, R] each."""
    padded = np.pad(rows, (0, -len(rows) % BATCH_SIZE), constant_values=PADDING)
    chunks = device_chunks(features, label, padded.reshape(-1, BATCH_SIZE), mesh)
    sums = [jax.device_get(_score(heads, chunk, kinds, mesh)) for chunk in chunks]
    right, loss = functools.reduce(np.add, sums)
    return right / len(rows), loss / len(rows)


def best(right: np.ndarray, loss: np.ndarray) -> tuple[int, int]:
    """Return kind and rate of the most accurate head; among equals, of the smallest loss."""
    order = np.lexsort((loss.ravel(), -right.ravel()))
    kind, rate = np.unravel_index(order[0], right.shape)
    return int(kind), int(rate)


def end_of_grid(rate: int) -> dict[str, str]:
    """Return a note if a rate is the smallest or the largest: a rate beyond it might be better."""
    ends = {0: "smallest", len(LEARNING_RATES) - 1: "largest"}
    return {"learning_rate_is": f"the {ends[rate]} of the grid"} if rate in ends else {}


class Evaluator:
    """linear/top1: the accuracy of the head that is best on held-out training images."""

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self.kinds = probe.kinds(config.encoder)
        self._measured: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        forward, mesh = self.predictions.task.probe_features, self.predictions.mesh
        train_on, out = (
            self.predictions.checked(params, part, forward) for part in ("train", "eval")
        )
        features, label = train_on["features"], train_on["label"]
        rows, held_out = learnable_split(label)
        steps = schedule(rows)
        heads = train(features, label, steps, self.kinds, self.num_classes, mesh)
        right, loss = score(heads, features, label, held_out, self.kinds, mesh)
        place, rate = best(right, loss)
        kind, head = self.kinds[place], np.asarray(heads[place])[:, rate]
        seen = out["features"][:, kind.first : kind.last].astype(np.float32)
        chosen = {"blocks": kind.blocks, "patches": kind.patches}
        chosen |= {"learning_rate": LEARNING_RATES[rate]} | end_of_grid(rate)
        self._measured = {"head": chosen, "steps": len(steps), "trained_on": len(rows)}
        self._measured |= {"chosen_on": len(held_out), "judged_by": len(seen)}
        return {"linear/top1": top_k(seen @ head[:-1] + head[-1], out["label"], 1)}

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "linear heads on frozen features; held-out training images choose the best",
            "feature": "normed summaries of the last 1 or 4 blocks, with or without mean patches",
            "metric": "top-1",
            "heads": len(self.kinds) * len(LEARNING_RATES),
            "optimizer": f"SGD, momentum {MOMENTUM}, cosine, batch {BATCH_SIZE}",
            "augmentation": "none",
            **self._measured,
        }

    def draw(self, folder: Path) -> None:
        """Draw nothing."""
