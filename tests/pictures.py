"""Real pictures in many encodings, and damaged ones, made on the spot."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image


def photo(height=48, width=64):
    """uint8 [height, width, 3]: a part of scikit-learn's bundled photograph."""
    whole = Image.fromarray(load_sample_image("china.jpg"))
    return np.asarray(whole.resize((width, height), Image.Resampling.BOX))


def encoded(pixels, kind="JPEG", **options):
    """The file's bytes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(pixels, orientation):
    """A JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, quality=95, exif=exif)


def png_bomb(side=65_000):
    """A few bytes that claim to be side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))  # fmt: skip

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))


def jpeg_bomb(side=65_000):
    """A JPEG whose header claims to be side x side pixels."""
    data = encoded(photo(), quality=90)
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def damaged():
    """name -> bytes of files that are no whole image."""
    whole = encoded(photo(96, 128), quality=90)
    middle = len(whole) // 2
    png = encoded(photo(), "PNG")
    return {
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
        "zeros": bytes(5000),
        "truncated": whole[: 2 * len(whole) // 3],
        "header only": whole[:200],
        "middle": whole[:middle] + bytes(40) + whole[middle + 40 :],
        "truncated png": png[: len(png) // 2],
        "png bomb": png_bomb(),
        "jpeg bomb": jpeg_bomb(),
        "float tiff": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    }
