"""Any source written as ArrayRecord shards, once: smaller images decode faster ever after.

A shard is written beside its place, read back, compared with what was meant, and only then renamed;
conversion.json lists the shards that are done, so that a conversion that was killed goes on behind
the last of them.
"""

import concurrent.futures
import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from cykooz_resizer import ImageData, ResizeOptions

from supmim.data import crop, decode, progress
from supmim.data.images import Bad
from supmim.data.sources import base, records
from supmim.data.sources.base import Record, Source
from supmim.data.sources.records import CONVERSION, METADATA, Digest, Metadata, Shard
from supmim.errors import ConfigError, DataError
from supmim.workdir import files

WRITER_OPTIONS = "group_size:1,uncompressed"  # one record a chunk: random access; JPEG is dense
JPEG_SIDE = 65_500  # pixels, libjpeg's limit
SHARD_RECORDS = 10_000
SHARD_BYTES = 10**9
SAMPLE = 64  # images that tell how large a shard and the store will be
CHUNK = 32  # images that are read together
DISK_MARGIN = 1.1


class How(NamedTuple):
    """size: short side that larger images are shrunk to; 0: leave them. quality: of their JPEGs.
    raw: store pixels.
    """

    size: int
    quality: int
    raw: bool
    max_pixels: int


class Plan(NamedTuple):
    """What conversion.json holds: what is converted and how, and what is done of it."""

    same: dict[str, Any]  # must be equal to go on
    per_shard: int
    record_bytes: float  # of a record, about
    shards: tuple[Shard, ...] = ()
    bad: tuple[Bad, ...] = ()


def convert(
    parts: dict[str, Source], out: Path, how: How, log: Callable[[str], None]
) -> dict[str, list[Bad]]:
    """Writes a store for each part: name of its folder below `out`, "" for `out` itself -> source.

    Returns the images of each that could not be read, which are stored as empty. ConfigError if
    `out` holds anything else, or the same converted otherwise; DataError if the disk is too small,
    or gives back something else than was written.
    """
    check_ours(out, parts)
    plans = {name: plan_of(source, out / name, how) for name, source in parts.items()}
    check_disk(parts, plans, out)
    bad = {}
    for name, source in parts.items():
        done = write(source, plans[name], out / name, how, log)
        bad[name] = list(done.bad)
    return bad


def check_ours(out: Path, parts: Collection[str]) -> None:
    """ConfigError for folders that hold what no conversion of these parts has put there."""
    strange = [entry for entry in os.listdir(out) if entry not in {"lock", *parts}]
    if "" in parts:
        strange = [entry for entry in strange if not is_ours(out, entry)]
    for name in filter(None, parts):
        if (folder := out / name).is_dir():
            strange += [f"{name}/{e}" for e in os.listdir(folder) if not is_ours(folder, e)]
    if strange:
        raise ConfigError(
            f"{out} holds {base.printable(min(strange))}, which is no part of this conversion; "
            "choose an empty --out"
        )


def is_ours(folder: Path, entry: str) -> bool:
    """Whether a conversion put that there."""
    begun = any((folder / file).is_file() for file in (METADATA, CONVERSION))
    return begun and entry.startswith((METADATA, CONVERSION, "images-"))


# The plan.


def plan_of(source: Source, root: Path, how: How) -> Plan:
    """What is left to do, from the folder; a new plan if nothing was begun there."""
    same = json.loads(json.dumps(identity(source, how)))
    for file in (METADATA, CONVERSION):
        if (root / file).is_file():
            return resumed(same, read_plan(root / file), root)
    index = base.evenly(len(source), SAMPLE).tolist()
    made_of = stored_chunk(source, how, index)
    record_bytes = float(np.mean([len(records.pack(record)) for record, _ in made_of]))
    return Plan(same, max(1, min(SHARD_RECORDS, int(SHARD_BYTES / record_bytes))), record_bytes)


