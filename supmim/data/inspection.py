"""What a source holds, every image of it decoded, and how fast it can be read."""

import collections
import concurrent.futures
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.config import options
from supmim.data import decode, images, masks, progress
from supmim.data.images import Bad
from supmim.data.sources import folders
from supmim.data.sources.base import MaskedRecord, Record, Source, check_label, evenly
from supmim.errors import DataError

CHUNK = 32
TIMED = 256  # images that are timed on one core
RAW_MODES = {1: "L", 3: "RGB"}


class Facts(NamedTuple):
    """What one image is; why: the reason if it can't be decoded."""

    label: int
    bytes: int
    format: str = ""
    mode: str = ""
    height: int = 0
    width: int = 0
    why: str = ""
    name: str = ""


def facts(record: Record, max_pixels: int) -> Facts:
    """Decodes an image whole."""
    if isinstance(record.image, np.ndarray):
        height, width, channels = record.image.shape
        return Facts(
            record.label, record.image.nbytes, "raw", RAW_MODES[channels], height, width,
        )  # fmt: skip
    if isinstance(record.image, OSError):
        return Facts(record.label, 0, why=record.image.strerror, name=record.name)
    try:
        header = decode.read_header(record.image, max_pixels)
        kind = decode.kind(record.image)
        decode.decode(record.image, header, 3)
    except decode.BadImage as error:
        return Facts(record.label, len(record.image), why=str(error), name=record.name)
    return Facts(record.label, len(record.image), *kind, header.height, header.width)


def all_facts(source: Source, max_pixels: int) -> list[Facts]:
    """Of every record, in order, by as many threads as there are processors."""
    chunks = [range(i, min(i + CHUNK, len(source))) for i in range(0, len(source), CHUNK)]

    def read(chunk: Sequence[int]) -> list[Facts]:
        return [facts(record, max_pixels) for record in source.__getitems__(list(chunk))]

    found = []
    with (
        progress.bar("decoding", len(source)) as advance,
        concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor,
    ):
        for some in executor.map(read, chunks):
            found += some
            advance(len(some))
    return found


def summary(source: Source, max_pixels: int) -> dict[str, Any]:
    """Counts of a part, as JSON holds them."""
    found = all_facts(source, max_pixels)
    whole = [image for image in found if not image.why]
    unreadable = [
        Bad(index, image.name, image.why)._asdict()
        for index, image in enumerate(found)
        if image.why
    ]
    empty, loops = set_aside(source)
    return {
        "name": source.name, "images": len(found), "bytes": sum(image.bytes for image in found),
        "classes": len(source.class_names), **classes(source, found), "empty_folders": empty,
        "loops": loops, "formats": counted(image.format for image in whole),
        "modes": counted(image.mode for image in whole),
        "height": spread([image.height for image in whole]),
        "width": spread([image.width for image in whole]),
        "short_side": spread([min(image.height, image.width) for image in whole]),
        "unreadable": unreadable, "wrong_labels": wrong_labels(source, found),
    }  # fmt: skip


def classes(source: Source, found: Sequence[Facts]) -> dict[str, Any]:
    """The largest and the smallest class with their counts, and the names of those without any."""
    counts = collections.Counter(image.label for image in found)
    names = list(enumerate(source.class_names))
    full = [(name, counts[number]) for number, name in names if counts[number]]
    return {
        "largest": max(full, key=lambda item: item[1], default=None),
        "smallest": min(full, key=lambda item: item[1], default=None),
        "without_images": [name for number, name in names if not counts[number]],
    }


def set_aside(source: Source) -> tuple[list[str], list[str]]:
    """Of a folder: classes without images, and links that lead back up."""
    if not isinstance(source, folders.Folder):
        return [], []
    listing = folders.listing(Path(source.root))
    return list(listing.empty), list(listing.loops)


def wrong_labels(source: Source, found: Sequence[Facts]) -> list[str]:
    """Lines for the labels that name no class."""

    def told() -> Iterator[str]:
        for index, image in enumerate(found):
            try:
                check_label(Record(b"", image.label, f"record {index}"), len(source.class_names))
            except DataError as error:
                yield str(error)

    return list(told())


def counted(values: Iterator[str]) -> dict[str, int]:
    """Each with its count, the most frequent first."""
    return dict(collections.Counter(values).most_common())


def spread(values: Sequence[int]) -> list[int]:
    """Least, median and largest; nothing of nothing."""
    return [min(values), int(np.median(values)), max(values)] if values else []


def images_per_second(source: Source, data: options.Data) -> float:
    """Decoded and cropped at random on one core, of some from all over the source."""
    index = evenly(len(source), TIMED)
    seen = images.training(source, data)
    begin = time.perf_counter()
    for some in np.array_split(index, -(-len(index) // CHUNK)):
        seen.take(some, np.zeros_like(some))
    return len(index) / (time.perf_counter() - begin)


def pairs_summary(
    found: Source, data: options.Data, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Counts of images with masks; what can't be decoded or does not fit is listed.

    Where nothing says which classes there are, no id is wrong.
    """
    of_classes = masks.ids_of(len(found.class_names), data.ignore_label)
    known = {*of_classes, data.ignore_label} if of_classes else set(range(decode.MOST_IDS + 1))
    ids: set[int] = set()
    unreadable, wrong, ignored = [], [], []
    for index in range(len(found)):
        pair = found[index]
        try:
            here = mask_ids(pair, data.max_pixels)
        except decode.BadImage as error:
            unreadable.append(f"{pair.name}: {error}")
        else:
            ids |= here
            if here - known:
                wrong.append(f"{pair.name}: {ranges(here - known)}")
            if here == {data.ignore_label}:
                ignored.append(pair.name)
        advance(1)
    without = [n for i, n in zip(of_classes, found.class_names, strict=True) if i not in ids]
    return {
        "pairs": len(found), "classes": len(of_classes), "ids": sorted(ids),
        "without_pixels": without, "all_ignored": ignored, "unreadable": unreadable,
        "wrong_ids": wrong,
    }  # fmt: skip


def ranges(ids: Iterable[int]) -> str:
    """0 to 5, 7, 255."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run))
                     for run in runs)  # fmt: skip


def mask_ids(pair: MaskedRecord, max_pixels: int) -> set[int]:
    """The ids in a mask; BadImage if it or its image is damaged, or they differ in size."""
    if isinstance(pair.image, OSError):
        raise decode.BadImage(pair.image.strerror)
    header = decode.read_header(pair.image, max_pixels)
    pixels = decode.decode(pair.image, header, 3)
    ids = masks.read(pair, max_pixels)
    if ids.shape != pixels.shape[:2]:
        sides = f"{ids.shape[1]} x {ids.shape[0]}"
        raise decode.BadImage(
            f"the mask has {sides} pixels, the image {header.width} x {header.height}"
        )
    return set(np.unique(ids).tolist())
