"""Streams: the records that a step takes, read in the host's process or in a reader process.

Sample n = step * batch_size + row of an endless stream of reshuffled epochs (order.py). Its record
depends on the seed and n alone, so the position of a run is its step, on any number of hosts.
It imports no jax, so that reader processes start fast and stay small.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from supmim.data.images import Bad, Images
from supmim.data.order import Order
from supmim.data.raw import Raw
from supmim.data.sources import joined
from supmim.errors import DataError, counted
from supmim.target_ids.files import Part


class Pool(NamedTuple):
    """The images of one kind, with or without labels, and the rows of a host that take them.

    first: their first record. size: how many of them a step takes. at: which of the host's rows.
    number: which of the `size` each of these rows is.
    """

    order: Order
    first: int
    size: int
    at: np.ndarray
    number: np.ndarray


class Training:
    """step -> this host's rows of the global batch and the bad records met on the way.

    batch_size, unlabelled: images with and without labels in a step, of a joined.Joined if there
    are both; the first p of every q rows have labels, where p / q is their share in lowest terms.
    The row of a bad record is filled with the next record of its kind that can be read, so that a
    bad record is always replaced by the same one.
    """

    def __init__(
        self, images: Images, seed: int, batch_size: int, rows: np.ndarray, unlabelled: int = 0
    ) -> None:
        self.images, self.rows = images, rows
        count, divisor = len(joined.labelled(images.source)), math.gcd(batch_size, unlabelled)
        group, place = np.divmod(rows, (batch_size + unlabelled) // divisor)

        def pool(order: Order, first: int, size: int, before: int) -> Pool:
            taken = size // divisor
            at = np.flatnonzero((before <= place) & (place < before + taken))
            return Pool(order, first, size, at, group[at] * taken + place[at] - before)

        self.pools = [pool(Order(count, seed), 0, batch_size, 0)]
        if unlabelled:
            others = Order(len(images) - count, seed, spawn_key=(1,))
            self.pools.append(pool(others, count, unlabelled, batch_size // divisor))

    def __call__(self, step: int) -> tuple[Raw, list[Bad]]:
        index, epoch = np.empty((2, len(self.rows)), np.int32)
        for pool in self.pools:
            record, epoch[pool.at] = pool.order(step * pool.size + pool.number)
            index[pool.at] = pool.first + record
        batch, bad = self.images.take(index, epoch)
        met = list(bad.values())
        for row in bad:
            met += self._replace(batch, index, row, epoch[row])
        valid = np.ones(len(index), np.float32)
        return cast(Raw, {**batch, "index": index, "epoch": epoch, "valid": valid}), met

    def _replace(
        self, batch: dict[str, np.ndarray], index: np.ndarray, row: int, epoch: int
    ) -> list[Bad]:
        """Fill a row with the next readable record; return the bad ones met on the way."""
        (pool,) = (pool for pool in self.pools if row in pool.at)
        length, first, met = pool.order.length, pool.first, []
        for ahead in range(1, length):
            candidate = first + (int(index[row]) - first + ahead) % length
            found, bad = self.images.take([candidate], [epoch])
            if not bad:
                for name, value in found.items():
                    batch[name][row] = value[0]
                index[row] = candidate
                return met
            met += bad.values()
        raise DataError(f"{self.images.name}: none of its {counted(length, 'image')} can be read")


class Rows:
    """step -> a batch of records in order, by (epoch, start, stop) of each part of a cache.

    Every part starts a batch. Its last batch is padded with zeros; unreadable images are black.
    """

    def __init__(self, images: Images, parts: Sequence[Part], batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size
        self.ranges = np.array([part[1:] for part in parts], int).reshape(-1, 3)
        lengths = self.ranges[:, 2] - self.ranges[:, 1]
        self.ends = np.cumsum(-(-lengths // batch_size))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __call__(self, step: int) -> tuple[Raw, list[Bad]]:
        part = int(np.searchsorted(self.ends, step, side="right"))
        epoch, start, stop = self.ranges[part]
        steps = -(-(stop - start) // self.batch_size)
        first = start + self.batch_size * (step - self.ends[part] + steps)
        index = np.arange(first, min(first + self.batch_size, stop), dtype=np.int32)
        epochs = np.full_like(index, epoch)
        batch, bad = self.images.take(index, epochs)
        padding = self.batch_size - len(index)
        padded = {
            name: np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
            for name, x in {**batch, "index": index, "epoch": epochs}.items()
        }
        return cast(Raw, padded), list(bad.values())


class Evaluation:
    """step -> this host's rows of a batch; the steps together show every record once, in order.

    `valid` is 0 for padding of the last batch and for bad records, which stay in place, black.
    """

    def __init__(self, images: Images, batch_size: int, rows: np.ndarray) -> None:
        self.images, self.batch_size, self.rows = images, batch_size, rows

    def __call__(self, step: int) -> tuple[Raw, list[Bad]]:
        index = step * self.batch_size + self.rows
        valid = (index < len(self.images)).astype(np.float32)
        index = np.where(valid, index, 0).astype(np.int32)
        epoch = np.zeros_like(index)
        batch, bad = self.images.take(index, epoch)
        met = [found for row, found in bad.items() if valid[row]]
        valid[list(bad)] = 0
        return cast(Raw, {**batch, "index": index, "epoch": epoch, "valid": valid}), met
