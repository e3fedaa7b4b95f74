"""JPEG files: size, EXIF data and pixels, by simplejpeg. Damage raises ValueError."""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg

START = b"\xff\xd8\xff"
EXIF = b"Exif\x00\x00"
SCAN, JFIF, APP1, ADOBE, COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xFE  # markers
SEQUENTIAL = {0xC0, 0xC1, 0xC9}  # of frames, each scan of which has whole coefficients
BOUNDS = re.compile(  # of the coefficients of a scan of one to four components
    rb"(\xff\xda\x00(?:\x08.{3}|\x0a.{5}|\x0c.{7}|\x0e.{9}))...", re.DOTALL
)
PADDING = re.compile(rb"\x00{2,}(?=\xff+[\x01-\xcf\xd8-\xfe])")  # entropy-coded data end there


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """Return marker, start and end of the payload of each segment before the first scan."""
    found, at, last = [], 2, len(data) - 4
    while at <= last and data[at] == 0xFF and (marker := data[at + 1]) != SCAN:
        if marker == 0xFF:  # a marker may be padded
            at += 1
            continue
        start = at + 4
        at += 2 + (data[at + 2] << 8 | data[at + 3])
        found.append((marker, start, at))
    return found


def header(data: bytes) -> tuple[int, int, str]:
    """Return height, width and colour space: Gray, YCbCr, RGB, CMYK or YCCK."""
    try:
        height, width, colorspace, _ = _tolerantly(simplejpeg.decode_jpeg_header, data)
    except KeyError as error:  # of simplejpeg's table
        raise ValueError("no such colour space is known") from error
    return int(height), int(width), colorspace


def exif(data: bytes) -> bytes:
    """Return the EXIF data, or nothing."""
    for marker, start, end in segments(data):
        if marker == APP1 and data.startswith(EXIF, start):
            return data[start:end]
    return b""


def decode(
    data: bytes, colorspace: str, fast: bool = False, min_height: int = 0, min_width: int = 0
) -> np.ndarray:
    """Return uint8 [H, W, C] in a colour space that simplejpeg names.

    fast: by approximate kernels. min_height, min_width: decode at the smallest of simplejpeg's
    scaled sizes that is not below these; 0: at the stored size.
    """
    pixels = functools.partial(
        simplejpeg.decode_jpeg,
        colorspace=colorspace,
        fastdct=fast,
        fastupsample=fast,
        min_height=min_height,
        min_width=min_width,
    )
    return _tolerantly(pixels, data)


def _tolerantly(read: Callable[[bytes], Any], data: bytes) -> Any:
    """Return read(data); if that raises ValueError, try again without harmless faults."""
    try:
        return read(data)
    except ValueError:
        if (mended := without_harmless_faults(data)) == data:
            raise
        return read(mended)


def without_harmless_faults(data: bytes) -> bytes:
    """Return the file without faults that don't concern its pixels.

    These are damaged metadata, an unknown version of JFIF, wrong bounds of the coefficients in a
    sequential scan, which are always 0 to 63, and zeros after entropy-coded data.
    """
    kept, markers, end = [data[:2]], set(), 2
    for marker, start, end in segments(data):
        payload = data[start:end]
        if marker == JFIF:
            payload = payload[:5] + b"\x01" + payload[6:]
        if marker in (JFIF, ADOBE) or not JFIF <= marker <= COMMENT:
            kept += [data[start - 4 : start], payload]
        markers.add(marker)
    scans = PADDING.sub(b"\x00", data[end:])
    if markers & SEQUENTIAL:
        scans = BOUNDS.sub(b"\\1\x00\x3f\x00", scans)
    return b"".join(kept) + scans
