"""`pairs:PATH`: images with a mask of class ids each, to evaluate segmentation on.

PATH/images/.../x.jpg and PATH/masks/.../x.png (or annotations), alike but for the ending; or
NAME:SPLIT of TFDS, a data set with an image and a mask. Masks are 8-bit images of one channel.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from supmim.data import catalogue, folders, sources
from supmim.errors import DataError

IMAGES = "images"
MASKS = ("masks", "annotations")
MASK_FEATURES = ("annotation", "segmentation_mask", "mask")


class MaskedRecord(NamedTuple):
    """An image and its mask, both encoded, or the error that came instead of one."""

    image: bytes | OSError
    mask: bytes | OSError
    name: str


class Pairs(Protocol):
    """Random access to images with masks; must pickle."""

    name: str

    def __len__(self) -> int:
        """Number of pairs."""

    def __getitem__(self, index: int) -> MaskedRecord:
        """One pair."""

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two results to be of the same data."""


class FolderPairs:
    """Pairs of files, sorted by name. DataError lists the images that have no mask."""

    def __init__(self, root: Path) -> None:
        self.name = f"pairs:{root}"
        masks = next((root / name for name in MASKS if (root / name).is_dir()), None)
        if masks is None or not (root / IMAGES).is_dir():
            raise DataError(f"{root} has no folders {IMAGES} and {' or '.join(MASKS)}")
        self.images, self.masks = _files(root / IMAGES), _files(masks)
        missing = [name for name in self.images if name not in self.masks]
        if missing or not self.images:
            listed = ", ".join(sources.printable(name) for name in missing[:20])
            raise DataError(
                f"{root}: {len(missing)} of {len(self.images)} images have no mask in {masks.name}"
                + (f": {listed}" if missing else "")
            )
        self.names = sorted(self.images)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> MaskedRecord:
        name = self.names[index]
        image = self.images[name][0]
        return MaskedRecord(_read(image), _read(self.masks[name][0]), image)

    def fingerprint(self) -> dict[str, Any]:
        """Names and sizes, not the place."""
        sizes = [(n, self.images[n][1], self.masks[n][1]) for n in self.names]
        digest = hashlib.sha256(json.dumps(sizes).encode())
        return {"name": "pairs", "length": len(self), "sha256": digest.hexdigest()}


class SplitPairs:
    """A split of TFDS with an image and a mask."""

    def __init__(self, split: catalogue.Split, mask: str) -> None:
        self.split, self.mask, self.name = split, mask, f"pairs:{split.name}"

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> MaskedRecord:
        example = self.split.example(index)
        image = example[self.split.fields.image]
        return MaskedRecord(image, example[self.mask], self.split.name_of(index, example))

    def fingerprint(self) -> dict[str, Any]:
        """Those of the split."""
        return self.split.fingerprint() | {"mask": self.mask}


def load(where: str, data: Any) -> Pairs:
    """A folder if there is one of that name, else a split of TFDS."""
    root = Path(where).expanduser()
    if root.is_dir():
        return FolderPairs(root)
    if catalogue.SPEC.fullmatch(where):
        return tfds_pairs(where, data)
    raise DataError(f"pairs:{where}: there is no such folder")


def tfds_pairs(where: str, data: Any) -> SplitPairs:
    """DataError, with the features, if the image and the mask are not clear."""
    builder, split = catalogue.open_split(where, sources.WHOLE, data.tfds_dir)
    images = catalogue.image_features(builder)
    masks = [name for name in images if name in MASK_FEATURES]
    image = catalogue.only("image", [name for name in images if name not in masks])
    if not image or len(masks) != 1:
        raise DataError(
            f"{builder.info.full_name} has no one image and one mask ({', '.join(MASK_FEATURES)}); "
            f"its features are {', '.join(builder.info.features)}"
        )
    fields = catalogue.Fields(image, "", catalogue.name_feature(builder.info.features))
    return SplitPairs(catalogue.checked(catalogue.Split(builder, split, fields)), masks[0])


def _files(root: Path) -> dict[str, tuple[str, int]]:
    """Relative name without its ending -> (path, bytes) of the images below a folder."""
    found = folders.files(root)
    return {os.path.splitext(name)[0]: (str(root / name), size) for name, size in found}


def _read(path: str) -> bytes | OSError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return error
