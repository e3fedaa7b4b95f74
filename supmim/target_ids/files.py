"""The cache of a run's target ids, which `supmim data tokens` writes.

A folder holds metadata.json, the tokenizer, and for each epoch files of equally many records, e.g.
epoch-00003-00000-of-00012.ids. A row is the record's ids of that epoch, each in as few bits as the
codebook needs, lowest bit first, and a CRC-32 (little-endian) of epoch, index and packed ids. The
CRC starts from the cache's seed, so rows of other caches are refused. Nothing here imports
jax, since reader processes use it. Shapes: n rows, N ids per image.
"""

import itertools
import json
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.errors import DataError, counted

METADATA = "metadata.json"
FILE_BYTES = 2**26
CRC_BYTES = 4
UNREADABLE = 0xFFFFFFFF  # inverts the checksum of a record whose image could not be read
MOST_OPEN = 256  # files; an epoch reads only its own


class Layout(NamedTuple):
    """The shape of a cache. rows_per_file: images per file.

    num_labelled: number of images with labels. They come first, in files of their own, and have
    their own number of epochs. 0: all.
    """

    num_images: int
    num_tokens: int
    codebook_size: int
    rows_per_file: int
    num_labelled: int = 0

    @property
    def bits(self) -> int:
        """Return the bits of an id."""
        return (self.codebook_size - 1).bit_length()

    @property
    def row_bytes(self) -> int:
        """Return the bytes of an image."""
        return -(-self.num_tokens * self.bits // 8) + CRC_BYTES

    @property
    def starts(self) -> list[int]:
        """Return the first image of each file of an epoch."""
        others = self.num_labelled or self.num_images
        labelled = range(0, others, self.rows_per_file)
        return [*labelled, *range(others, self.num_images, self.rows_per_file)]

    def parts(self, epoch: int) -> list["Part"]:
        """Return the files of an epoch."""
        starts = self.starts
        ranges = itertools.pairwise([*starts, self.num_images])
        return [
            Part(f"epoch-{epoch:05}-{number:05}-of-{len(starts):05}.ids", epoch, *both)
            for number, both in enumerate(ranges)
        ]

    def needed(self, epochs: int, unlabelled_epochs: int) -> Iterator["Part"]:
        """Yield files: `epochs` of images with labels, and `unlabelled_epochs` of the others."""
        others = self.num_labelled or self.num_images
        for epoch in range(max(epochs, unlabelled_epochs)):
            for part in self.parts(epoch):
                if epoch < (epochs if part.start < others else unlabelled_epochs):
                    yield part


class Part(NamedTuple):
    """One file: records start..stop-1 of an epoch."""

    name: str
    epoch: int
    start: int
    stop: int


def layout(num_images: int, num_tokens: int, codebook_size: int) -> Layout:
    """Return a layout with files of at most FILE_BYTES."""
    one = Layout(num_images, num_tokens, codebook_size, 1)
    return one._replace(rows_per_file=max(1, FILE_BYTES // one.row_bytes))


def pack(ids: np.ndarray, bits: int) -> np.ndarray:
    """Pack ids [n, N] into uint8 [n, ceil(N bits / 8)]."""
    each = (ids[..., None] >> np.arange(bits)) & 1
    flat = each.astype(np.uint8).reshape(len(ids), -1)
    return np.packbits(flat, axis=1, bitorder="little")


def unpack(packed: np.ndarray, bits: int, num_tokens: int) -> np.ndarray:
    """Return the ids that `pack` packed: int32 [n, N]."""
    first = np.arange(num_tokens) * bits
    padded = np.pad(packed, ((0, 0), (0, 2))).astype(np.uint32)
    at = first // 8
    word = padded[:, at] | padded[:, at + 1] << 8 | padded[:, at + 2] << 16  # holds the whole id
    return ((word >> (first % 8).astype(np.uint32)) & (2**bits - 1)).astype(np.int32)


def seed_of(identity: dict[str, Any]) -> int:
    """Return the seed of a cache's checksums. identity: JSON of what its ids depend on."""
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:CRC_BYTES], "little")


class Cache:
    """The target ids in a folder. Each process opens a file when it first reads from it.

    seed: see seed_of. again: the command that writes a file again, for messages.
    """

    def __init__(self, folder: Path, layout: Layout, seed: int, again: str) -> None:
        self.folder, self.layout, self.seed, self.again = str(folder), layout, seed, again
        self._open: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def missing(self, epochs: int, unlabelled_epochs: int = 0) -> list[Part]:
        """Return the files, of Layout.needed, that are missing or not of the right size."""
        parts = self.layout.needed(epochs, unlabelled_epochs)
        return [part for part in parts if _size_of(self.path(part)) != self.part_bytes(part)]

    def path(self, part: Part) -> str:
        return os.path.join(self.folder, part.name)

    def part_bytes(self, part: Part) -> int:
        """Return the size of a complete file."""
        return (part.stop - part.start) * self.layout.row_bytes

    def _checksum(self, packed: bytes, epoch: int, index: int) -> int:
        return zlib.crc32(packed, zlib.crc32(struct.pack("<II", epoch, index), self.seed))

    def rows(
        self, ids: np.ndarray, epoch: int, start: int, unreadable: Collection[int] = ()
    ) -> bytes:
        """Return the rows that store ids [n, N] of an epoch's records from `start` on.

        unreadable: indices of records without an image, whose ids must not be used.
        """
        packed = [row.tobytes() for row in pack(ids, self.layout.bits)]
        sums = [
            self._checksum(row, epoch, i) ^ (UNREADABLE if i in unreadable else 0)
            for i, row in enumerate(packed, start)
        ]
        return b"".join(row + struct.pack("<I", crc) for row, crc in zip(packed, sums, strict=True))

    def read(
        self, epoch: Sequence[int] | np.ndarray, index: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Return int32 [n, N]; DataError for a row that is not as it was written."""
        epochs, indices = np.asarray(epoch), np.asarray(index)
        packed = np.zeros((len(indices), self.layout.row_bytes - CRC_BYTES), np.uint8)
        numbers = np.searchsorted(self.layout.starts, indices, side="right") - 1
        for e, number in sorted(set(zip(epochs.tolist(), numbers.tolist(), strict=True))):
            rows = np.flatnonzero((epochs == e) & (numbers == number))
            packed[rows] = self._checked(e, number, indices[rows])
        return unpack(packed, self.layout.bits, self.layout.num_tokens)

    def _checked(self, epoch: int, number: int, index: np.ndarray) -> np.ndarray:
        """Return the packed ids of some rows of one file."""
        part = self.layout.parts(epoch)[number]
        stored = self._file(part)[index - part.start]
        for row, i in zip(stored, index.tolist(), strict=True):
            packed, crc = row[:-CRC_BYTES].tobytes(), row[-CRC_BYTES:].tobytes()
            expected = self._checksum(packed, epoch, i)
            if struct.pack("<I", expected) != crc:
                why = "has another checksum, as if it were of another cache"
                if struct.pack("<I", expected ^ UNREADABLE) == crc:
                    why = "has no ids: the image could not be read when they were computed"
                raise self._damaged(part, f"row {i - part.start} (image {i}) {why}")
        return stored[:, :-CRC_BYTES]

    def _file(self, part: Part) -> np.ndarray:
        if part.name not in self._open:
            if (found := _size_of(self.path(part))) != self.part_bytes(part):
                why = f"it has {max(found, 0):,} of {counted(self.part_bytes(part), 'byte')}"
                raise self._damaged(part, why)
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            shape = (part.stop - part.start, self.layout.row_bytes)
            self._open[part.name] = np.memmap(self.path(part), np.uint8, "r", shape=shape)
        return self._open[part.name]

    def _damaged(self, part: Part, why: str) -> DataError:
        path = self.path(part)
        return DataError(
            f"{path} is damaged: {why}. Delete it and write it again:\n  rm {path}\n  {self.again}"
        )


def _size_of(path: str) -> int:
    """Return the size in bytes, or -1 if there is no such file."""
    return os.path.getsize(path) if os.path.isfile(path) else -1
