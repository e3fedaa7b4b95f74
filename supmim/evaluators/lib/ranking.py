"""Exact search by cosine: the bank spread over all devices, in blocks of bounded memory.

Shapes: Q queries, M bank entries, D width, k neighbours.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from supmim.errors import NumericsError

QUERIES = 1024  # scored against a block of the bank at once
MIB = 2**20
GROUP = 64  # similarities of a row that are kept or dropped together, by their largest
GROUPED_PART = 8  # a row is searched by groups if at most 1 / 8 of it can be kept


def norms(embedding: np.ndarray, name: str, noun: str = "image") -> np.ndarray:
    """Return lengths [n] of rows [n, D], one for each image or whatever `noun` says.

    NumericsError if one is zero or not finite, or if all rows are equal.
    """
    squared = np.einsum("nd,nd->n", embedding, embedding, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(squared) | (squared == 0))
    if len(bad):
        raise NumericsError(
            f"embeddings of {name} cannot be compared: {len(bad)} are zero or not finite; the "
            f"first is {noun} {bad[0]}. Look at the losses in metrics.jsonl"
        )
    if len(embedding) > 1 and (embedding == embedding[0]).all():
        raise NumericsError(
            f"all embeddings of {name} are equal, so that they do not distinguish {noun}s. Look at "
            "the losses in metrics.jsonl"
        )
    return np.sqrt(squared)


def weights(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """Return exp(cosine / temperature) of neighbours [Q, k], relative to that of the nearest."""
    return np.exp((similarity - similarity.max(axis=1, keepdims=True)) / temperature)


def unit(embedding: np.ndarray, name: str, noun: str = "image") -> np.ndarray:
    """Return unit rows [n, D], float32. NumericsError as for `norms`."""
    length = norms(embedding, name, noun)[:, None].astype(embedding.dtype)
    return (embedding / length).astype(np.float32)


class Bank:
    """Rows [M, D] to search in by inner product, an equal share on each device of a mesh.

    The inner product of unit rows is their cosine.
    mib: similarities that a device holds at once, in MiB.
    """

    def __init__(self, bank: np.ndarray, mesh: Mesh, mib: float) -> None:
        self.length, self.mesh, self.mib = len(bank), mesh, mib
        self.most_queries = round_up(QUERIES, mesh.size)
        share = round_up(-(-len(bank) // mesh.size), GROUP)
        most = max(1, int(mib * MIB / (4 * self.most_queries)))
        self.block = min(share, most // GROUP * GROUP or most)
        share = round_up(share, self.block)
        where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        padded = np.pad(bank, ((0, share * mesh.size - len(bank)), (0, 0)))
        self.rows = jax.make_array_from_callback(padded.shape, where, lambda i: padded[i])

    def nearest(
        self, queries: np.ndarray, k: int, exclude_self: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and bank ids of the k nearest, [Q, k] each, best first, then by id.

        With exclude_self, query i is bank entry i and is left out. k is capped at the size of the
        bank.
        """
        k = min(k, self.length - exclude_self)
        size = min(self.most_queries, round_up(len(queries), self.mesh.size))
        fetched = []
        for first in range(0, len(queries), size):
            chunk = queries[first : first + size]
            own = np.arange(first, first + size) if exclude_self else np.full(size, -1)
            padded = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))
            found = _search(padded, self.rows, own, self.length, self.mesh, self.block, k)
            fetched.append([x[: len(chunk)] for x in jax.device_get(found)])
        similarity, ids = (np.concatenate(parts) for parts in zip(*fetched, strict=True))
        return similarity, ids

    def rankings(self, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first query, bank ids [n, M]) by chunks of queries: the whole bank, best first."""
        for first, order in self._orders(queries, exclude_self=False):
            yield first, jax.device_get(order)[: len(queries) - first, : self.length]

    def relevance(self, queries: np.ndarray, label: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first query, relevance bool [n, M - 1]) by chunks of queries, best rank first.

        Query i is bank entry i, which is left out. label: [M]; entries of equal label are relevant.
        """
        labels = np.pad(label, (0, len(self.rows) - self.length))
        for first, order in self._orders(queries, exclude_self=True):
            own = labels[np.minimum(first + np.arange(len(order)), self.length - 1)]
            relevant = jax.device_get(_share_label(order, labels, own))
            yield first, relevant[: len(queries) - first, : self.length - 1]

    def _orders(self, queries: np.ndarray, exclude_self: bool) -> Iterator[tuple[int, jax.Array]]:
        """Yield (first query, ids [chunk, padded M] on the devices), as many as memory allows."""
        devices = self.mesh.size
        affordable = int(self.mib * MIB / (16 * len(self.rows)))  # a sort's keys and ids, twice
        chunk = max(1, min(QUERIES // devices, -(-len(queries) // devices), affordable)) * devices
        for first in range(0, len(queries), chunk):
            some = queries[first : first + chunk]
            padded = np.pad(some, ((0, chunk - len(some)), (0, 0)))
            own = np.arange(first, first + chunk) if exclude_self else np.full(chunk, -1)
            yield first, _rank(padded, self.rows, own, self.length, self.mesh)


def round_up(number: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below a number."""
    return -(-number // step) * step


@functools.partial(jax.jit, static_argnames=("mesh", "block", "k"))
def _search(queries, rows, own, length, mesh, block, k):
    """Return cosines and ids [Q, k] from the whole bank, replicated; own [Q]: ids to leave out."""
    everywhere, spread = PartitionSpec(), PartitionSpec(mesh.axis_names)
    each = jax.shard_map(
        functools.partial(_search_share, axes=mesh.axis_names, block=block, k=k),
        mesh=mesh,
        in_specs=(everywhere, spread, everywhere, everywhere),
        out_specs=(spread, spread),
        check_vma=False,
    )
    found = each(queries, rows, own, length)
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, everywhere))


@functools.partial(jax.jit, static_argnames="mesh")
def _rank(queries, rows, own, length, mesh):
    """Return ids [Q, M] in rank order, replicated; each device sorts for some of the queries."""
    ids = jnp.arange(len(rows))
    similarity = jnp.matmul(queries, rows.T, precision="highest")
    similarity = jnp.where(
        (ids[None] == own[:, None]) | (ids >= length)[None], -jnp.inf, similarity
    )
    by_query = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    similarity = jax.lax.with_sharding_constraint(similarity, by_query)
    order = jnp.argsort(-similarity, axis=1, stable=True)
    return jax.lax.with_sharding_constraint(order, NamedSharding(mesh, PartitionSpec()))


@jax.jit
def _share_label(order, label, own):
    """Return which ids [Q, M] have the query's label: label [M], own [Q]."""
    return label[order] == own[:, None]


def _search_share(queries, rows, own, length, *, axes, block, k):
    """Return cosines and ids [Q / devices, k] from the whole bank, for one device's queries.

    Each device first searches its own rows for all queries, keeping the best block after block.
    """
    first = jax.lax.axis_index(axes) * len(rows)

    def step(best, number):
        start = number * block
        part = jax.lax.dynamic_slice_in_dim(rows, start, block)
        similarity = jnp.matmul(queries, part.T, precision="highest")
        start += first
        similarity, place = _largest(similarity, own - start, length - start, min(k, block))
        found = similarity, start + place
        joined = (jnp.concatenate(both, axis=1) for both in zip(best, found, strict=True))
        return _best(*joined, k), None

    nothing = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1))
    best, _ = jax.lax.scan(step, nothing, jnp.arange(len(rows) // block))
    similarity, ids = (jax.lax.all_to_all(x, axes, 0, 1, tiled=True) for x in best)
    return _best(similarity, ids, k)


def _largest(similarity: Any, own: Any, length: Any, k: int) -> tuple[Any, Any]:
    """Return lax.top_k of [Q, n] without places own [Q] and those from `length` on.

    Where it is less work, groups are chosen first. Places are then masked in the candidates only:
    masking all similarities would cost as much as choosing among them. The k largest lie in the k
    groups with the largest maxima. Two more groups make up for those whose maximum may be masked:
    the one with `own`, and the one that `length` cuts. Equal values keep their order, since groups
    and candidates do.
    """

    def masked(place, values):
        return jnp.where((place == own[:, None]) | (place >= length), -jnp.inf, values)

    queries, n = similarity.shape
    if n % GROUP or k * GROUP * GROUPED_PART > n:
        return jax.lax.top_k(masked(jnp.arange(n)[None], similarity), k)
    groups = similarity.reshape(queries, n // GROUP, GROUP)
    starts = GROUP * jnp.arange(n // GROUP)[None]
    maxima = jnp.where(starts < length, groups.max(axis=2), -jnp.inf)
    kept = jnp.sort(jax.lax.top_k(maxima, k + 2)[1], axis=1)[:, :, None]
    candidates = jnp.take_along_axis(groups, kept, axis=1).reshape(queries, -1)
    place = (GROUP * kept + jnp.arange(GROUP)[None, None]).reshape(queries, -1)
    return _best(masked(place, candidates), place, k)


def _best(similarity: Any, ids: Any, k: int) -> tuple[Any, Any]:
    """Return the k largest [Q, k] of [Q, n]; among equals the first, so n must run by id."""
    similarity, place = jax.lax.top_k(similarity, k)
    return similarity, jnp.take_along_axis(ids, place, axis=1)
