"""Conversion of a source to ArrayRecord shards, with smaller images that decode faster.

A shard is written to a temporary file, read back, compared with what was written and then renamed.
conversion.json lists the finished shards, so that an interrupted conversion continues after them.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from cykooz_resizer import ImageData, ResizeOptions

from supmim.data import crop, decode
from supmim.data.images import Bad
from supmim.data.sources import base, records
from supmim.data.sources.base import Record, Source
from supmim.data.sources.records import CONVERSION, METADATA, Digest, Metadata, Shard
from supmim.errors import ConfigError, DataError, counted
from supmim.runtime.progress import doing
from supmim.workdir import files
from supmim.workdir.files import read_json

WRITER_OPTIONS = "group_size:1,uncompressed"  # chunks of one record: random access; JPEG is dense
JPEG_SIDE = 65_500  # pixels, libjpeg's limit
SHARD_RECORDS = 10_000
SHARD_BYTES = 10**9
SAMPLE = 64  # images from which the sizes of the shards and the store are estimated
CHUNK = 32  # images that are read together
DISK_MARGIN = 1.1


class How(NamedTuple):
    """The form in which images are stored.

    size: short side in pixels to which larger images are shrunk; 0 leaves them alone. quality: of
    the JPEGs of shrunk images. raw: store pixels.
    """

    size: int
    quality: int
    raw: bool
    max_pixels: int


class Plan(NamedTuple):
    """The contents of conversion.json: what is converted, how, and the finished shards."""

    same: dict[str, Any]  # must be equal to continue
    per_shard: int
    record_bytes: float  # average, estimated
    shards: tuple[Shard, ...] = ()
    bad: tuple[Bad, ...] = ()

    def to_json(self) -> dict[str, Any]:
        shards = [shard._asdict() for shard in self.shards]
        return self._asdict() | {"shards": shards, "bad": [list(bad) for bad in self.bad]}


def convert(
    parts: dict[str, Source], out: Path, how: How, log: Callable[[str], None]
) -> dict[str, list[Bad]]:
    """Write a store for each part: name of its folder below `out` ("" for `out` itself) -> source.

    Return the images of each part that could not be read; they are stored as empty. ConfigError if
    `out` holds other files or another conversion; DataError if the disk is too small or does not
    read back what was written.
    """
    check_no_other_files(out, parts)
    plans = {name: plan_of(source, out / name, how) for name, source in parts.items()}
    check_store_fits(parts, plans, out)
    return {
        name: list(write_store(source, plans[name], out / name, how, log).bad)
        for name, source in parts.items()
    }


def check_no_other_files(out: Path, parts: Collection[str]) -> None:
    """Raise ConfigError if the folders hold files that no conversion of these parts wrote."""
    others = [entry for entry in os.listdir(out) if entry not in {"lock", *parts}]
    if "" in parts:
        others = [entry for entry in others if not belongs_to_store(out, entry)]
    for name in filter(None, parts):
        if (folder := out / name).is_dir():
            others += [f"{name}/{e}" for e in os.listdir(folder) if not belongs_to_store(folder, e)]
    if others:
        raise ConfigError(
            f"{out} holds {base.printable(min(others))}, which is not part of this conversion; "
            "choose an empty --out"
        )


def belongs_to_store(folder: Path, entry: str) -> bool:
    begun = any((folder / file).is_file() for file in (METADATA, CONVERSION))
    return begun and entry.startswith((METADATA, CONVERSION, "images-"))


def plan_of(source: Source, root: Path, how: How) -> Plan:
    """Return the plan to continue in a folder, or a new one if the folder holds none."""
    same = json.loads(json.dumps(store_identity(source, how)))
    for file in (METADATA, CONVERSION):
        if (root / file).is_file():
            return resumed_plan(same, read_plan(root / file), root)
    sample = converted_records(source, how, base.evenly(len(source), SAMPLE).tolist())
    record_bytes = float(np.mean([len(records.pack(record)) for record, _ in sample]))
    return Plan(same, max(1, min(SHARD_RECORDS, int(SHARD_BYTES / record_bytes))), record_bytes)


def read_plan(path: Path) -> dict[str, Any]:
    """Read metadata.json or conversion.json; ConfigError if it is damaged or another file."""
    try:
        found = read_json(path)
        if {"shards", "bad"} <= found.keys() and {"same", "format"} & found.keys():
            return found
        why = "it was not written by supmim data convert"
    except (ValueError, AttributeError) as error:
        why = str(error)
    raise ConfigError(f"{path}: {why}; delete {path.parent} or choose another --out")


def store_identity(source: Source, how: How) -> dict[str, Any]:
    """Return everything that determines the bytes of a store."""
    pixels = how.raw or isinstance(source[0].image, np.ndarray)
    return {
        "format": records.FORMAT,
        "class_names": source.class_names,
        "count": len(source),
        "encoding": "raw" if pixels else "encoded",
        "size": how.size,
        "quality": how.quality if how.size and not how.raw else 0,
        "source": {"name": source.name, "fingerprint": source.fingerprint()},
    }


def resumed_plan(same: dict[str, Any], found: dict[str, Any], root: Path) -> Plan:
    """Return the plan of an unfinished or finished conversion; ConfigError if it is another one."""
    finished = "same" not in found
    previous = found if finished else found["same"]
    if different := [name for name in same if same[name] != previous.get(name)]:
        raise ConfigError(
            f"{root} holds another conversion: {', '.join(different)} differ; delete the folder or "
            "choose another --out"
        )
    shards = tuple(Shard(**shard) for shard in found["shards"])
    bad = tuple(Bad(*bad) for bad in found["bad"])
    if finished:
        return Plan(same, shards[0].count, 0.0, shards, bad)
    return Plan(same, found["per_shard"], found["record_bytes"], shards, bad)


def check_store_fits(parts: dict[str, Source], plans: dict[str, Plan], out: Path) -> None:
    """Raise DataError if the disk is too small for the remaining shards."""
    needed = 0.0
    for name, source in parts.items():
        left = len(source) - sum(shard.count for shard in plans[name].shards)
        needed += DISK_MARGIN * left * plans[name].record_bytes
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"{out} has {free / 1e9:.1f} GB free, but the store needs about {needed / 1e9:.1f} GB; "
            "free some space, choose another --out, or shrink the images with --size=256"
        )


def write_store(
    source: Source, plan: Plan, root: Path, how: How, log: Callable[[str], None]
) -> Plan:
    """Write the missing shards, then metadata.json, which completes the store."""
    if (root / METADATA).is_file():
        log(f"{records.store(root).name} is converted already")
        (root / CONVERSION).unlink(missing_ok=True)
        return plan
    root.mkdir(parents=True, exist_ok=True)
    files.write_json(root / CONVERSION, plan.to_json())
    starts = range(0, len(source), plan.per_shard)
    done = sum(shard.count for shard in plan.shards)
    with (
        doing(root.name, len(source), done) as advance,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor,
    ):
        for number in range(len(plan.shards), len(starts)):
            index = range(starts[number], min(starts[number] + plan.per_shard, len(source)))
            path = root / f"images-{number:05}-of-{len(starts):05}.array_record"
            bad: list[Bad] = []
            packed = packed_records(source, index, how, executor, bad)
            shard = write_shard(path, packed, advance)
            plan = plan._replace(shards=(*plan.shards, shard), bad=(*plan.bad, *bad))
            files.write_json(root / CONVERSION, plan.to_json())
            size = f"{counted(shard.count, 'image')}, {shard.bytes / 1e6:,.0f} MB"
            log(f"{root.name}/{shard.file}  {size}, verified")
    metadata = Metadata(**plan.same, bad=plan.bad, shards=plan.shards)
    files.write_json(root / METADATA, metadata.to_json())
    (root / CONVERSION).unlink()
    return plan


def packed_records(
    source: Source, index: Sequence[int], how: How, executor: Executor, bad: list[Bad]
) -> Iterator[bytes]:
    """Yield the records in order, converted by threads a few chunks ahead; append to `bad`."""
    chunks = [index[i : i + CHUNK] for i in range(0, len(index), CHUNK)]
    convert_chunk = functools.partial(converted_records, source, how)
    ahead = 2 * len(os.sched_getaffinity(0))
    for first in range(0, len(chunks), ahead):
        group = chunks[first : first + ahead]
        for chunk, converted in zip(group, executor.map(convert_chunk, group), strict=True):
            for i, (record, why) in zip(chunk, converted, strict=True):
                if why:
                    bad.append(Bad(i, record.name, why))
                yield records.pack(record)


def write_shard(path: Path, packed: Iterator[bytes], advance: Callable[[int], None]) -> Shard:
    """Write a shard to a temporary file, read it back, compare and rename it."""
    part = path.with_name(path.name + ".part")
    writer = ArrayRecordWriter(str(part), WRITER_OPTIONS)
    expected, count = Digest(), 0
    for data in packed:
        writer.write(data)
        expected.add(data)
        count += 1
        advance(1)
    writer.close()
    if read_back(part, count) != expected.text():
        raise DataError(
            f"{part} reads back differently from what was written; check the disk and repeat the "
            "command, which continues from here"
        )
    os.replace(part, path)
    return Shard(path.name, count, path.stat().st_size, expected.text())


def read_back(path: Path, count: int) -> str:
    """Return the digest of a shard's records, or "" if there are not `count` of them."""
    reader, found = ArrayRecordReader(str(path)), Digest()
    if reader.num_records() != count:
        return ""
    for position in range(count):
        found.add(*reader.read([position]))
    return found.text()


