"""Decode image files to 8-bit grey or RGB pixels, upright; BadImage says why one can't be decoded.

JPEG is decoded by simplejpeg, which rejects damaged data, everything else by Pillow. Alpha is
dropped and CMYK converted as Pillow does; grey of 12 or 16 bits keeps its high 8; only the first
frame is read; EXIF orientation is applied. Numbers without a stated range are refused.
"""

import io
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from supmim.data import jpeg, png, tiff

Image.MAX_IMAGE_PIXELS = None  # read_header has its own limit, reported as a BadImage

# Pillow's other readers decode before the size is known (ICO) or start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112
UPRIGHT = {  # EXIF orientation -> function that turns pixels upright
    2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 3), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip
TURNED = (5, 6, 7, 8)  # orientations that swap height and width
BMP_BITS = 28  # place in a BMP of the number of bits of a pixel
MIRRORED, UPSIDE_DOWN = (2, 3, 6, 7), (3, 4, 7, 8)  # orientations that reverse the upright x, y
MOST_IDS = 2**16 - 1
SIMD_FACTORS = (2, 4, 8)  # of scaled decoding; other factors have no fast kernel


class BadImage(Exception):
    """A file that is not a complete image; the text says why."""


class Header(NamedTuple):
    """The size of the upright image, known before decoding, and how to decode it.

    jpeg: the colour space of a JPEG; empty for other formats.
    """

    height: int
    width: int
    orientation: int
    jpeg: str


def read_header(data: bytes, max_pixels: int) -> Header:
    """Return the header of an image; BadImage if it is not an image or exceeds max_pixels."""
    if not data:
        raise BadImage("empty file")
    if data.startswith(jpeg.START):
        try:
            height, width, colorspace = jpeg.header(data)
        except ValueError as error:
            raise BadImage(f"damaged JPEG: {error}") from error
        exif = jpeg.exif(data)
    else:
        image, colorspace = _open(data), ""
        width, height = image.size
        # Pillow turns a TIFF itself, and has no EXIF of a PNG before it has decoded all pixels.
        exif = png.exif(data) if image.format == "PNG" else image.info.get("exif", b"")
    _check_size(width, height, max_pixels)
    orientation = _quietly(lambda: _orientation(exif)) if exif else 1
    sides = (width, height) if orientation in TURNED else (height, width)
    return Header(*sides, orientation, colorspace)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than data.max_pixels={max_pixels}")


def _orientation(exif: bytes) -> int:
    fields = Image.Exif()
    fields.load(exif)
    return fields.get(ORIENTATION, 1)


def _open(data: bytes) -> ImageFile.ImageFile:
    if data.startswith(tiff.STARTS):
        return _quietly(lambda: tiff.open_(data))
    return _quietly(lambda: Image.open(io.BytesIO(data), formats=FORMATS))


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
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        line = next(iter(str(error).splitlines()), "")
        raise BadImage(f"{kind}{line[:200]}") from error


def kind(data: bytes) -> tuple[str, str]:
    """Return format and mode as Pillow names them, e.g. ("JPEG", "RGB"); BadImage if unknown."""
    image = _open(data)
    return image.format or "", image.mode


def is_grey(data: bytes) -> bool:
    """Return whether an image has no colours."""
    return _is_grey(kind(data)[1])


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "La") or mode.startswith("I")


def decode(data: bytes, header: Header, channels: int, shrink: float = 0.0) -> np.ndarray:
    """Return uint8 [H, W, channels], upright; grey for one channel, else RGB. BadImage if damaged.

    shrink: 0 for exact pixels; otherwise JPEG is decoded by faster kernels, and smaller by the
    largest of SIMD_FACTORS that does not exceed shrink. docs/decoding.md gives the error of that.
    """
    if header.jpeg:
        try:
            pixels = _decode_jpeg(data, header, channels, shrink)
        except ValueError as error:
            raise BadImage(f"damaged JPEG: {error}") from error
    else:
        pixels = _quietly(lambda: _decode_other(data, channels))
    return _upright(pixels, header)


def _upright(pixels: np.ndarray, header: Header) -> np.ndarray:
    return UPRIGHT[header.orientation](pixels) if header.orientation in UPRIGHT else pixels


