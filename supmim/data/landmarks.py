"""`eval.landmarks`: a gallery of images, queries, and what each of them should find there.

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
from supmim.data.sources.base import Record
from supmim.errors import DataError

GRADED, PLAIN = ("easy", "hard", "junk"), ("positives", "junk")
OUTSIDE = 1.0  # pixels that a box may reach beyond its image: published ones are rounded


class Files:
    """Named images of a folder, in order, without classes."""

    class_names = ("",)

    def __init__(self, root: Path, name: str, paths: Sequence[str], sizes: dict[str, int]) -> None:
        self.root, self.name, self.paths = str(root), name, tuple(paths)
        self.sizes = tuple(sizes[path] for path in paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        return folders.record(os.path.join(self.root, self.paths[index]), 0)

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return [self[i] for i in index]

    def fingerprint(self) -> dict[str, Any]:
        """Names and sizes of the files."""
        return {"name": "files", "length": len(self), "sha256": hashed([self.paths, self.sizes])}


def clipped(box: crop.Box, height: int, width: int) -> crop.Box:
    """What of a box is in its image; right may be left of left."""
    return max(0.0, box[0]), max(0.0, box[1]), min(box[2], width), min(box[3], height)


@dataclasses.dataclass(frozen=True)
class InBoxes:
    """A view of part of each image; of all of it where there is no box.

    As with any crop, the resize's filter reaches a pixel or so beyond.
    """

    boxes: tuple[crop.Box | None, ...]
    view: images.BoxOf

    def __call__(self, height: int, width: int, epoch: int, index: int) -> crop.Box:
        """See images.BoxOf."""
        if (box := self.boxes[index]) is None:
            return self.view(height, width, epoch, index)
        left, top, right, bottom = clipped(box, height, width)
        inner = self.view(bottom - top, right - left, epoch, index)
        return inner[0] + left, inner[1] + top, inner[2] + left, inner[3] + top


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """truth: of each query, kind -> ids of gallery images; of one set of kinds for all queries."""

    gallery: Files
    queries: Files
    boxes: tuple[crop.Box | None, ...]
    truth: tuple[dict[str, np.ndarray], ...]

    def views(self, data: options.Data) -> dict[str, images.Images]:
        """gallery and queries as evaluation sees images, queries cut to their boxes."""
        gallery, queries = (images.evaluation(x, data) for x in (self.gallery, self.queries))
        queries.box_of = InBoxes(self.boxes, queries.box_of)
        return {"gallery": gallery, "queries": queries}

    def fingerprint(self) -> dict[str, str]:
        """Images, boxes and truth, as text."""
        truth = [{kind: ids.tolist() for kind, ids in one.items()} for one in self.truth]
        files = [one.fingerprint()["sha256"] for one in (self.gallery, self.queries)]
        return {"landmarks": hashed([files, self.boxes, truth])}


def hashed(content: Any) -> str:
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load(where: str, max_pixels: int) -> Landmarks:
    """DataError that names the entry for whatever is missing, twice there or outside."""
    path = Path(where).expanduser()
    document = _read(path)
    root = path.parent / _of_kind(document, "images", str, where)
    if not root.is_dir():
        raise DataError(f"{where}: its images are to be in {root}, which is no folder")
    sizes = dict(folders.files(root))
    gallery = _names(document, "gallery", where)
    entries = _of_kind(document, "queries", list, where)
    for name, found in (("gallery", gallery), ("queries", entries)):
        if not found:
            raise DataError(f"{where}: {name} is empty")
    for number, name in enumerate(gallery):
        _check_there(name, sizes, root, f"{where}, gallery[{number}]")
    places = {name: place for place, name in enumerate(gallery)}
    kinds = PLAIN if isinstance(entries[0], dict) and "positives" in entries[0] else GRADED
    read = [
        _query(entry, kinds, places, sizes, root, f"{where}, queries[{number}]")
        for number, entry in enumerate(entries)
    ]
    names, boxes, truth = (tuple(part) for part in zip(*read, strict=True))
    queries = Files(root, f"queries of {where}", names, sizes)
    _check_boxes(queries, boxes, max_pixels, where)
    return Landmarks(Files(root, f"gallery of {where}", gallery, sizes), queries, boxes, truth)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"config.eval.landmarks={path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"config.eval.landmarks={path} is no JSON: {error}") from error


def _of_kind(entry: Any, name: str, kind: type, where: str) -> Any:
    """entry[name], which is a list or a text."""
    found = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(found, kind):
        called = {str: "a text", list: "a list"}[kind]
        raise DataError(f"{where}: {name!r} is to be {called}, it is {str(found)[:60]!r}")
    return found


def _names(entry: Any, name: str, where: str) -> list[str]:
    """entry[name], a list of texts, none of them twice."""
    found, seen = _of_kind(entry, name, list, where), set()
    for number, one in enumerate(found):
        if not isinstance(one, str):
            raise DataError(f"{where}: {name}[{number}] is to be the name of an image, not {one!r}")
        if one in seen:
            raise DataError(f"{where}: {name}[{number}], {one!r}, is there twice")
        seen.add(one)
    return found


def _check_there(name: str, sizes: dict[str, int], root: Path, where: str) -> None:
    if name not in sizes:
        raise DataError(f"{where}: there is no image {name!r} in {root}")


def _query(
    entry: Any, kinds: tuple[str, ...], places: dict[str, int], sizes: dict[str, int], root: Path,
    where: str,
) -> tuple[str, crop.Box | None, dict[str, np.ndarray]]:  # fmt: skip
    """Its image, its box, and the gallery's ids by kind."""
    name = _of_kind(entry, "image", str, where)
    where = f"{where}, {name!r}"
    _check_there(name, sizes, root, where)
    if unknown := sorted(entry.keys() - {"image", "box", *kinds}):
        raise DataError(f"{where}: {unknown[0]!r} is not among image, box, {', '.join(kinds)}")
    truth, told = {}, {}
    for kind in kinds:
        found = _names(entry, kind, where)
        for one in found:
            if one not in places:
                raise DataError(f"{where}: {one!r} of its {kind} is not in the gallery")
            if one in told:
                raise DataError(f"{where}: {one!r} is both {told[one]} and {kind}")
            told[one] = kind
        truth[kind] = np.array([places[one] for one in found], int)
    return name, _box(entry, where), truth