def converted_records(source: Source, how: How, index: Sequence[int]) -> list[tuple[Record, str]]:
    """Return records as they are stored, each with the reason if its image can't be read, or ""."""
    found = []
    for record in source.__getitems__(list(index)):
        try:
            found.append((record._replace(image=encoded(record.image, how)), ""))
        except decode.BadImage as error:
            found.append((record._replace(image=b""), str(error)))
    return found


def encoded(image: bytes | np.ndarray | OSError, how: How) -> bytes | np.ndarray:
    """Return an image as it is stored: unchanged, unless it is to be smaller or raw."""
    if isinstance(image, OSError):
        raise decode.BadImage(image.strerror)
    if not how.size and not how.raw:
        return image
    if isinstance(image, np.ndarray):
        pixels = image
    else:
        header = decode.read_header(image, how.max_pixels)
        pixels = decode.decode(image, header, 1 if decode.is_grey(image) else 3)
    smaller = shrunk(pixels, how.size)
    if how.raw:
        return smaller
    if smaller is pixels:
        return image  # encoding it again would only cost quality
    return jpeg(smaller, how.quality)


def shrunk(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize the short side to `size` (bicubic, antialiased), unless that would enlarge pixels."""
    height, width, channels = pixels.shape
    short = min(height, width)
    if not size or short <= size:
        return pixels
    new = [size if side == short else int(side * size / short) for side in (width, height)]
    kind = crop.PIXEL_TYPES[channels]
    target = ImageData(new[0], new[1], kind)
    algorithm, _ = crop.FILTERS["bicubic"]
    whole = ImageData(width, height, kind, pixels.tobytes())
    crop.RESIZER.resize(whole, target, ResizeOptions(algorithm))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(new[1], new[0], channels)


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encode a baseline JPEG, with chroma at half resolution; BadImage if a side is too long."""
    if max(pixels.shape) > JPEG_SIDE:
        raise decode.BadImage(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels: sides of a JPEG are at most {JPEG_SIDE}"
        )
    grey = pixels.shape[-1] == 1
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels),
        quality=quality,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "420",
    )
