"""Of how many damaged image files supmim tells the damage, by format.

    python tools/damage.py 2> /dev/null

It takes a photograph of scikit-learn, writes it in several formats, and harms 300 copies of each in
one of three ways, at random places of the pixels' data. Counted are the copies that are refused, of
those whose pixels are no longer right. libtiff writes its own messages to stderr.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from supmim.data import decode

COPIES, LIMIT = 300, 10**8
FORMATS = {
    "JPEG": ("RGB", "JPEG", {"quality": 90}),
    "JPEG, progressive": ("RGB", "JPEG", {"quality": 90, "progressive": True}),
    "JPEG, CMYK": ("CMYK", "JPEG", {"quality": 90}),
    "PNG": ("RGB", "PNG", {}),
    "WebP": ("RGB", "WEBP", {}),
    "WebP, lossless": ("RGB", "WEBP", {"lossless": True}),
    "TIFF, LZW": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, BMP, PPM uncompressed": ("RGB", "TIFF", {}),
    "GIF": ("RGB", "GIF", {}),
}
Harm = Callable[[bytes, int, np.random.Generator], bytes]
HARMS: dict[str, Harm] = {
    "cut off": lambda data, at, rng: data[:at],
    "40 bytes": lambda data, at, rng: data[:at] + rng.bytes(40) + data[at + 40 :],
    "one bit": lambda data, at, rng: data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :],
}


def decoded(data: bytes) -> bytes | None:
    """Return the pixels, or None if the file is refused."""
    try:
        return decode.decode(data, decode.read_header(data, LIMIT), 3).tobytes()
    except decode.BadImage:
        return None


def main() -> None:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((192, 128))
    print(f"{'':28}" + "".join(f"{harm:>10}" for harm in HARMS))
    for name, (mode, kind, options) in FORMATS.items():
        file = io.BytesIO()
        photo.convert(mode).save(file, kind, **options)
        data, rng = file.getvalue(), np.random.default_rng(0)
        right, told = decoded(data), []
        for harm in HARMS.values():
            places = rng.integers(len(data) // 10, len(data) * 9 // 10, COPIES)  # no header
            found = [decoded(harm(data, int(at), rng)) for at in places]
            wrong = [pixels for pixels in found if pixels != right]
            told.append(wrong.count(None) / max(1, len(wrong)))
        print(f"{name:28}" + "".join(f"{share:10.0%}" for share in told))


if __name__ == "__main__":
    main()
