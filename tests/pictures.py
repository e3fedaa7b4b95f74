"""Real pictures in many encodings, and damaged ones, made on the spot."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photo(height=48, width=64):
    """uint8 [height, width, 3]: a part of scikit-learn's bundled photograph."""
    from sklearn.datasets import load_sample_image  # a second, which reader processes save

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
    return encoded(pixels, quality=95, exif=exif(orientation))


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(size, packed, bits, kind, *before, behind=b""):
    """A PNG of packed rows [H, bytes], `bits` per sample; kind: 0 grey, 2 RGB, 3 palette, ..."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0))
    rows = np.pad(packed, ((0, 0), (1, 0))).tobytes()
    pixels = chunk(b"IDAT", zlib.compress(rows)) + behind + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels


def png_bomb(side=65_000):
    """A few bytes that claim to be side x side pixels."""
    return png_of((side, side), np.zeros((1, 99), np.uint8), 8, 2)


def packed(samples, bits):
    """Rows [H, bytes] of samples [H, W] of fewer than 8 bits, or 12, the first in the high bits."""
    places = np.arange(bits - 1, -1, -1)
    each = (samples.astype(int)[..., None] >> places & 1).astype(np.uint8)
    return np.packbits(each.reshape(len(samples), -1), axis=1)


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


def tiff(size, data, bits=(8,), photometric=1, order="<", **fields):
    """A TIFF with one strip; size: (width, height); order: of bytes; fields: f339=(2,) and such."""
    width, height = size
    tags = {256: (width,), 257: (height,), 258: bits, 259: (1,), 273: (8,), 277: (len(bits),),
            278: (height,), 279: (len(data),)}  # fmt: skip
    tags |= {262: (photometric,)} if photometric is not None else {}
    tags |= {int(name[1:]): values for name, values in fields.items()}
    start = 8 + len(data) + len(data) % 2
    entries, extra, behind = b"", b"", start + 2 + 12 * len(tags) + 4
    for number, values in sorted(tags.items()):
        kind, code = (4, "I") if number in (273, 279) else (3, "H")
        value = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(value) > 4:
            value, extra = struct.pack(order + "I", behind + len(extra)), extra + value
        entries += struct.pack(order + "HHI", number, kind, len(values)) + value.ljust(4, b"\0")
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4) + extra
    return magic + struct.pack(order + "I", start) + data + bytes(len(data) % 2) + directory


def exif(orientation):
    """EXIF data with an orientation."""
    fields = Image.Exif()
    fields[0x0112] = orientation
    return fields.tobytes()
