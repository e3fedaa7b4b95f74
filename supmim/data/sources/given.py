"""Images without labels: what a caller of Python gives, files, or any data source."""

import errno
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from supmim.config import options
from supmim.data import decode, sources
from supmim.data.sources import base, folders
from supmim.data.sources.base import Record, Source
from supmim.errors import DataError
from supmim.runtime.progress import doing

Given = np.ndarray | Image.Image | str | os.PathLike


class GivenImages(Source):
    """Arrays, PIL images and paths, of any sizes. DataError for anything else."""

    class_names = ("",)
    name = "the given images"

    def __init__(self, images: np.ndarray | Sequence[Given], max_pixels: int) -> None:
        name = self.name
        if isinstance(images, str | os.PathLike | Image.Image):
            raise DataError(f"{name}: give a list, e.g. model.embed([{str(images)[:40]!r}])")
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise DataError(
                f"{name} are {images.dtype}{list(images.shape)}; an array has the form [images, "
                "height, width, 1 or 3], and a single image is given in a list"
            )
        if not isinstance(images, np.ndarray | Sequence):
            raise DataError(f"{name} are a {type(images).__name__}; give a list or a uint8 array")
        if not len(images):
            raise DataError(f"{name}: the list is empty")
        self.images, self.max_pixels = images, max_pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        image = self.images[index]
        if isinstance(image, str | os.PathLike):
            return record_of(os.fspath(Path(image).expanduser()))
        name = f"image {index}"
        if isinstance(image, Image.Image):
            try:
                image = decode.from_pillow(image, self.max_pixels)
            except decode.BadImage as error:
                raise DataError(f"{name} cannot be read: {error}") from error
        return Record(checked_pixels(image, name), 0, name)

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "length": len(self)}


def record_of(path: str) -> Record:
    """Read a file. Pipes, devices and folders are not opened: reading one may never end."""
    if os.path.isfile(path) or not (os.path.exists(path) or "\0" in path):
        return folders.record(path, 0)
    return Record(OSError(errno.EINVAL, "it is not a file"), 0, path)


def find(spec: str, data: options.Data) -> Source:
    """Return all images of a folder, also without classes, a file, a glob, or KIND:WHERE.

    DataError if there are none.
    """
    path = base.expanded(spec)
    if path.is_dir():
        with doing(f"scanning {spec}"):
            found = folders.files(path)
        if not found:
            endings = ", ".join(sorted(folders.ENDINGS))
            raise DataError(f"{spec} has no files that end like an image: {endings}")
        return folders.Files(str(path), spec, *zip(*found, strict=True))
    if path.is_file():
        return folders.Files("", spec, [str(path)], [path.stat().st_size])
    is_source = ":" in spec and spec[0] not in "./~"
    if glob.has_magic(spec):
        found = glob.glob(str(path), recursive=True)
        names = sorted(name for name in found if os.path.isfile(name))
        if names:
            return folders.Files("", spec, names, list(map(os.path.getsize, names)))
        if not is_source:  # a split may have a slice, NAME:SPLIT[:9]
            raise DataError(f"no file matches {spec}")
    if not is_source:
        raise DataError(
            f"{spec}: there is no such file or folder. Images are a folder, a file, a glob in "
            "quotes, or a data source, e.g. records:DIR or NAME:SPLIT"
        )
    return sources.find(spec, base.WHOLE, data, labelled=False)


def checked_pixels(image: Any, name: str) -> np.ndarray:
    """Return pixels as uint8 [H, W, 1 or 3]; DataError if `image` has none."""
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{name} is a {type(image).__name__}; give uint8 arrays, PIL images or paths"
        )
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise DataError(
            f"{name} is {image.dtype}{list(image.shape)}; arrays of images are uint8 from 0 to 255 "
            "in the form [height, width, 1 or 3]"
        )
    if not pixels.size:
        raise DataError(f"{name} has no pixels: {list(image.shape)}")
    return pixels
