"""`records:PATH`: a store of images in ArrayRecord shards, written by `supmim data convert`.

PATH has metadata.json and images-00000-of-000NN.array_record, or folders train and val (or
validation, test) that do. A record is a header of 15 bytes, the image's name, and the image. The
header is little-endian: label int32, bytes of the name uint16, height uint32, width uint32,
channels uint8. With 0 channels the image is an encoded file, or empty if it could not be read
during conversion; else it is uint8 [height, width, channels].
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from supmim.config import options
from supmim.data.images import Bad
from supmim.data.sources import base, folders
from supmim.data.sources.base import Record, Source
from supmim.errors import DataError, counted
from supmim.storage import copy_once
from supmim.storage.schemes import on_bucket
from supmim.workdir.files import read_json

FORMAT = 1
METADATA = "metadata.json"
CONVERSION = "conversion.json"  # stands in for metadata.json while the store is written
HEADER = struct.Struct("<iHIIB")
READER_OPTIONS = "readahead_buffer_size:0"  # records are read in random order
READER_BUFFER = 2**15  # bytes


class Shard(NamedTuple):
    """One file of a store; sha256: that of Digest."""

    file: str
    count: int
    bytes: int
    sha256: str


class Metadata(NamedTuple):
    """The contents of metadata.json.

    encoding: encoded or raw. size: short side after shrinking, in pixels. quality: of re-encoded
    JPEGs. Both are 0 if images were not changed. source: name and fingerprint of the converted
    source. bad: images that could not be read.
    """

    format: int
    class_names: tuple[str, ...]
    count: int
    encoding: str
    size: int
    quality: int
    source: dict[str, Any]
    bad: tuple[Bad, ...]
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the metadata as a JSON object."""
        shards = [shard._asdict() for shard in self.shards]
        return self._asdict() | {"shards": shards, "bad": [list(bad) for bad in self.bad]}


class Digest:
    """The SHA-256 of records in their order, each preceded by its length in 8 bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self._hash.update(struct.pack("<Q", len(data)))
        self._hash.update(data)

    def text(self) -> str:
        return self._hash.hexdigest()


def pack(record: Record) -> bytes:
    """Return the bytes that store a record, whose image must not be an error."""
    name, image = os.fsencode(record.name)[:65535], record.image
    assert not isinstance(image, OSError)
    shape = image.shape if isinstance(image, np.ndarray) else (0, 0, 0)
    return HEADER.pack(record.label, len(name), *shape) + name + bytes(image)


def unpack(data: bytes) -> Record:
    """Return the record that `pack` stored; its pixels are read-only."""
    label, length, height, width, channels = HEADER.unpack_from(data)
    start = HEADER.size + length
    name = os.fsdecode(data[HEADER.size : start])
    if not channels:
        return Record(data[start:], label, name)
    pixels = np.frombuffer(data, np.uint8, offset=start)
    return Record(pixels.reshape(height, width, channels), label, name)


class Records(Source):
    """The images of a store, whose shards are opened on first use.

    Several records are read one by one, which is four times as fast as ArrayRecord's bulk read.
    """

    def __init__(self, root: Path, metadata: Metadata) -> None:
        self.root, self.name, self.metadata = str(root), f"records:{root}", metadata
        self.class_names = metadata.class_names
        self.ends = np.cumsum([shard.count for shard in metadata.shards])
        self._readers: dict[int, ArrayRecordReader] = {}

    def __len__(self) -> int:
        return self.metadata.count

    def __getitem__(self, index: int) -> Record:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        position = int(index - self.ends[shard] + self.metadata.shards[shard].count)
        try:
            (data,) = self._reader(shard).read([position])
            return unpack(data)
        except (RuntimeError, struct.error, ValueError) as error:
            raise damaged(self._path(shard), error, position) from error

    def _path(self, shard: int) -> str:
        return os.path.join(self.root, self.metadata.shards[shard].file)

    def _reader(self, shard: int) -> ArrayRecordReader:
        if shard not in self._readers:
            reader = ArrayRecordReader(
                self._path(shard), options=READER_OPTIONS, file_reader_buffer_size=READER_BUFFER
            )
            if not reader.ok() or reader.num_records() != self.metadata.shards[shard].count:
                raise damaged(
                    self._path(shard), f"{counted(reader.num_records(), 'record')} can be found"
                )
            self._readers[shard] = reader
        return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}

    def fingerprint(self) -> dict[str, Any]:
        known = self.metadata.to_json()
        same = {name: known[name] for name in ("encoding", "size", "quality")}
        what = json.dumps([known["class_names"], known["source"]["fingerprint"], known["shards"]])
        digest = hashlib.sha256(what.encode()).hexdigest()
        return {"name": "records", "length": len(self), **same, "sha256": digest}

    def identities(self) -> np.ndarray:
        return base.numbered(self.metadata.source["fingerprint"], len(self))


def damaged(path: str, why: object, position: int | None = None) -> DataError:
    """Return the error for a shard, or for one of its records, that can't be read."""
    where = f"{path}, record {position}" if position is not None else path
    return DataError(
        f"{where}: damaged ({str(why)[:200]}). A record can't be left out, since the order of the "
        "others would change: restore a good copy of the shard, or convert (a TFDS dataset: "
        "prepare) the data again",
        fault="I5",
    )


def load(where: str, part: str, data: options.Data | None = None) -> Records:
    """Return one part of a store; DataError if a shard is missing or not complete."""
    root = base.expanded(copy_once.local(where, data.local_copy if data else ""))
    if not root.is_dir():
        raise DataError(f"records:{where}: there is no such folder")
    found = folders.parts(root)
    if part == base.HELD_OUT and found.held_out is None:
        raise base.NothingHeldOut(
            f"{root} has no store to evaluate on; set --config.data.eval=records:PATH"
        )
    opened = store(found.of(part))
    if on_bucket(where):
        opened.name = opened.name.replace(str(root), where.rstrip("/"))
    return opened


def store(root: Path) -> Records:
    """Return the store in a folder."""
    metadata = read_metadata(root)
    for shard in metadata.shards:
        path = root / shard.file
        if not path.is_file():
            raise damaged(str(path), "it is missing")
        if path.stat().st_size != shard.bytes:
            raise damaged(
                str(path), f"it has {path.stat().st_size:,} of {counted(shard.bytes, 'byte')}"
            )
    return Records(root, metadata)


def read_metadata(root: Path) -> Metadata:
    """Return metadata.json; DataError if it is missing, damaged, unfinished or too new."""
    path = root / METADATA
    if not path.is_file() and (root / CONVERSION).is_file():
        raise DataError(
            f"the conversion into {root} is not finished; the same `supmim data convert` command "
            "continues it"
        )
    if not path.is_file():
        raise DataError(
            f"{root} is not a store: it has no {METADATA}. To write one: supmim data convert"
        )
    try:
        document = read_json(path)
        if (version := document["format"]) == FORMAT:
            lists = {
                "class_names": tuple(document["class_names"]),
                "shards": tuple(Shard(**shard) for shard in document["shards"]),
                "bad": tuple(Bad(*bad) for bad in document["bad"]),
            }
            if sum(shard.count for shard in lists["shards"]) != document["count"]:
                raise ValueError("its number of images is not that of its shards")
            return Metadata(**document | lists)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error!r}); convert again") from error
    raise DataError(f"{path} has format {version}; this supmim reads {FORMAT}. Use a newer supmim")
