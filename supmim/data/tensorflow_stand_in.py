"""What the code of TFDS asks TensorFlow for while it prepares images, from Python and Pillow.

Extraction, shuffling of more than a gigabyte and most builders call tf.io.gfile; some builders code
or decode an image. Whatever else they ask for is told as NeedsTensorFlow.
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
    """Names what TensorFlow was asked for, that nothing stands in for."""


class Module(SimpleNamespace):
    """Some attributes of a module; the others are told."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsTensorFlow(f"tf.{self.path}{name}")


class Tensor(SimpleNamespace):
    """A value that only gives itself back."""

    def numpy(self) -> Any:
        """The value."""
        return self.value


def open_file(path: os.PathLike, mode: str = "r") -> Any:
    """A file, as gfile.GFile opens it: text is UTF-8."""
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def list_folder(path: os.PathLike) -> list[str]:
    """Names in a folder, sorted: an order that is the same everywhere."""
    return sorted(os.listdir(path))


def decode_image(data: bytes, channels: int = 0, **_: Any) -> Tensor:
    """uint8 [H, W, 1 or 3]: CMYK and palettes become RGB."""
    image = Image.open(io.BytesIO(data))
    grey = channels == 1 or (not channels and image.mode in ("1", "L"))
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return Tensor(value=pixels[..., None] if grey else pixels)


def encode_image(kind: str) -> Callable[..., Tensor]:
    """What encodes uint8 [H, W, 1, 3 or 4] pixels as such a file."""

    def encode(pixels: Any, quality: int = 95, **_: Any) -> Tensor:
        pixels = np.asarray(pixels.value if isinstance(pixels, Tensor) else pixels)
        out = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
            out, kind, quality=quality
        )
        return Tensor(value=out.getvalue())

    return encode


GFILE = Module(
    path="io.gfile.", GFile=open_file, exists=os.path.exists, isdir=os.path.isdir,
    listdir=list_folder, glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))), walk=os.walk,
    makedirs=lambda path: os.makedirs(path, exist_ok=True), copy=shutil.copyfile, remove=os.remove,
)  # fmt: skip
IMAGE = Module(
    path="image.", decode_image=decode_image, decode_jpeg=decode_image, decode_png=decode_image,
    encode_png=encode_image("png"), encode_jpeg=encode_image("jpeg"),
)  # fmt: skip
TENSORFLOW = Module(
    path="", io=Module(path="io.", gfile=GFILE), image=IMAGE,
    compat=Module(path="compat.", as_text=os.fsdecode), executing_eagerly=lambda: True,
    **{name: np.dtype(name) for name in ("uint8", "int32", "int64", "float32", "float64")},
)  # fmt: skip


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Lets TFDS's lazy `tf` be the stand-in, for TFDS alone."""
    from tensorflow_datasets.core.utils import lazy_imports_utils

    lazy = vars(lazy_imports_utils.tensorflow)
    before = lazy.pop("_module", None)
    lazy["_module"] = TENSORFLOW
    try:
        yield
    finally:
        del lazy["_module"]
        if before is not None:
            lazy["_module"] = before