def _box(entry: dict[str, Any], where: str) -> crop.Box | None:
    if "box" not in entry:
        return None
    box = entry["box"]
    numbers = isinstance(box, list) and all(isinstance(x, int | float) for x in box)
    if not numbers or len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise DataError(f"{where}: box {box} is not [left, top, right, bottom], in pixels")
    return tuple(map(float, box))


def _check_boxes(
    queries: Files, boxes: Sequence[crop.Box | None], max_pixels: int, where: str
) -> None:
    """DataError for a box that reaches outside of its image or has less than a pixel of it.

    An image that cannot be read is told when it is met.
    """
    for number, box in enumerate(boxes):
        image = queries[number].image
        if box is None or isinstance(image, OSError):
            continue
        try:
            header = decode.read_header(image, max_pixels)
        except decode.BadImage:
            continue
        beyond = max(-box[0], -box[1], box[2] - header.width, box[3] - header.height)
        left, top, right, bottom = clipped(box, header.height, header.width)
        seen = min(right - left, bottom - top)
        if beyond > OUTSIDE or seen < 1:
            what = "reaches outside" if beyond > OUTSIDE else "holds less than a pixel"
            raise DataError(
                f"{where}, queries[{number}], {queries.paths[number]!r}: box {list(box)} {what} "
                f"of the image, which has {header.width} x {header.height} pixels"
            )
