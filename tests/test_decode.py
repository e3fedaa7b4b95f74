"""What every kind of file decodes to, and which files are told as damaged."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps

from supmim.data import decode
from tests.pictures import damaged, encoded, jpeg_bomb, oriented, photo, png_bomb

LIMIT = 178_956_970
PHOTO = photo()
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))


def decoded(data, channels=3, shrink=0.0):
    return decode.decode(data, decode.read_header(data, LIMIT), channels, shrink)


def pillows(data, mode="RGB"):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode))


def with_alpha():
    alpha = np.linspace(0, 255, PHOTO.shape[1], dtype=np.uint8)[None].repeat(PHOTO.shape[0], 0)
    return np.dstack([PHOTO, alpha])


LOSSLESS = {
    "png": (encoded(PHOTO, "PNG"), PHOTO),
    "webp": (encoded(PHOTO, "WEBP", lossless=True), PHOTO),
    "bmp": (encoded(PHOTO, "BMP"), PHOTO),
    "tiff": (encoded(PHOTO, "TIFF"), PHOTO),
    "alpha is dropped": (encoded(with_alpha(), "PNG"), PHOTO),
    "grey": (encoded(GREY, "PNG"), GREY[..., None].repeat(3, -1)),
    "grey with alpha": (
        encoded(Image.fromarray(GREY).convert("LA"), "PNG"), GREY[..., None].repeat(3, -1)
    ),
    "16 bit": (encoded(GREY.astype(np.uint16) * 257, "PNG"), GREY[..., None].repeat(3, -1)),
    "1 bit": (
        encoded(Image.fromarray(GREY > 99), "PNG"), 255 * (GREY > 99)[..., None].repeat(3, -1)
    ),
    "1 x 1": (encoded(PHOTO[:1, :1], "PNG"), PHOTO[:1, :1]),
    "1 x 4000": (encoded(PHOTO[:1].repeat(1, 0).repeat(63, 1)[:, :4000], "PNG"),
                 PHOTO[:1].repeat(63, 1)[:, :4000]),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_decode_to_their_pixels(kind):
    data, pixels = LOSSLESS[kind]
    np.testing.assert_array_equal(decoded(data), pixels)


def test_a_palette_and_the_first_frame_of_several_are_rgb():
    palette = Image.fromarray(PHOTO).quantize(16)
    still = palette.copy()
    second = Image.new("P", palette.size)
    gif = encoded(palette, "GIF", save_all=True, append_images=[second])
    for data in (encoded(still, "PNG"), gif):
        np.testing.assert_array_equal(decoded(data), np.asarray(still.convert("RGB")))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_decodes_exactly_as_pillow_or_fast_within_a_level(options):
    data = encoded(PHOTO, quality=92, **options)
    theirs = pillows(data).astype(int)
    np.testing.assert_array_equal(decoded(data), theirs)
    assert np.abs(decoded(data, shrink=1.0) - theirs).mean() < 2
    assert not (decoded(data, shrink=1.0) == theirs).all() or options == {"subsampling": 0}


def test_cmyk_and_grey_jpegs_decode_as_pillow():
    cmyk = encoded(Image.fromarray(PHOTO).convert("CMYK"), quality=95)
    np.testing.assert_array_equal(decoded(cmyk), pillows(cmyk))
    grey = encoded(GREY, quality=95)
    np.testing.assert_array_equal(decoded(grey), pillows(grey))
    np.testing.assert_array_equal(decoded(grey, channels=1)[..., 0], pillows(grey, "L"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_one_channel_is_grey(kind):
    data = encoded(PHOTO, kind)
    ours = decoded(data, channels=1)
    assert ours.shape == (*PHOTO.shape[:2], 1)
    assert np.abs(ours[..., 0].astype(int) - pillows(data, "L")).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    data = oriented(PHOTO, orientation)
    header = decode.read_header(data, LIMIT)
    theirs = pillows(data)
    assert (header.height, header.width) == theirs.shape[:2]
    np.testing.assert_array_equal(decoded(data), theirs)


def test_a_png_may_be_called_jpg():  # names are not looked at
    np.testing.assert_array_equal(decoded(encoded(PHOTO, "PNG")), PHOTO)


@pytest.mark.parametrize("shrink", [1.9, 2.0, 4.5, 9.0])
def test_a_jpeg_shrinks_by_the_power_of_two_that_fits(shrink):
    data = encoded(photo(200, 300), quality=95)
    factor = {1.9: 1, 2.0: 2, 4.5: 4, 9.0: 8}[shrink]
    assert decoded(data, shrink=shrink).shape[:2] == (-(-200 // factor), -(-300 // factor))


@pytest.mark.parametrize("kind", damaged())
def test_damage_is_told_with_its_reason(kind):
    with pytest.raises(decode.BadImage) as told:
        decoded(damaged()[kind])
    assert len(str(told.value)) > 9 and "\n" not in str(told.value)


@pytest.mark.parametrize("data", [png_bomb(), jpeg_bomb()])
def test_a_bomb_is_refused_by_its_header_with_flat_memory(data):
    decode.read_header(encoded(PHOTO, "PNG"), LIMIT)  # Pillow loads its readers once
    tracemalloc.start()
    with pytest.raises(decode.BadImage, match="65000 x 65000 pixels are more than"):
        decode.read_header(data, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_size_of_a_png_is_known_without_its_pixels():
    """Pillow would decode them all to look for an orientation behind them."""
    data = encoded(PHOTO, "PNG")
    header = decode.read_header(data[: len(data) // 2], LIMIT)
    assert (header.height, header.width) == PHOTO.shape[:2]


def test_an_orientation_far_behind_in_the_header_is_found():
    data = oriented(PHOTO, 6)
    long = data[:2] + b"\xff\xed\x75\x30" + bytes(0x7530 - 2) + data[2:]  # a 30 KB segment first
    assert decode.read_header(long, LIMIT) == decode.read_header(data, LIMIT)
    np.testing.assert_array_equal(decoded(long), decoded(data))


@pytest.mark.parametrize("kind", ["ICO", "EPS"])
def test_formats_that_decode_before_their_size_is_known_are_refused(kind):
    with pytest.raises(decode.BadImage, match="^not an image in a known format: JPEG, PNG"):
        decoded(encoded(PHOTO, kind))
