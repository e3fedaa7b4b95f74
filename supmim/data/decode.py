"""Decode image files to 8-bit grey or RGB pixels, upright; BadImage says why one can't be decoded.

JPEG is decoded by simplejpeg, which rejects damaged data, everything else by Pillow. Alpha is
dropped and CMYK converted as Pillow does; 16-bit grey keeps its high byte; only the first frame is
read; EXIF orientation is applied.
"""

import io
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

Image.MAX_IMAGE_PIXELS = None  # read_header has its own limit, reported as a BadImage

JPEG = b"\xff\xd8\xff"
SCAN = b"\xff\xda"  # start of scan: pixels follow
EXIF = b"Exif\x00\x00"
# Pillow's other readers decode before the size is known (ICO) or start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112
UPRIGHT = {  # EXIF orientation -> function that turns pixels upright
    2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 3), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip
TURNED = (5, 6, 7, 8)  # orientations that swap height and width
MOST_IDS = 2**16 - 1
SIMD_FACTORS = (2, 4, 8)  # of scaled decoding; other factors have no fast kernel


class BadImage(Exception):
    """A file that is not a complete image; the text says why."""


class Header(NamedTuple):
    """The size of the upright image, known before decoding, and how to decode it."""

    height: int
    width: int
    orientation: int
    simple_jpeg: bool


def read_header(data: bytes, max_pixels: int) -> Header:
    """Return the header of an image; BadImage if it is not an image or exceeds max_pixels."""
    if not data:
        raise BadImage("empty file")
    image = None
    if data.startswith(JPEG):
        height, width, simple_jpeg = _jpeg_header(data)
    else:
        image, simple_jpeg = _open(data), False
        width, height = image.size
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than data.max_pixels={max_pixels}")
    if image is None and data.find(EXIF, 0, data.find(SCAN)) < 0:
        return Header(height, width, 1, simple_jpeg)
    orientation = _orientation(_open(data) if image is None else image)
    sides = (width, height) if orientation in TURNED else (height, width)
    return Header(*sides, orientation, simple_jpeg)


def _jpeg_header(data: bytes) -> tuple[int, int, bool]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImage(f"damaged JPEG: {error}") from error
    return int(height), int(width), colorspace in ("Gray", "YCbCr", "RGB")


def _open(data: bytes) -> Image.Image:
    return _quietly(lambda: Image.open(io.BytesIO(data), formats=FORMATS))


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to look for it behind the pixels
    return _quietly(lambda: image.getexif().get(ORIENTATION, 1))


def _quietly(read: Callable[[], Any]) -> Any:
    """Return read() without warnings; anything that a decoder raises becomes BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its text shows a Python object
        raise BadImage(f"not an image in a known format: {', '.join(FORMATS)}") from error
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error


def kind(data: bytes) -> tuple[str, str]:
    """Return format and mode as Pillow names them, e.g. ("JPEG", "RGB"); BadImage if unknown."""
    image = _open(data)
    return image.format or "", image.mode


def is_grey(data: bytes) -> bool:
    """Return whether an image has no colours."""
    mode = kind(data)[1]
    return mode in ("1", "L", "LA", "La") or mode.startswith("I")


def decode(data: bytes, header: Header, channels: int, shrink: float = 0.0) -> np.ndarray:
    """Return uint8 [H, W, channels], upright; grey for one channel, else RGB. BadImage if damaged.

    shrink: 0 for exact pixels; otherwise JPEG is decoded by faster kernels that are off by about a
    level, and smaller by the largest of SIMD_FACTORS that does not exceed shrink.
    """
    if header.simple_jpeg:
        pixels = _decode_jpeg(data, header, channels, shrink)
    else:
        pixels = _quietly(lambda: _decode_other(data, channels))
    return UPRIGHT[header.orientation](pixels) if header.orientation in UPRIGHT else pixels


def _decode_jpeg(data: bytes, header: Header, channels: int, shrink: float) -> np.ndarray:
    factor = max([f for f in SIMD_FACTORS if f <= shrink], default=1)
    sides = header.height, header.width
    height, width = sides[::-1] if header.orientation in TURNED else sides
    try:
        return simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY" if channels == 1 else "RGB",
            fastdct=shrink > 0,
            fastupsample=shrink > 0,
            min_height=math.ceil(height / factor),
            min_width=math.ceil(width / factor),
        )
    except ValueError as error:
        raise BadImage(f"damaged JPEG: {error}") from error


def _decode_other(data: bytes, channels: int) -> np.ndarray:
    image = _open(data)
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255
        deep = np.clip(np.asarray(image), 0, 65535)
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Convert uint8 [H, W, 1 or 3] to a number of channels, with Pillow's weights of grey."""
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return image.repeat(3, axis=-1)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def decode_ids(data: bytes, max_pixels: int) -> np.ndarray:
    """Return the class ids of a mask, uint16 [H, W]: its grey values or indices of its palette."""
    read_header(data, max_pixels)
    image_format, mode = kind(data)
    if image_format == "JPEG":
        raise BadImage("JPEG changes the ids of a mask near its edges; store masks as PNG")
    if mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise BadImage(f"a mask must have one channel of 8 or 16 bits, but its mode is {mode}")
    ids = _quietly(lambda: np.asarray(_open(data)).astype(np.int64))
    if ids.max() > MOST_IDS:
        raise BadImage(f"it has the id {ids.max()}, but ids must not exceed {MOST_IDS}")
    return ids.astype(np.uint16)
