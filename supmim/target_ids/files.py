"""Target ids of a run, computed once and read back: `supmim data tokens` writes them.

A folder holds metadata.json, the tokenizer, and for each epoch files of so many records each,
epoch-00003-00000-of-00012.ids. A row is the record's ids of that epoch, each in as few bits as the
codebook needs, the lowest bit first, and a CRC-32 (little-endian) of epoch, index and packed ids.
It begins with the cache's seed: no row passes for one of another cache.
Imports no jax: reader processes read it. Shapes: n rows, N ids of an image.
"""

import json
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.errors import DataError

METADATA = "metadata.json"
FILE_BYTES = 2**26
CRC_BYTES = 4
VOID = 0xFFFFFFFF
MOST_OPEN = 256  # files; an epoch reads its own alone


class Layout(NamedTuple):
    """How many images there are, with so many ids each of so many codes; rows_per_file: images."""

    num_images: int
    num_tokens: int
    codebook_size: int
    rows_per_file: int

    @property
    def bits(self) -> int:
        """Of an id."""
        return (self.codebook_size - 1).bit_length()

    @property
    def row_bytes(self) -> int:
        """Of an image."""
        return -(-self.num_tokens * self.bits // 8) + CRC_BYTES

    def parts(self, epoch: int) -> Iterator["Part"]:
        """The files of an epoch."""
        starts = range(0, self.num_images, self.rows_per_file)
        for number, start in enumerate(starts):
            name = f"epoch-{epoch:05}-{number:05}-of-{len(starts):05}.ids"
            yield Part(name, epoch, start, min(start + self.rows_per_file, self.num_images))


class Part(NamedTuple):
    """One file: records start..stop-1 of an epoch."""

    name: str
    epoch: int
    start: int
    stop: int


def layout(num_images: int, num_tokens: int, codebook_size: int) -> Layout:
    """With files of FILE_BYTES at most."""
    one = Layout(num_images, num_tokens, codebook_size, 1)
    return one._replace(rows_per_file=max(1, FILE_BYTES // one.row_bytes))


# Rows.


def pack(ids: np.ndarray, bits: int) -> np.ndarray:
    """[n, N] -> uint8 [n, ceil(N bits / 8)]."""
    each = (ids[..., None] >> np.arange(bits)) & 1
    flat = each.astype(np.uint8).reshape(len(ids), -1)
    return np.packbits(flat, axis=1, bitorder="little")


def unpack(packed: np.ndarray, bits: int, num_tokens: int) -> np.ndarray:
    """What `pack` packed: int32 [n, N]. An id lies within three bytes."""
    first = np.arange(num_tokens) * bits
    padded = np.pad(packed, ((0, 0), (0, 2))).astype(np.uint32)
    at = first // 8
    word = padded[:, at] | padded[:, at + 1] << 8 | padded[:, at + 2] << 16
    return ((word >> (first % 8).astype(np.uint32)) & (2**bits - 1)).astype(np.int32)


def seed_of(identity: dict[str, Any]) -> int:
    """Where the checksums of a cache begin; identity: JSON of what its ids depend on."""
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:CRC_BYTES], "little")


# A folder of them.


class Cache:
    """The ids in a folder, at random. Files are opened when they are first read, by each process.

    seed: see seed_of. again: the command that makes a file anew, for messages.
    """

    def __init__(self, folder: Path, layout: Layout, seed: int, again: str) -> None:
        self.folder, self.layout, self.seed, self.again = str(folder), layout, seed, again
        self._open: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def missing(self, epochs: range) -> list[Part]:
        """Files of these epochs that are not there, or not of their size."""
        parts = (part for epoch in epochs for part in self.layout.parts(epoch))
        return [part for part in parts if size_of(self.path(part)) != self.bytes(part)]

    def path(self, part: Part) -> str:
        """Where a file is."""
        return os.path.join(self.folder, part.name)

    def bytes(self, part: Part) -> int:
        """What a whole file has."""
        return (part.stop - part.start) * self.layout.row_bytes

    def checksum(self, packed: bytes, epoch: int, index: int) -> int:
        """Of a row in its place."""
        return zlib.crc32(packed, zlib.crc32(struct.pack("<II", epoch, index), self.seed))

    def rows(self, ids: np.ndarray, epoch: int, start: int, void: Collection[int] = ()) -> bytes:
        """ids [n, N] of an epoch's records from `start` on, as they are stored.

        void: records without an image; their checksums are inverted, so that nobody takes their
        ids.
        """
        packed = [row.tobytes() for row in pack(ids, self.layout.bits)]
        sums = [
            self.checksum(row, epoch, i) ^ (VOID if i in void else 0)
            for i, row in enumerate(packed, start)
        ]
        return b"".join(row + struct.pack("<I", crc) for row, crc in zip(packed, sums, strict=True))

    def read(self, epoch: Sequence[int], index: Sequence[int]) -> np.ndarray:
        """int32 [n, N]; DataError for a row that is not what was written."""
        epoch, index = np.asarray(epoch), np.asarray(index)
        packed = np.zeros((len(index), self.layout.row_bytes - CRC_BYTES), np.uint8)
        number = index // self.layout.rows_per_file
        for e, file in sorted(set(zip(epoch.tolist(), number.tolist(), strict=True))):
            expected = np.flatnonzero((epoch == e) & (number == file))
            packed[expected] = self._checked(e, file, index[expected])
        return unpack(packed, self.layout.bits, self.layout.num_tokens)

    def _checked(self, epoch: int, number: int, index: np.ndarray) -> np.ndarray:
        """The packed ids of some rows of one file."""
        part = list(self.layout.parts(epoch))[number]
        stored = self._file(part)[index - part.start]
        for row, i in zip(stored, index.tolist(), strict=True):
            packed, crc = row[:-CRC_BYTES].tobytes(), row[-CRC_BYTES:].tobytes()
            if struct.pack("<I", self.checksum(packed, epoch, i)) != crc:
                row = f"row {i - part.start} (image {i})"
                if struct.pack("<I", self.checksum(packed, epoch, i) ^ VOID) == crc:
                    raise self.damaged(part, f"{row}: the image could not be read when it was made")
                raise self.damaged(part, f"{row} has another checksum, as if of another cache")
        return stored[:, :-CRC_BYTES]

    def _file(self, part: Part) -> np.ndarray:
        if part.name not in self._open:
            if (found := size_of(self.path(part))) != self.bytes(part):
                raise self.damaged(part, f"it has {max(found, 0):,} of {self.bytes(part):,} bytes")
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            shape = (part.stop - part.start, self.layout.row_bytes)
            self._open[part.name] = np.memmap(self.path(part), np.uint8, "r", shape=shape)
        return self._open[part.name]

    def damaged(self, part: Part, why: str) -> DataError:
        """What is said of a file, and how to mend it."""
        path = self.path(part)
        return DataError(
            f"{path}: damaged, {why}. Delete it and have it made again:\n  rm {path}\n  "
            f"{self.again}"
        )


def size_of(path: str) -> int:
    """In bytes; -1 if there is no such file."""
    return os.path.getsize(path) if os.path.isfile(path) else -1
