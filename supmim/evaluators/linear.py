"""Linear probe: DINOv2's grid of heads on frozen features, all trained at once.

Facts from facebookresearch/dinov2, dinov2/eval/linear.py; besides, heads start at zero, small sets
take fewer steps, training images are seen as evaluation sees them, and the head is not chosen on
the images it is judged by.
Shapes: n images, S steps, B images of a step, F feature values, f those of a kind, R learning
rates, C classes. Heads of a kind: [f + 1, R, C], the last row is the bias's.

Memory: features are float16, n x F x 2 bytes on every host (twice that while they are made); a
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
from supmim.errors import DataError
from supmim.evaluators.classification import top_k
from supmim.evaluators.lib.predictions import Predictions
from supmim.tasks import probe
from supmim.tasks.probe import Kind

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
BATCH_SIZE = 256  # for which these rates are stated; they shrink with smaller training sets
STEPS = 12_500  # whatever the set: its "epochs" have 1,250
FEWEST = 1_250  # of a small one, which takes a step per image: forward passes cost as little
MOMENTUM = 0.9
SEED = 0  # of the split and of the order
CHUNK = 64  # steps whose features are sent to the devices at once
NOBODY = -1  # the row that fills up a batch


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and the tenth that is held out to choose by; drawn once for all."""
    order = np.random.default_rng(SEED).permutation(count)
    few = -(-count // 10)
    return np.sort(order[few:]), np.sort(order[:few])


def schedule(rows: np.ndarray) -> np.ndarray:
    """Rows [n] -> [S, B] of reshuffled passes over them; S is between FEWEST and STEPS, else n."""
    batch_size = min(BATCH_SIZE, len(rows))
    steps = min(max(FEWEST, len(rows)), STEPS)
    passes = [
        rows[np.random.default_rng((SEED, epoch)).permutation(len(rows))]
        for epoch in range(-(-steps * batch_size // len(rows)))
    ]
    return np.concatenate(passes)[: steps * batch_size].reshape(steps, batch_size)


def in_order(rows: np.ndarray) -> np.ndarray:
    """Rows [n] -> [S, BATCH_SIZE], each once."""
    padded = np.pad(rows, (0, -len(rows) % BATCH_SIZE), constant_values=NOBODY)
    return padded.reshape(-1, BATCH_SIZE)


def sent(
    features: np.ndarray, label: np.ndarray, rows: np.ndarray, mesh: Mesh
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Features [s, B, F], labels and `valid` [s, B] of rows [S, B], equally many steps at a time.

    Batches are split over the devices. Steps that fill up the last chunk have nobody valid.
    """
    steps, batch_size = rows.shape
    size = -(-steps // -(-steps // CHUNK))
    fill = ((0, -steps % size), (0, -batch_size % sharding.batch_shards(mesh)))
    rows = np.pad(rows, fill, constant_values=NOBODY)
    where = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH))
    for some in np.split(rows, len(rows) // size):
        valid = (some != NOBODY).astype(np.float32)
        yield tuple(
            jax.make_array_from_callback(x.shape, where, lambda part, x=x: x[part])
            for x in (features[some], label[some], valid)
        )


def logits(heads: jax.Array, features: jax.Array, kind: Kind) -> jax.Array:
    """[f + 1, R, C], [B, F] -> [B, R, C], float32."""
    x = features[:, kind.first : kind.last].astype(jnp.float32)
    x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)
    flat = jnp.matmul(x, heads.reshape(len(heads), -1), precision="highest")
    return flat.reshape(len(x), *heads.shape[1:])


def losses(scores: jax.Array, label: jax.Array) -> jax.Array:
    """[B, R, C], [B] -> cross-entropy of each image and head [B, R]."""
    label = jnp.broadcast_to(label[:, None], scores.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(scores, label)


@functools.partial(jax.jit, static_argnames=("kinds", "mesh"), donate_argnums=(0, 1))
def _train(heads, velocity, rates, chunk, kinds, mesh):
    """Some steps of momentum: rates [s, R]; heads and velocity: one array per kind."""

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
    """Sums over images [2, kinds, R]: how many are right, ties counting against, and losses."""

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
    features: np.ndarray, label: np.ndarray, rows: np.ndarray, kinds: tuple[Kind, ...],
    num_classes: int, mesh: Mesh, rates: tuple[float, ...] = LEARNING_RATES,
) -> list[jax.Array]:  # fmt: skip
    """Heads of every kind and rate, from rows [S, B] of [n, F] and [n]; the rates fall to zero as
    a cosine.
    """
    shapes = [(kind.last - kind.first + 1, len(rates), num_classes) for kind in kinds]
    everywhere = sharding.replicated(mesh)
    heads, velocity = ([jnp.zeros(s, device=everywhere) for s in shapes] for _ in range(2))
    steps, batch_size = rows.shape
    cosine = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    scaled = np.array(rates) * batch_size / 256
    each = np.outer(cosine, scaled).astype(np.float32)
    first = 0
    for chunk in sent(features, label, rows, mesh):
        size = len(chunk[1])
        now = np.pad(each[first : first + size], ((0, max(0, first + size - steps)), (0, 0)))
        heads, velocity = _train(heads, velocity, now, chunk, kinds, mesh)
        first += size
    return heads


def score(
    heads: list[jax.Array], features: np.ndarray, label: np.ndarray, rows: np.ndarray,
    kinds: tuple[Kind, ...], mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Share of the rows [n] that each head has right, and its mean loss: [kinds, R] each."""
    chunks = sent(features, label, in_order(rows), mesh)
    right, loss = sum(jax.device_get(_score(heads, chunk, kinds, mesh)) for chunk in chunks)
    return right / len(rows), loss / len(rows)


def best(right: np.ndarray, loss: np.ndarray) -> tuple[int, int]:
    """Kind and rate of the head with most right, of several the one of the smallest loss."""
    order = np.lexsort((loss.ravel(), -right.ravel()))
    return tuple(int(i) for i in np.unravel_index(order[0], right.shape))


def end_of_grid(rate: int) -> dict[str, str]:
    """What is to be said of a head of the smallest or the largest rate: another might do better."""
    ends = {0: "smallest", len(LEARNING_RATES) - 1: "largest"}
    return {"learning_rate_is": f"the {ends[rate]} of the grid"} if rate in ends else {}


class Evaluator:
    """linear/top1: of the head that does best on a tenth of the training images held out."""

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self.kinds = probe.kinds(config.encoder)
        self._said: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        forward, mesh = self.predictions.task.probe_features, self.predictions.mesh
        train_on, out = (
            self.predictions.embedded(params, part, forward) for part in ("train", "eval")
        )
        features, label = train_on["features"], train_on["label"]
        rows, held_out = learnable_split(label)
        steps = schedule(rows)
        heads = train(features, label, steps, self.kinds, self.num_classes, mesh)
        right, loss = score(heads, features, label, held_out, self.kinds, mesh)
        place, rate = best(right, loss)
        kind, head = self.kinds[place], np.asarray(heads[place])[:, rate]
        seen = out["features"][:, kind.first : kind.last].astype(np.float32)
        self._said = {
            "head": {"blocks": kind.blocks, "patches": kind.patches,
                     "learning_rate": LEARNING_RATES[rate], **end_of_grid(rate)},
            "steps": len(steps), "trained_on": len(rows), "chosen_on": len(held_out),
            "judged_by": len(seen),
        }  # fmt: skip
        return {"linear/top1": top_k(seen @ head[:-1] + head[-1], out["label"], 1)}

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "linear heads on frozen features, the one chosen on held out training images",
            "feature": "normed summaries of the last 1 or 4 blocks, with or without mean patches",
            "metric": "top-1", "heads": len(self.kinds) * len(LEARNING_RATES),
            "optimizer": f"SGD, momentum {MOMENTUM}, cosine, batch {BATCH_SIZE}",
            "augmentation": "none", **self._said,
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """Nothing to draw."""


def learnable_split(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`split`, of labels [n] that leave something to learn; DataError if they don't."""
    rows, held_out = split(len(label))
    if len(np.unique(label[rows])) < 2:
        raise DataError(
            f"a probe learns from {len(rows)} training images, and holds out {len(held_out)}: the "
            "former are of less than two classes. Give it more images, or leave linear and "
            "logistic out of the evaluators"
        )
    return rows, held_out