def _decode_jpeg(data: bytes, header: Header, channels: int, shrink: float) -> np.ndarray:
    if header.jpeg in ("CMYK", "YCCK"):
        inks = jpeg.decode(data, "CMYK")
        size = inks.shape[1], inks.shape[0]
        # Adobe stores inks inverted, and everybody follows.
        return _converted(Image.frombytes("CMYK", size, inks.tobytes(), "raw", "CMYK;I"), channels)
    factor = max([f for f in SIMD_FACTORS if f <= shrink], default=1)
    sides = header.height, header.width
    height, width = sides[::-1] if header.orientation in TURNED else sides
    colorspace = "GRAY" if channels == 1 else "RGB"
    smallest = math.ceil(height / factor), math.ceil(width / factor)
    return jpeg.decode(data, colorspace, shrink > 0, *smallest)


def scale(header: Header, size: tuple[int, int]) -> tuple[int, tuple[float, float]]:
    """Return the factor by which an image was decoded to a smaller (height, width), and an offset.

    The last pixel of a row or column may be cut off, by the end of the stored image: the offset
    (y, x) is where the upright image starts if that pixel is now the first.
    """
    sides = header.height, header.width
    fitting = (f for f in SIMD_FACTORS if tuple(math.ceil(side / f) for side in sides) == size)
    factor = 1 if size == sides else next(fitting, 1)
    y, x = (new - side / factor for new, side in zip(size, sides, strict=True))
    return factor, (y * (header.orientation in UPSIDE_DOWN), x * (header.orientation in MIRRORED))


def _decode_other(data: bytes, channels: int) -> np.ndarray:
    return _pixels_of(_load(data), channels)


def from_pillow(image: Image.Image, max_pixels: int) -> np.ndarray:
    """Return uint8 [H, W, 1 or 3] of an open image, upright; BadImage if it cannot be decoded."""
    _check_size(*image.size, max_pixels)
    if image.mode == "I" and not isinstance(image, ImageFile.ImageFile):
        raise BadImage("pixels of 32 bits have no stated range")
    return _quietly(lambda: _pixels_of(_turned(image), 1 if _is_grey(image.mode) else 3))


def _turned(image: Image.Image) -> Image.Image:
    if not isinstance(image, TiffImageFile):
        return ImageOps.exif_transpose(image)
    if image.tile:  # not loaded yet
        tiff.check_strips(image)
    return image  # Pillow turns it itself; a copy would not know the range of its numbers


def _pixels_of(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImageFile):
        tiff.check_range(image)
        bits, white_is_zero = tiff.bits(image), tiff.white_is_zero(image)
    if image.mode.startswith("I"):  # deep grey, which Pillow would clip to 255
        grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        image = Image.fromarray(255 - grey if white_is_zero else grey)
    return _converted(image, channels)


def _load(data: bytes) -> ImageFile.ImageFile:
    image = _open(data)
    if image.format == "PNG":
        png.check(data)
    if isinstance(image, TiffImageFile):
        tiff.check_strips(image)
    if image.format == "BMP" and image.mode == "1" and data[BMP_BITS] != 1:
        raise ValueError(f"a BMP of {data[BMP_BITS]} bits with two colours, which Pillow misreads")
    image.load()
    return image


def _converted(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode in ("P", "PA", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
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
    """Return the class ids of a mask, uint16 [H, W], upright.

    They are the stored grey values, whatever their number of bits, or the indices of a palette.
    """
    header = read_header(data, max_pixels)
    if header.jpeg:
        raise BadImage("JPEG changes the ids of a mask near its edges; store masks as PNG")
    return _upright(_quietly(lambda: _decode_ids(data)), header)


def _decode_ids(data: bytes) -> np.ndarray:
    image, bits, uncertain = _open(data), 8, False
    if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise ValueError(
            f"a mask must have one channel of 1 to 16 bits, but its mode is {image.mode}"
        )
    if image.format == "PNG":
        bits = data[png.BITS]
    elif isinstance(image, TiffImageFile):
        bits = tiff.bits(image)
        unsigned = tiff.is_signed(image) and image.mode == "L"  # as Pillow reads 8 bits
        uncertain = tiff.white_is_zero(image) or unsigned
    elif image.format == "PPM":
        uncertain = image.tile[0].args not in ("L", "I;16B")
    if uncertain:
        raise ValueError("its numbers may be ids, or what they are shown as; store masks as PNG")
    ids = np.asarray(_load(data)).astype(np.int64)
    if image.mode == "L":  # Pillow scales fewer than 8 bits to 255
        ids //= 255 // (2**bits - 1)
    if ids.min() < 0 or ids.max() > MOST_IDS:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"it has the id {wrong}, but ids are from 0 to {MOST_IDS}")
    return ids.astype(np.uint16)
