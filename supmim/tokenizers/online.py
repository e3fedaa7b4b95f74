"""Target ids computed where the images lie: each device encodes its own rows in microbatches.

All microbatches have one shape and their program contains nothing else, so that ids depend neither
on the batch size nor on the number of devices. Shapes: B batch, N tokens; S batches may be stacked.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from supmim import sharding
from supmim.data.raw import Raw

ROWS = PartitionSpec(sharding.BATCH)
Fields = dict[str, Any]  # the fields of a raw batch that its target ids depend on


class Tokenize:
    """A function (frozen, raw batch) that returns the batch with target_ids [B, N] or [S, B, N].

    A batch comes back unchanged if there is no tokenizer or if it already has target ids.
    tokenize: adds target ids to the rows of one device.
    """

    def __init__(self, tokenize: Callable[[Any, Raw], Raw], mesh: Mesh, microbatch: int) -> None:
        self.mesh, self.microbatch = mesh, microbatch
        self._ids = jax.jit(
            jax.shard_map(
                lambda frozen, rows: dict(tokenize(frozen, rows))["target_ids"],
                mesh=mesh,
                in_specs=(PartitionSpec(), ROWS),
                out_specs=ROWS,
            )
        )

    def __call__(self, frozen: Any, batch: Raw, count: int | None = None) -> Raw:
        """Add target ids; B divides over the mesh. count: how many batches of a stack are read."""
        if frozen is None or "target_ids" in batch:
            return batch
        *stacked, size = batch["index"].shape
        rows = size // sharding.batch_shards(self.mesh)
        parts = split(self.mesh, self.microbatch, fields(batch))
        needed = len(parts) if count is None else -(-count * rows // self.microbatch)
        ids = [self._ids(frozen, part) for part in parts[:needed]]
        ids += ids[-1:] * (len(parts) - needed)
        tokenized = batch.copy()
        tokenized.pop("tokenizer_image", None)
        tokenized["target_ids"] = join(self.mesh, (*stacked, rows), ids)
        return tokenized

    def microbatches(self, frozen: Any, batch: Raw) -> list[Fields]:
        """Return the abstract microbatches of a batch; none if no ids are computed."""
        if frozen is None or "target_ids" in batch:
            return []
        parts = jax.eval_shape(lambda rows: split(self.mesh, self.microbatch, rows), fields(batch))
        where = sharding.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), parts
        )

    def lower(self, frozen: Any, microbatch: Fields) -> jax.stages.Lowered:
        """Lower the program of an abstract microbatch."""
        return self._ids.lower(frozen, microbatch)


def fields(batch: Raw) -> Fields:
    """Return the fields of a raw batch that its target ids depend on."""
    image = "tokenizer_image" if "tokenizer_image" in batch else "image"
    return {name: dict(batch)[name] for name in (image, "epoch", "index")}


@functools.partial(jax.jit, static_argnums=(0, 1))
def split(mesh: Mesh, microbatch: int, batch: Fields) -> list[Fields]:
    """Split a batch into `microbatch` rows per device; the last part is padded with zeros."""
    axes = batch["index"].ndim

    def parts(rows: Fields) -> list[Fields]:
        flat = {name: x.reshape(-1, *x.shape[axes:]) for name, x in rows.items()}
        count = -(-len(flat["index"]) // microbatch)
        padding = count * microbatch - len(flat["index"])
        padded = {
            name: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for name, x in flat.items()
        }
        return [
            {name: x[i * microbatch : (i + 1) * microbatch] for name, x in padded.items()}
            for i in range(count)
        ]

    return jax.shard_map(parts, mesh=mesh, in_specs=split_last(axes), out_specs=ROWS)(batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def join(mesh: Mesh, shape: tuple[int, ...], parts: list[jax.Array]) -> jax.Array:
    """Concatenate each device's parts to ids [*shape, N] of its first rows: [B, N] or [S, B, N]."""

    def together(parts: list[jax.Array]) -> jax.Array:
        return jnp.concatenate(parts)[: math.prod(shape)].reshape(*shape, -1)

    whole = jax.shard_map(together, mesh=mesh, in_specs=ROWS, out_specs=split_last(len(shape)))
    return whole(parts)


def split_last(axes: int) -> PartitionSpec:
    """Return the placement of rows, which are the last of these leading axes."""
    return PartitionSpec(*(None,) * (axes - 1), sharding.BATCH)
