"""The contents of a source, with every image decoded, and the speed of reading it."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np

from supmim.config import options
from supmim.data import decode, images, masks
from supmim.data.images import Bad
from supmim.data.sources import folders, pairs
from supmim.data.sources.base import MaskedRecord, Record, Source, check_label, evenly
from supmim.errors import DataError
from supmim.runtime.progress import doing

CHUNK = 32
TIMED = 256  # images that are timed on one core
RAW_MODES = {1: "L", 3: "RGB"}


class Facts(NamedTuple):
    """Facts about one image; why: the reason if it can't be decoded."""

    label: int
    bytes: int
    format: str = ""
    mode: str = ""
    height: int = 0
    width: int = 0
    why: str = ""
    name: str = ""


def facts(record: Record, max_pixels: int) -> Facts:
    """Decode a whole image and return its facts."""
    if isinstance(record.image, np.ndarray):
        height, width, channels = record.image.shape
        mode = RAW_MODES[channels]
        return Facts(record.label, record.image.nbytes, "raw", mode, height, width)
    if isinstance(record.image, OSError):
        return Facts(record.label, 0, why=record.image.strerror or "", name=record.name)
    try:
        header = decode.read_header(record.image, max_pixels)
        kind = decode.kind(record.image)
        decode.decode(record.image, header, 3)
    except decode.BadImage as error:
        return Facts(record.label, len(record.image), why=str(error), name=record.name)
    return Facts(record.label, len(record.image), *kind, header.height, header.width)


def all_facts(source: Source, max_pixels: int) -> list[Facts]:
    """Return the facts of every record, in order, with one thread per processor."""
    chunks = [range(i, min(i + CHUNK, len(source))) for i in range(0, len(source), CHUNK)]

    def read(chunk: Sequence[int]) -> list[Facts]:
        return [facts(record, max_pixels) for record in source.__getitems__(list(chunk))]

    found = []
    with (
        doing("decoding", len(source)) as advance,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor,
    ):
        for some in executor.map(read, chunks):
            found += some
            advance(len(some))
    return found


def source_summary(source: Source, max_pixels: int) -> dict[str, Any]:
    """Return statistics of a source, ready for JSON."""
    found = all_facts(source, max_pixels)
    readable = [image for image in found if not image.why]
    bad = [Bad(index, image.name, image.why) for index, image in enumerate(found) if image.why]
    folder = source if isinstance(source, folders.Folder) else None
    return {
        "name": source.name,
        "images": len(found),
        "bytes": sum(image.bytes for image in found),
        "classes": len(source.class_names),
        "class_names": list(source.class_names),
        **class_counts(source, found),
        "empty_folders": list(folder.empty) if folder else [],
        "loops": folder.skipped.loops if folder else [],
        "left_out": left_out(source),
        "formats": dict(Counter(image.format for image in readable).most_common()),
        "modes": dict(Counter(image.mode for image in readable).most_common()),
        "height": min_median_max([image.height for image in readable]),
        "width": min_median_max([image.width for image in readable]),
        "short_side": min_median_max([min(image.height, image.width) for image in readable]),
        "unreadable": [one._asdict() for one in bad],
        "wrong_labels": wrong_labels(source, found),
    }


def left_out(source: Source) -> dict[str, int]:
    """Return how many files of each ending a folder holds besides images; {} for other sources."""
    held = isinstance(source, folders.Folder | pairs.FolderPairs)
    return dict(source.skipped.endings.most_common()) if held else {}


def class_counts(source: Source, found: Sequence[Facts]) -> dict[str, Any]:
    """Return the largest and the smallest class with their counts, and the classes without any."""
    counts = Counter(image.label for image in found)
    names = list(enumerate(source.class_names))
    full = [(name, counts[number]) for number, name in names if counts[number]]
    return {
        "largest": max(full, key=lambda item: item[1], default=None),
        "smallest": min(full, key=lambda item: item[1], default=None),
        "without_images": [name for number, name in names if not counts[number]],
    }


def wrong_labels(source: Source, found: Sequence[Facts]) -> list[str]:
    """Return a message for each label that names no class."""
    messages = []
    for index, image in enumerate(found):
        try:
            check_label(Record(b"", image.label, f"record {index}"), len(source.class_names))
        except DataError as error:
            messages.append(str(error))
    return messages


def min_median_max(values: Sequence[int]) -> list[int]:
    return [min(values), int(np.median(values)), max(values)] if values else []


def images_per_second(source: Source, data: options.Data) -> float:
    """Return the speed of decoding and random crops on one core, for a sample of the source."""
    index = evenly(len(source), TIMED)
    crops = images.training(source, data)
    begin = time.perf_counter()
    for some in np.array_split(index, -(-len(index) // CHUNK)):
        crops.take(some, np.zeros_like(some))
    return len(index) / (time.perf_counter() - begin)


def pairs_summary(
    source: Source, data: options.Data, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Return statistics of images with masks, with lists of pairs that are unreadable or don't fit.

    If the classes are unknown, no id is wrong.
    """
    class_ids = masks.ids_of(len(source.class_names), data.ignore_label)
    known = {*class_ids, data.ignore_label} if class_ids else set(range(decode.MOST_IDS + 1))
    ids: set[int] = set()
    unreadable, wrong_sizes, wrong, ignored = [], [], [], []
    for index in range(len(source)):
        pair = cast(MaskedRecord, source[index])
        try:
            (height, width, _), mask = image_shape_and_mask(pair, data.max_pixels)
        except decode.BadImage as error:
            unreadable.append(f"{pair.name}: {error}")
            advance(1)
            continue
        if mask.shape != (height, width):
            wrong_sizes.append(
                f"{pair.name}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, but the "
                f"image has {width} x {height}"
            )
        else:
            found = set(np.unique(mask).tolist())
            ids |= found
            if found - known:
                wrong.append(f"{pair.name}: {ranges(found - known)}")
            if found == {data.ignore_label}:
                ignored.append(pair.name)
        advance(1)
    names = zip(class_ids, source.class_names, strict=True)
    return {
        "pairs": len(source),
        "classes": len(class_ids),
        "ids": sorted(ids),
        "left_out": left_out(source),
        "without_pixels": [name for i, name in names if i not in ids],
        "all_ignored": ignored,
        "unreadable": unreadable,
        "wrong_sizes": wrong_sizes,
        "wrong_ids": wrong,
    }


def ranges(ids: Iterable[int]) -> str:
    """Return ids as text such as "0 to 5, 7, 255"."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def image_shape_and_mask(pair: MaskedRecord, max_pixels: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape [H, W, C] of an image and its mask [H, W]; BadImage if one is damaged."""
    if isinstance(pair.image, OSError):
        raise decode.BadImage(pair.image.strerror)
    data = cast(bytes, pair.image)
    header = decode.read_header(data, max_pixels)
    pixels = decode.decode(data, header, 3)
    return pixels.shape, masks.read_ids(pair, max_pixels)