def read_plan(path: Path) -> dict[str, Any]:
    """What a conversion noted down; ConfigError for a file that is damaged or not one of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {"shards", "bad"} <= found.keys() and {"same", "format"} & found.keys():
            return found
        why = "it is no file of supmim data convert"
    except (ValueError, AttributeError) as error:
        why = str(error)
    raise ConfigError(f"{path}: {why}; delete {path.parent} or choose another --out")


def identity(source: Source, how: How) -> dict[str, Any]:
    """What decides the bytes of a store."""
    pixels = how.raw or isinstance(source[0].image, np.ndarray)
    return {
        "format": records.FORMAT, "class_names": source.class_names, "count": len(source),
        "encoding": "raw" if pixels else "encoded", "size": how.size,
        "quality": how.quality if how.size and not how.raw else 0,
        "source": {"name": source.name, "fingerprint": source.fingerprint()},
    }  # fmt: skip


def resumed(same: dict[str, Any], found: dict[str, Any], root: Path) -> Plan:
    """The plan that lies in a folder, of this or of a finished conversion."""
    finished = "same" not in found
    before = found if finished else found["same"]
    if different := [name for name in same if same[name] != before.get(name)]:
        raise ConfigError(
            f"{root} holds another conversion: {', '.join(different)} differ; delete it or choose "
            "another --out"
        )
    shards = tuple(Shard(**shard) for shard in found["shards"])
    bad = tuple(Bad(*bad) for bad in found["bad"])
    if finished:
        return Plan(same, shards[0].count, 0.0, shards, bad)
    return Plan(same, found["per_shard"], found["record_bytes"], shards, bad)


def check_disk(parts: dict[str, Source], plans: dict[str, Plan], out: Path) -> None:
    """DataError if what is left to write does not fit."""
    needed = 0.0
    for name, source in parts.items():
        left = len(source) - sum(shard.count for shard in plans[name].shards)
        needed += DISK_MARGIN * left * plans[name].record_bytes
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"{out} has {free / 1e9:.1f} GB free, the store takes about {needed / 1e9:.1f} GB: "
            "free some, choose another --out, or shrink the images: --size=256"
        )


# Writing.


def write(source: Source, plan: Plan, root: Path, how: How, log: Callable[[str], None]) -> Plan:
    """The shards that are missing, and at last metadata.json, which makes the store whole."""
    if (root / METADATA).is_file():
        log(f"{records.store(root).name} is converted already")
        (root / CONVERSION).unlink(missing_ok=True)
        return plan
    root.mkdir(parents=True, exist_ok=True)
    files.write_json(root / CONVERSION, plan_json(plan))
    starts = range(0, len(source), plan.per_shard)
    done = sum(shard.count for shard in plan.shards)
    threads = len(os.sched_getaffinity(0))
    with (
        progress.bar(root.name, len(source), done) as advance,
        concurrent.futures.ThreadPoolExecutor(threads) as executor,
    ):
        for number in range(len(plan.shards), len(starts)):
            index = range(starts[number], min(starts[number] + plan.per_shard, len(source)))
            path = root / f"images-{number:05}-of-{len(starts):05}.array_record"
            bad: list[Bad] = []
            packed = packed_records(source, index, how, executor, bad)
            shard = write_shard(path, packed, advance)
            plan = plan._replace(shards=(*plan.shards, shard), bad=(*plan.bad, *bad))
            files.write_json(root / CONVERSION, plan_json(plan))
            size = f"{shard.count:,} images, {shard.bytes / 1e6:,.0f} MB"
            log(f"{root.name}/{shard.file}  {size}, verified")
    metadata = Metadata(**plan.same, bad=plan.bad, shards=plan.shards)
    files.write_json(root / METADATA, metadata.to_json())
    (root / CONVERSION).unlink()
    return plan


def plan_json(plan: Plan) -> dict[str, Any]:
    """As conversion.json holds it."""
    shards = [shard._asdict() for shard in plan.shards]
    return plan._asdict() | {"shards": shards, "bad": [list(bad) for bad in plan.bad]}


def packed_records(
    source: Source,
    index: Sequence[int],
    how: How,
    executor: concurrent.futures.Executor,
    bad: list[Bad],
) -> Iterator[bytes]:
    """The records in order, made by threads, a few chunks ahead; what is bad is listed."""
    chunks = [index[i : i + CHUNK] for i in range(0, len(index), CHUNK)]
    make = functools.partial(stored_chunk, source, how)
    ahead = 2 * len(os.sched_getaffinity(0))
    for first in range(0, len(chunks), ahead):
        for chunk, made in zip(
            chunks[first : first + ahead], executor.map(make, chunks[first : first + ahead]),
            strict=True,
        ):  # fmt: skip
            for i, (record, why) in zip(chunk, made, strict=True):
                if why:
                    bad.append(Bad(i, record.name, why))
                yield records.pack(record)


def write_shard(path: Path, packed: Iterator[bytes], advance: Callable[[int], None]) -> Shard:
    """Writes, reads back, compares, renames."""
    part = path.with_name(path.name + ".part")
    writer = ArrayRecordWriter(str(part), WRITER_OPTIONS)
    meant, count = Digest(), 0
    for data in packed:
        writer.write(data)
        meant.add(data)
        count += 1
        advance(1)
    writer.close()
    if read_back(part, count) != meant.text():
        raise DataError(
            f"{part} reads back differently from what was written: check the disk; the same "
            "command goes on from here"
        )
    os.replace(part, path)
    return Shard(path.name, count, path.stat().st_size, meant.text())


def read_back(path: Path, count: int) -> str:
    """Digest of a shard's records; "" if there are not as many as that."""
    reader, found = ArrayRecordReader(str(path)), Digest()
    if reader.num_records() != count:
        return ""
    for position in range(count):
        found.add(*reader.read([position]))
    return found.text()


