"""What the fields of a TIFF say about its numbers. Faults raise ValueError."""

import io

from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

STARTS = (b"II*\x00", b"MM\x00*")
WHITE_IS_ZERO, SIGNED, PLANAR = 0, 2, 2  # values of fields


def open_(data: bytes) -> TiffImageFile:
    """Return a TIFF that is not loaded yet; unlike Image.open, say what is not supported."""
    try:
        return TiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        raise ValueError(f"a kind of TIFF that Pillow does not read: {error}") from error


def bits(image: TiffImageFile) -> int:
    """Return the number of bits of a sample."""
    return max(image.tag_v2.get(BITSPERSAMPLE, (1,)))


def white_is_zero(image: TiffImageFile) -> bool:
    """Return whether 0 is shown as white; ValueError if the file does not say it."""
    if PHOTOMETRIC_INTERPRETATION not in image.tag_v2:
        raise ValueError("it does not say whether 0 is black or white")
    return image.tag_v2[PHOTOMETRIC_INTERPRETATION] == WHITE_IS_ZERO


def is_signed(image: TiffImageFile) -> bool:
    """Return whether its numbers may be negative."""
    return SIGNED in image.tag_v2.get(SAMPLEFORMAT, ())


def check_range(image: TiffImageFile) -> None:
    """Raise ValueError if it is not stated what number is shown as black, white or a colour."""
    white_is_zero(image)
    if is_signed(image):
        raise ValueError("signed pixels have no stated range")
    if bits(image) > 16:
        raise ValueError(f"pixels of {bits(image)} bits have no stated range")
    if 0 < max(image.tag_v2.get(COLORMAP, ()), default=0) < 256:
        raise ValueError("its palette has 8 bits, where TIFF has 16")


def check_strips(image: TiffImageFile) -> None:
    """Raise ValueError if uncompressed strips or tiles are missing, which Pillow does not say."""
    places = [tile.extents for tile in image.tile if tile.extents]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in places)
    planar = image.tag_v2.get(PLANAR_CONFIGURATION) == PLANAR and not image.use_load_libtiff
    planes = len(image.tag_v2.get(BITSPERSAMPLE, (1,))) if planar else 1
    if area < planes * image.width * image.height:
        raise ValueError("some of its pixels are missing")
