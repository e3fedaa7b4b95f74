"""`pairs:PATH`: images with masks of class ids, for segmentation.

PATH/images/.../x.jpg belongs to PATH/masks/.../x.png (or annotations); only the ending differs. Or
NAME:SPLIT of TFDS, a data set with an image and a mask. Masks are images of one channel with 1
to 16 bits. PATH/classes.txt lists the names of the classes, one per line, without ignored ids; else
data.mask_classes is their number. Held out is PATH/val or the like beside PATH/train, each with
images and masks; or images/validation beside images/training (ADE20K); else a share of the pairs.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from supmim.config import options
from supmim.data import masks
from supmim.data.sources import base, catalogue, folders
from supmim.data.sources.base import MaskedRecord
from supmim.errors import DataError, counted
from supmim.storage.schemes import on_bucket

IMAGES = "images"
MASKS = ("masks", "annotations")
MASK_FEATURES = ("annotation", "segmentation_mask", "mask")
CLASSES = "classes.txt"


class FolderPairs(base.Masked):
    """Pairs of files, sorted by name. DataError lists the images without a mask."""

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        self.name, self.root, self.class_names = f"pairs:{root}", root, tuple(class_names)
        found = next((root / name for name in MASKS if (root / name).is_dir()), None)
        if found is None or not (root / IMAGES).is_dir():
            raise DataError(f"{root} has no folders {IMAGES} and {' or '.join(MASKS)}")
        self.skipped = folders.Skipped([], Counter())
        self.images, self.masks = _files(root / IMAGES, self.skipped), _files(found)
        missing = [name for name in self.images if name not in self.masks]
        if missing or not self.images:
            listed = ", ".join(base.printable(name) for name in missing[:20])
            raise DataError(
                f"{root}: {found.name} has no mask for {len(missing):,} of "
                f"{counted(len(self.images), 'image')}" + (f": {listed}" if missing else "")
            )
        self.names = sorted(self.images)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> MaskedRecord:
        name = self.names[index]
        image, mask = (folders.record(files[name][0], 0) for files in (self.images, self.masks))
        return MaskedRecord(*image, mask.image)

    def fingerprint(self) -> dict[str, Any]:
        sizes = [(n, self.images[n][1], self.masks[n][1]) for n in self.names]
        digest = hashlib.sha256(json.dumps(sizes).encode())
        return {"name": "pairs", "length": len(self), "sha256": digest.hexdigest()}

    def identities(self) -> np.ndarray:
        return np.array([hash((name, self.images[name][1])) for name in self.names])

    def part(self, part: str, holdout: float) -> "FolderPairs":
        """Keep the pairs of one part and return self."""
        found = folders.parts(self.root / IMAGES)
        if found.held_out is not None:
            top = found.of(part).name
            taken = [name for name in self.names if name.split("/")[0] == top]
        elif part in (base.WHOLE, base.EVALUATED):
            taken = self.names
        else:
            few = folders.held_out([self.names], holdout)
            taken = [n for n in self.names if (n in few) == (part == base.HELD_OUT)]
        if not taken:
            raise base.NothingHeldOut(
                f"{self.name} has {counted(len(self), 'pair')}, of which "
                f"config.data.holdout={holdout:g} leaves none {part}; set "
                "--config.data.eval=pairs:PATH or another share"
            )
        self.names = taken
        self.name += f" ({part})" if part in (base.KEPT, base.HELD_OUT) else ""
        return self


class SplitPairs(base.Masked):
    """A split of a TFDS data set with an image and a mask."""

    def __init__(self, split: catalogue.Split, mask: str, class_names: Sequence[str]) -> None:
        self.split, self.mask, self.class_names = split, mask, tuple(class_names)
        self.name = f"pairs:{split.name}"

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> MaskedRecord:
        example = self.split.example(index)
        image, name = example[self.split.fields.image], self.split.name_of(index, example)
        return MaskedRecord(image, 0, name, example[self.mask])

    def fingerprint(self) -> dict[str, Any]:
        return self.split.fingerprint() | {"mask": self.mask}

    def identities(self) -> np.ndarray:
        return self.split.identities()


def load(where: str, part: str, data: options.Data) -> FolderPairs | SplitPairs:
    """Return one part of a folder if there is one of that name, else of a TFDS data set.

    Its class_names are empty if the number of classes is unknown.
    """
    root = base.expanded(where)
    if not root.is_dir():
        if catalogue.parsed(where):
            return _tfds_pairs(where, part, data)
        if on_bucket(where):
            raise base.unpacked(f"pairs:{where}")
        raise DataError(f"pairs:{where}: there is no such folder")
    names = class_names(root / CLASSES, data)
    found = folders.parts(root)
    if found.held_out is None:
        return FolderPairs(found.trained, names).part(part, data.holdout)
    return FolderPairs(found.of(part), names)


def class_names(path: Path, data: options.Data) -> list[str]:
    """Return the lines of a file, or _numbered(data) without it; DataError if they disagree."""
    if not path.is_file():
        return _numbered(data)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: this is not UTF-8; store it as UTF-8") from error
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if data.mask_classes not in (0, len(names)):
        raise DataError(
            f"{path} names {counted(len(names), 'class')}, but config.data.mask_classes is "
            f"{data.mask_classes}; leave that option out, or correct the file"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} names {', '.join(twice[:5])} more than once; correct the file")
    return names


def _numbered(data: options.Data) -> list[str]:
    """Return the ids of data.mask_classes classes as names."""
    return [str(i) for i in masks.ids_of(data.mask_classes, data.ignore_label)]


def _tfds_pairs(where: str, part: str, data: options.Data) -> SplitPairs:
    builder, split = catalogue.open_split(where, part, data)
    images = catalogue.image_features(builder)
    found = [name for name in images if name in MASK_FEATURES]
    image = catalogue.only("image", [name for name in images if name not in found])
    if not image or len(found) != 1:
        raise DataError(
            f"{builder.info.full_name} does not have exactly one image and one mask "
            f"({', '.join(MASK_FEATURES)}); its features are {', '.join(builder.info.features)}"
        )
    fields = catalogue.Fields(image, "", catalogue.name_feature(builder.info.features))
    opened = catalogue.checked(catalogue.Split(builder, split, fields))
    return SplitPairs(opened, found[0], _numbered(data))


def _files(root: Path, skipped: folders.Skipped | None = None) -> dict[str, tuple[str, int]]:
    """Return {relative name without its ending: (path, bytes)} of the images below a folder."""
    found = folders.files(root, skipped)
    return {os.path.splitext(name)[0]: (str(root / name), size) for name, size in found}