# One image.


def stored_chunk(source: Source, how: How, index: Sequence[int]) -> list[tuple[Record, str]]:
    """What is stored of some records, and why not."""
    return [stored(record, how) for record in source.__getitems__(list(index))]


def stored(record: Record, how: How) -> tuple[Record, str]:
    """What is stored of a record; nothing for its image, and why, if that can't be read."""
    try:
        return record._replace(image=made(record.image, how)), ""
    except decode.BadImage as error:
        return record._replace(image=b""), str(error)


def made(image: bytes | np.ndarray | OSError, how: How) -> bytes | np.ndarray:
    """An image as it is stored: left alone, unless it is to be smaller or raw."""
    if isinstance(image, OSError):
        raise decode.BadImage(image.strerror)
    if not how.size and not how.raw:
        return image
    pixels = image if isinstance(image, np.ndarray) else decoded(image, how.max_pixels)
    smaller = shrunk(pixels, how.size)
    if how.raw:
        return smaller
    if smaller is pixels:
        return image  # coding it again would only cost quality
    return jpeg(smaller, how.quality)


def decoded(data: bytes, max_pixels: int) -> np.ndarray:
    """uint8 [H, W, 1 or 3], upright, exact; one channel for what is grey."""
    header = decode.read_header(data, max_pixels)
    return decode.decode(data, header, 1 if decode.is_grey(data) else 3)


def shrunk(pixels: np.ndarray, size: int) -> np.ndarray:
    """With `size` as short side, bicubic, antialiased; as they are if that would enlarge them."""
    height, width, channels = pixels.shape
    short = min(height, width)
    if not size or short <= size:
        return pixels
    new = [size if side == short else int(side * size / short) for side in (width, height)]
    kind = crop.PIXEL_TYPES[channels]
    target = ImageData(*new, kind)
    algorithm, _ = crop.FILTERS["bicubic"]
    whole = ImageData(width, height, kind, pixels.tobytes())
    crop.RESIZER.resize(whole, target, ResizeOptions(algorithm))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(new[1], new[0], channels)


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Baseline, grey or with chroma at half the resolution; BadImage if a side is too long."""
    if max(pixels.shape) > JPEG_SIDE:
        raise decode.BadImage(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels: a JPEG's side has at most {JPEG_SIDE}"
        )
    grey = pixels.shape[-1] == 1
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels),
        quality=quality,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "420",
    )
