"""The chunks of a PNG: their contents, and whether they are intact. Faults raise ValueError."""

import zlib
from collections.abc import Iterator

BITS = 24  # place in a file of the number of bits of a sample


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the payload of each chunk."""
    at = 8
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], at + 8, end
        at = end + 4


def exif(data: bytes) -> bytes:
    """Return the EXIF data, before or after the pixels, or nothing."""
    return next((data[start:end] for kind, start, end in chunks(data) if kind == b"eXIf"), b"")


def check(data: bytes) -> None:
    """Raise ValueError if a checksum of the pixels is wrong, which Pillow does not check."""
    for kind, start, end in chunks(data):
        stored = int.from_bytes(data[end : end + 4])
        if kind == b"IDAT" and zlib.crc32(memoryview(data)[start - 4 : end]) != stored:
            raise ValueError("damaged PNG: the checksum of its pixels is wrong")
