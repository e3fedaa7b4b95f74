"""The parts of TensorFlow that TFDS uses to prepare images, from Python and Pillow.

Extraction, shuffling of more than a gigabyte and most builders call tf.io.gfile; some builders
encode or decode an image. Any other use of TensorFlow raises NeedsTensorFlow.
"""

import contextlib
import glob
import io
import os
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image


class NeedsTensorFlow(Exception):
    """Use of a part of TensorFlow that is not provided; the text names it."""


class Module(SimpleNamespace):
    """Some attributes of a module; any other raises NeedsTensorFlow."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsTensorFlow(f"tf.{self.path}{name}")


class Tensor(SimpleNamespace):
    """A `value` that `numpy` returns."""

    def numpy(self) -> Any:
        return self.value


def open_file(path: os.PathLike, mode: str = "r") -> Any:
    """Open a file as gfile.GFile does: text is UTF-8."""
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def decode_image(data: bytes, channels: int = 0, **_: Any) -> Tensor:
    """Return uint8 [H, W, 1 or 3]; CMYK and palettes become RGB."""
    image = Image.open(io.BytesIO(data))
    grey = channels == 1 or (not channels and image.mode in ("1", "L"))
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return Tensor(value=pixels[..., None] if grey else pixels)


def encode_image(kind: str) -> Callable[..., Tensor]:
    """Return a function that encodes uint8 [H, W, 1, 3 or 4] pixels as a file of a kind."""

    def encode(pixels: Any, quality: int = 95, **_: Any) -> Tensor:
        pixels = np.asarray(pixels.value if isinstance(pixels, Tensor) else pixels)
        pixels = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind, quality=quality)
        return Tensor(value=out.getvalue())

    return encode


GFILE = Module(
    path="io.gfile.",
    GFile=open_file,
    exists=os.path.exists,
    isdir=os.path.isdir,
    listdir=lambda path: sorted(os.listdir(path)),  # in the same order on every file system
    glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
    walk=os.walk,
    makedirs=lambda path: os.makedirs(path, exist_ok=True),
    copy=shutil.copyfile,
    remove=os.remove,
)
IMAGE = Module(
    path="image.",
    decode_image=decode_image,
    decode_jpeg=decode_image,
    decode_png=decode_image,
    encode_png=encode_image("png"),
    encode_jpeg=encode_image("jpeg"),
)
TENSORFLOW = Module(
    path="",
    io=Module(path="io.", gfile=GFILE),
    image=IMAGE,
    compat=Module(path="compat.", as_text=os.fsdecode),
    executing_eagerly=lambda: True,
    **{name: np.dtype(name) for name in ("uint8", "int32", "int64", "float32", "float64")},
)


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Make TFDS's lazy `tf` the stand-in, for TFDS alone, within this context."""
    from tensorflow_datasets.core.utils import lazy_imports_utils

    module: Any = lazy_imports_utils.tensorflow
    attributes = vars(module)
    previous = attributes.pop("_module", None)
    attributes["_module"] = TENSORFLOW
    try:
        yield
    finally:
        del attributes["_module"]
        if previous is not None:
            attributes["_module"] = previous
