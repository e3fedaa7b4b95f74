"""Ids of a batch where its images lie: each device turns its own rows into ids, in microbatches.

The program that does it always sees microbatches of one shape, and nothing else is compiled with
it, so that ids depend neither on the batch size nor on the number of devices.
Shapes: B batch, N tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from supmim import sharding
from supmim.data.raw import Raw

ROWS = PartitionSpec(sharding.BATCH)


class Tokenize:
    """frozen, raw batch -> the batch with target_ids [B, N]; of `tokenize`, which does so for rows.

    Rawes come back as they are without a tokenizer, and where ids were read with the images.
    """

    def __init__(self, tokenize: Callable[[Any, Raw], Raw], mesh: Mesh, microbatch: int) -> None:
        self.mesh, self.microbatch = mesh, microbatch
        self._ids = jax.jit(
            jax.shard_map(
                lambda frozen, rows: tokenize(frozen, rows)["target_ids"],
                mesh=mesh, in_specs=(PartitionSpec(), ROWS), out_specs=ROWS,
            )
        )  # fmt: skip

    def __call__(self, frozen: Any, batch: Raw) -> Raw:
        """See the class; `index` of the batch divides over the mesh."""
        if frozen is None or "target_ids" in batch:
            return batch
        rows = len(batch["index"]) // sharding.batch_shards(self.mesh)
        ids = [self._ids(frozen, part) for part in split(self.mesh, self.microbatch, seen(batch))]
        rest = {name: x for name, x in batch.items() if name != "tokenizer_image"}
        return rest | {"target_ids": join(self.mesh, rows, ids)}

    def microbatches(self, frozen: Any, batch: Raw) -> list[Raw]:
        """Of shapes: what the program is called with; nothing where it is not."""
        if frozen is None or "target_ids" in batch:
            return []
        parts = jax.eval_shape(lambda rows: split(self.mesh, self.microbatch, rows), seen(batch))
        where = sharding.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), parts
        )

    def lower(self, frozen: Any, rows: Raw) -> jax.stages.Lowered:
        """The program of a microbatch, of shapes."""
        return self._ids.lower(frozen, rows)


def seen(batch: Raw) -> Raw:
    """What of a raw batch its ids depend on."""
    image = "tokenizer_image" if "tokenizer_image" in batch else "image"
    return {name: batch[name] for name in (image, "epoch", "index")}


@functools.partial(jax.jit, static_argnums=(0, 1))
def split(mesh: Mesh, microbatch: int, batch: Raw) -> list[Raw]:
    """A batch in parts of so many rows on each device, the last one padded with zeros."""

    def parts(rows: Raw) -> list[Raw]:
        count = -(-len(rows["index"]) // microbatch)
        padding = count * microbatch - len(rows["index"])
        padded = {
            name: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for name, x in rows.items()
        }
        return [
            {name: x[i * microbatch : (i + 1) * microbatch] for name, x in padded.items()}
            for i in range(count)
        ]

    return jax.shard_map(parts, mesh=mesh, in_specs=ROWS, out_specs=ROWS)(batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def join(mesh: Mesh, rows: int, parts: list[jax.Array]) -> jax.Array:
    """The first `rows` of each device's parts, put together again: [B, N]."""

    def whole(parts: list[jax.Array]) -> jax.Array:
        return jnp.concatenate(parts)[:rows]

    return jax.shard_map(whole, mesh=mesh, in_specs=ROWS, out_specs=ROWS)(parts)
