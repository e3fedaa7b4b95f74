"""`eval.landmarks`: a gallery of images, queries, and the gallery images that each should find.

A JSON file: {"images": FOLDER, "gallery": [NAME, ...], "queries": [QUERY, ...]}. FOLDER is relative
to the file, a NAME to FOLDER. A QUERY is {"image": NAME, "box": [LEFT, TOP, RIGHT, BOTTOM]} with
lists of gallery names: `easy`, `hard` and `junk` as in the revisited Oxford and Paris
(arXiv 1803.11285), or `positives` and `junk`. A box, in pixels of the upright image, is optional.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from supmim.config import options
from supmim.data import crop, decode, images
from supmim.data.sources import folders
from supmim.data.sources.base import Record, Source
from supmim.errors import DataError
from supmim.workdir.files import read_json

GRADED, PLAIN = ("easy", "hard", "junk"), ("positives", "junk")
FARTHEST = 2**31  # pixels
OUTSIDE = 1.0  # pixels that a box may reach beyond its image, since published boxes are rounded


class Files(Source):
    """Named images of a folder, in order, without classes."""

    class_names = ("",)

    def __init__(self, root: Path, name: str, paths: Sequence[str], sizes: dict[str, int]) -> None:
        self.root, self.name, self.paths = str(root), name, tuple(paths)
        self.sizes = tuple(sizes[path] for path in paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        return folders.record(os.path.join(self.root, self.paths[index]), 0)

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "files", "length": len(self), "sha256": hashed([self.paths, self.sizes])}


def clipped(box: crop.Box, height: int, width: int) -> crop.Box:
    """Return the part of a box inside its image; it has a negative side if there is none."""
    return max(0.0, box[0]), max(0.0, box[1]), min(box[2], width), min(box[3], height)


@dataclasses.dataclass(frozen=True)
class InBoxes:
    """The central crop of a box in each image, or of the whole image if it has no box.

    As in any crop, the filter of the resize reaches about a pixel beyond.
    """

    boxes: tuple[crop.Box | None, ...]
    central: crop.CentralCrop

    def __call__(self, height: int, width: int, epoch: int, index: int) -> crop.Box:
        box = self.boxes[index] or (0.0, 0.0, width, height)
        left, top, right, bottom = clipped(box, height, width)
        inner = self.central(bottom - top, right - left, epoch, index)
        return inner[0] + left, inner[1] + top, inner[2] + left, inner[3] + top


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """A gallery, queries, the box of each query and its truth: kind -> ids of gallery images.

    All queries have the same kinds: GRADED or PLAIN.
    """

    gallery: Files
    queries: Files
    boxes: tuple[crop.Box | None, ...]
    truth: tuple[dict[str, np.ndarray], ...]

    def evaluation_images(self, data: options.Data) -> dict[str, images.Images]:
        """Return gallery and queries with the crops of evaluation, queries within their boxes."""
        gallery, queries = (images.evaluation(x, data) for x in (self.gallery, self.queries))
        queries.box_of = InBoxes(self.boxes, images.central_crop(data))
        return {"gallery": gallery, "queries": queries}

    def fingerprint(self) -> dict[str, str]:
        """Return a digest of images, boxes and truth."""
        truth = [{kind: ids.tolist() for kind, ids in one.items()} for one in self.truth]
        files = [one.fingerprint()["sha256"] for one in (self.gallery, self.queries)]
        return {"landmarks": hashed([files, self.boxes, truth])}


def hashed(content: Any) -> str:
    """Return the SHA-256 of the JSON of a value."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load(where: str, max_pixels: int) -> Landmarks:
    """Read a landmarks file.

    DataError names the entry that is missing, of the wrong kind, repeated or outside its image.
    """
    path = Path(where)
    try:
        document = read_json(path)
    except OSError as error:
        raise DataError(f"config.eval.landmarks={path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"config.eval.landmarks={path} is not JSON: {error}") from error
    root = path.parent / _field(document, "images", str, where)
    if not root.is_dir():
        raise DataError(f"{where}: its images should be in {root}, which is not a folder")
    sizes = dict(folders.files(root))
    gallery = _names(document, "gallery", where)
    entries = _field(document, "queries", list, where)
    for name, found in (("gallery", gallery), ("queries", entries)):
        if not found:
            raise DataError(f"{where}: {name} is empty")
    _check_exist(gallery, sizes, root, f"{where}, gallery")
    places = {name: place for place, name in enumerate(gallery)}
    kinds = PLAIN if isinstance(entries[0], dict) and "positives" in entries[0] else GRADED
    read = [
        _query(entry, kinds, places, f"{where}, queries[{number}]")
        for number, entry in enumerate(entries)
    ]
    names, boxes, truth = (tuple(column) for column in zip(*read, strict=True))
    _check_exist(names, sizes, root, f"{where}, queries")
    queries = Files(root, f"queries of {where}", names, sizes)
    _check_boxes(queries, boxes, max_pixels, where)
    return Landmarks(Files(root, f"gallery of {where}", gallery, sizes), queries, boxes, truth)


def _field(entry: Any, name: str, kind: type, where: str) -> Any:
    """Return entry[name]; DataError unless it is of a kind, list or str."""
    found = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(found, kind):
        expected = {str: "a string", list: "a list"}[kind]
        raise DataError(f"{where}: {name!r} must be {expected}, but it is {str(found)[:60]!r}")
    return found


def _names(entry: Any, name: str, where: str) -> list[str]:
    """Return entry[name]; DataError unless it is a list of strings without repetitions."""
    found, seen = _field(entry, name, list, where), set()
    for number, one in enumerate(found):
        if not isinstance(one, str):
            raise DataError(f"{where}: {name}[{number}] must be the name of an image, not {one!r}")
        if one in seen:
            raise DataError(f"{where}: {name}[{number}], {one!r}, is listed twice")
        seen.add(one)
    return found


def _check_exist(names: Sequence[str], sizes: dict[str, int], root: Path, where: str) -> None:
    for number, name in enumerate(names):
        if name not in sizes:
            raise DataError(f"{where}[{number}]: there is no image {name!r} in {root}")


def _query(
    entry: Any, kinds: tuple[str, ...], places: dict[str, int], where: str
) -> tuple[str, crop.Box | None, dict[str, np.ndarray]]:
    """Return the image of a query, its box, and kind -> ids of gallery images."""
    name = _field(entry, "image", str, where)
    where = f"{where}, {name!r}"
    if unknown := sorted(entry.keys() - {"image", "box", *kinds}):
        raise DataError(f"{where}: {unknown[0]!r} is not among image, box, {', '.join(kinds)}")
    truth, kind_of = {}, {}
    for kind in kinds:
        found = _names(entry, kind, where)
        for one in found:
            if one not in places:
                raise DataError(f"{where}: {one!r} of its {kind} is not in the gallery")
            if one in kind_of:
                raise DataError(f"{where}: {one!r} is both {kind_of[one]} and {kind}")
            kind_of[one] = kind
        truth[kind] = np.array([places[one] for one in found], int)
    return name, _box(entry, where), truth


def _box(entry: dict[str, Any], where: str) -> crop.Box | None:
    if "box" not in entry:
        return None
    box = entry["box"]
    numbers = isinstance(box, list) and all(isinstance(x, int | float) for x in box)
    numbers = numbers and max(map(abs, box), default=0) < FARTHEST
    if not numbers or len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise DataError(f"{where}: box {box} is not [left, top, right, bottom], in pixels")
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom


def _check_boxes(
    queries: Files, boxes: Sequence[crop.Box | None], max_pixels: int, where: str
) -> None:
    """Raise DataError for a box that reaches outside its image or holds less than a pixel of it.

    Unreadable images are skipped: they are reported when they are read.
    """
    for number, box in enumerate(boxes):
        image = queries[number].image
        if box is None or not isinstance(image, bytes):
            continue
        try:
            header = decode.read_header(image, max_pixels)
        except decode.BadImage:
            continue
        beyond = max(-box[0], -box[1], box[2] - header.width, box[3] - header.height)
        left, top, right, bottom = clipped(box, header.height, header.width)
        seen = min(right - left, bottom - top)
        if beyond > OUTSIDE or seen < 1:
            fault = "reaches outside" if beyond > OUTSIDE else "holds less than a pixel"
            raise DataError(
                f"{where}, queries[{number}], {queries.paths[number]!r}: box {list(box)} {fault} "
                f"of the image, which has {header.width} x {header.height} pixels"
            )
