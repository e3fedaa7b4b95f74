"""From an encoded file to pixels: 8-bit grey or RGB, upright, or a reason why not.

JPEG goes through simplejpeg, which refuses damaged data; all else through Pillow. Alpha is dropped
and CMYK converted as Pillow does; 16-bit grey keeps its high byte; of several frames the first
counts; EXIF orientation is applied.
"""

import io
import math
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

Image.MAX_IMAGE_PIXELS = None  # read() has a limit of its own, told as a bad record

JPEG = b"\xff\xd8\xff"
SCAN = b"\xff\xda"  # behind it lie pixels
EXIF = b"Exif\x00\x00"
# Pillow's other readers decode before the size is known (ICO), or start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112
UPRIGHT = {  # orientation -> what makes it upright
    2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 3), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip
TURNED = (5, 6, 7, 8)  # orientations that swap height and width
MOST_IDS = 2**16 - 1
SIMD_FACTORS = (2, 4, 8)  # of scaled decoding: others have no fast kernel


class BadImage(Exception):
    """A file that is no whole image; its text says why."""


class Header(NamedTuple):
    """What is known before decoding: size of the upright image, and how to decode it."""

    height: int
    width: int
    orientation: int
    simple_jpeg: bool


def read_header(data: bytes, max_pixels: int) -> Header:
    """Height and width without decoding. BadImage for what is no image or above max_pixels."""
    if not data:
        raise BadImage("empty file")
    return (_jpeg_header if data.startswith(JPEG) else _pillow_header)(data, max_pixels)


def _jpeg_header(data: bytes, max_pixels: int) -> Header:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImage(f"damaged JPEG: {error}") from error
    _check_size(height, width, max_pixels)
    header = Header(height, width, 1, colorspace in ("Gray", "YCbCr", "RGB"))
    if data.find(EXIF, 0, data.find(SCAN)) < 0:
        return header
    return _turned(header, _orientation(_open(data)))


def _pillow_header(data: bytes, max_pixels: int) -> Header:
    image = _open(data)
    width, height = image.size
    _check_size(height, width, max_pixels)
    return _turned(Header(height, width, 1, False), _orientation(image))


def _open(data: bytes) -> Image.Image:
    """Of one of FORMATS, its header read."""
    return _quietly(lambda: Image.open(io.BytesIO(data), formats=FORMATS))


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than data.max_pixels={max_pixels}")


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to look for it behind the pixels
    return _quietly(lambda: image.getexif().get(ORIENTATION, 1))


def _turned(header: Header, orientation: int) -> Header:
    height, width = header.height, header.width
    sides = (width, height) if orientation in TURNED else (height, width)
    return Header(*sides, orientation, header.simple_jpeg)


def _quietly(read):
    """The value of read(); whatever a decoder raises becomes BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # whose own words show the object that was read
        raise BadImage(f"no image in a format that is known: {', '.join(FORMATS)}") from error
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error


def kind(data: bytes) -> tuple[str, str]:
    """Format and mode of an image, as Pillow names them, e.g. JPEG and RGB; BadImage for none."""
    image = _open(data)
    return image.format, image.mode


def is_grey(data: bytes) -> bool:
    """Whether an image has no colours."""
    mode = kind(data)[1]
    return mode in ("1", "L", "LA", "La") or mode.startswith("I")


def decode(data: bytes, header: Header, channels: int, shrink: float = 0.0) -> np.ndarray:
    """uint8 [H, W, channels], upright; grey for one channel, else RGB. BadImage if damaged.

    shrink: 0 for exact pixels; else JPEG is decoded by faster kernels that are off by a level or
    so, and smaller by a power of two where shrink allows it.
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
    options = {
        "colorspace": "GRAY" if channels == 1 else "RGB",
        "fastdct": shrink > 0, "fastupsample": shrink > 0,
        "min_height": math.ceil(height / factor), "min_width": math.ceil(width / factor),
    }  # fmt: skip
    try:
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        raise BadImage(f"damaged JPEG: {error}") from error


def _decode_other(data: bytes, channels: int) -> np.ndarray:
    """Through Pillow, which by itself would clip 16-bit grey to 255."""
    image = _open(data)
    image.load()
    if image.mode.startswith("I"):
        deep = np.clip(np.asarray(image), 0, 65535)
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W, 1 or 3] with the channels asked for, grey as Pillow weighs it."""
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return image.repeat(3, axis=-1)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def decode_ids(data: bytes, max_pixels: int) -> np.ndarray:
    """uint16 [H, W]: the class ids of a mask, its grey values or the indices of its palette."""
    read_header(data, max_pixels)
    of, mode = kind(data)
    if of == "JPEG":
        raise BadImage("JPEG changes the ids of a mask near its edges; store masks as PNG")
    if mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise BadImage(f"a mask has 8 or 16 bits and one channel, this is {mode}")
    ids = _quietly(lambda: np.asarray(_open(data)).astype(np.int64))
    if ids.max() > MOST_IDS:
        raise BadImage(f"its mask has the id {ids.max()}; 16 bits hold {MOST_IDS}")
    return ids.astype(np.uint16)
