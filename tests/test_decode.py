"""What every kind of file decodes to, and which files are told as damaged."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps

from supmim.data import decode
from tests.pictures import (
    chunk,
    damaged,
    encoded,
    exif,
    jpeg_bomb,
    oriented,
    packed,
    photo,
    png_bomb,
    png_of,
    tiff,
)

LIMIT = 178_956_970
PHOTO = photo()
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))
SIZE = PHOTO.shape[1::-1]
IDS = np.arange(GREY.size).reshape(GREY.shape)


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


def exif_behind_the_pixels(pixels, kind, exif):
    return png_of(SIZE, pixels.reshape(len(pixels), -1), 8, 2, behind=chunk(b"eXIf", exif[6:]))


TRANSPOSE = dict(zip(range(2, 9), [
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
], strict=True))  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("JPEG", encoded),
        ("PNG", encoded),
        ("PNG", exif_behind_the_pixels),
        ("WEBP", lambda *image, **options: encoded(*image, lossless=True, **options)),
        ("TIFF", encoded),
        ("TIFF", lambda *image, **options: encoded(*image, compression="lzma", **options)),
    ],
)
def test_every_format_is_turned_upright_exactly_once(kind, write, orientation):
    data = write(PHOTO, kind, exif=exif(orientation))
    stored = Image.fromarray(decoded(encoded(PHOTO, kind)) if kind == "JPEG" else PHOTO)
    upright = stored.transpose(TRANSPOSE[orientation]) if orientation > 1 else stored
    header = decode.read_header(data, LIMIT)
    assert (header.height, header.width) == (upright.height, upright.width)
    np.testing.assert_array_equal(decoded(data), np.asarray(upright))


def stored_grey(bits, inverted=False, order="<"):
    """Samples of a grey image as a TIFF stores them, and what they decode to."""
    top = 2**bits - 1
    samples = np.round(GREY * (top / 255)).astype(int)
    shown = np.round(samples * (255 / top)).astype(int)
    samples = top - samples if inverted else samples
    data = samples.astype(f"{order}u2") if bits == 16 else packed(samples, bits)
    return data.tobytes(), shown


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiffs_of_any_depth_are_scaled_by_their_bits_or_refused(bits, order, inverted):
    data, shown = stored_grey(bits, inverted, order)
    file = tiff(SIZE, data, (bits,), 1 - inverted, order)
    if (bits, order, inverted) in [(12, "<", True), (12, ">", False), (12, ">", True),
                                   (16, ">", True)]:  # fmt: skip
        with pytest.raises(decode.BadImage, match="a kind of TIFF that Pillow does not read"):
            decoded(file)
    else:
        np.testing.assert_array_equal(decoded(file, 1)[..., 0], shown)


def test_a_compressed_16_bit_tiff_whose_white_is_0_is_no_negative():
    inverted = Image.fromarray(65535 - GREY.astype(np.uint16) * 257)
    data = encoded(inverted, "TIFF", compression="lzma", tiffinfo={262: 0})
    np.testing.assert_array_equal(decoded(data, 1)[..., 0], GREY)


NO_RANGE = {
    "signed pixels have no stated range": [
        tiff(SIZE, GREY.astype(f"i{size}").tobytes(), (8 * size,), f339=(2,)) for size in (1, 2, 4)
    ],
    "pixels of 32 bits have no stated range": [tiff(SIZE, GREY.astype("u4").tobytes(), (32,))],
    "floating-point pixels have no stated range": [
        tiff(SIZE, GREY.astype("f4").tobytes(), (32,), f339=(3,))
    ],
    "a kind of TIFF that Pillow does not read": [
        tiff(SIZE, packed(GREY, 10).tobytes(), (10,)),
        tiff(SIZE, GREY.astype("f8").tobytes(), (64,), f339=(3,)),
    ],
    "it does not say whether 0 is black": [tiff(SIZE, GREY.tobytes(), photometric=None)],
    "its palette has 8 bits, where TIFF has 16": [
        tiff(SIZE, GREY.tobytes(), photometric=3, f320=tuple(range(256)) * 3)
    ],
    "some of its pixels are missing": [  # one strip of three
        tiff(SIZE, np.moveaxis(PHOTO, -1, 0).tobytes(), (8, 8, 8), 2, f284=(2,))
    ],
}


@pytest.mark.parametrize("why", NO_RANGE)
def test_tiffs_whose_numbers_have_no_certain_meaning_are_refused(why):
    for data in NO_RANGE[why]:
        with pytest.raises(decode.BadImage, match=f"^{why}"):
            decoded(data)


def opened(data):
    return decode.from_pillow(Image.open(io.BytesIO(data)), LIMIT)


@pytest.mark.parametrize("why", [why for why in NO_RANGE if "kind of TIFF" not in why])
def test_an_image_that_a_caller_opened_is_refused_as_its_file_is(why):
    for data in NO_RANGE[why]:
        with pytest.raises(decode.BadImage, match=f"^{why}"):
            opened(data)


def test_an_image_that_a_caller_opened_has_the_pixels_of_its_file():
    inverted = Image.fromarray(65535 - GREY.astype(np.uint16) * 257)
    for data in (
        encoded(inverted, "TIFF", compression="lzma", tiffinfo={262: 0}),
        tiff(SIZE, stored_grey(12, False, "<")[0], (12,)),
        encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PPM"),
        encoded(Image.fromarray(PHOTO), "TIFF", tiffinfo={274: 6}),
    ):
        pixels = opened(data)
        np.testing.assert_array_equal(pixels, decoded(data, pixels.shape[-1]))
        assert pixels.std() > 10


def test_an_open_image_is_not_decoded_if_it_is_too_large_and_numbers_without_range_are_refused():
    image = Image.open(io.BytesIO(png_bomb()))
    with pytest.raises(decode.BadImage, match="65000 x 65000 pixels are more than"):
        decode.from_pillow(image, LIMIT)
    with pytest.raises(decode.BadImage, match="pixels of 32 bits have no stated range"):
        decode.from_pillow(Image.fromarray(GREY.astype(np.int32)), LIMIT)


OPAQUE = np.full_like(GREY, 255)
INKS = np.asarray(Image.fromarray(PHOTO).convert("CMYK"))
TIFFS = {  # samples, photometric, fields
    "RGB": (PHOTO, 2, {}),
    "RGB and an unnamed sample": (with_alpha(), 2, {"f338": (0,)}),
    "RGB and alpha": (with_alpha(), 2, {"f338": (2,)}),
    "RGB multiplied by alpha": (np.dstack([PHOTO, OPAQUE]), 2, {"f338": (1,)}),
    "grey and alpha": (np.dstack([GREY, OPAQUE]), 1, {"f338": (2,)}),
    "grey multiplied by alpha": (np.dstack([GREY, OPAQUE]), 1, {"f338": (1,)}),
    "CMYK": (INKS, 5, {}),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", TIFFS)
def test_tiffs_of_several_samples_decode_to_their_pixels(kind, depth, order):
    samples, photometric, fields = TIFFS[kind]
    number = np.dtype(f"{order}u{depth}")
    data = (samples.astype(number) * (257 if depth == 2 else 1)).astype(number).tobytes()
    file = tiff(SIZE, data, (8 * depth,) * samples.shape[-1], photometric, order, **fields)
    if depth == 2 and photometric == 1:
        with pytest.raises(decode.BadImage, match="a kind of TIFF that Pillow does not read"):
            decoded(file)
        return
    wanted = GREY[..., None].repeat(3, -1) if photometric == 1 else PHOTO
    np.testing.assert_array_equal(decoded(file), wanted)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_any_depth_decode_to_their_colours(bits):
    colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3), np.uint8)
    indices = IDS % 2**bits
    deep = tuple(int(c) * 257 for c in colours.T.ravel())
    files = [
        tiff(SIZE, packed(indices, bits).tobytes(), (bits,), 3, f320=deep),
        png_of(SIZE, packed(indices, bits), bits, 3, chunk(b"PLTE", colours.tobytes())),
        png_of(SIZE, packed(indices, bits), bits, 3, chunk(b"PLTE", colours.tobytes()),
               chunk(b"tRNS", b"\x00\x80")),
    ]  # fmt: skip
    for data in files:
        np.testing.assert_array_equal(decoded(data), colours[indices])


@pytest.mark.parametrize("transparent", [b"", chunk(b"tRNS", b"\x00\x00")])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_pngs_of_any_depth_are_scaled_by_their_bits(bits, transparent):
    data, shown = stored_grey(bits, order=">")
    rows = np.frombuffer(data, np.uint8).reshape(len(GREY), -1)
    png = png_of(SIZE, rows, bits, 0, transparent)
    np.testing.assert_array_equal(decoded(png, 1)[..., 0], shown)


@pytest.mark.parametrize("kind", [2, 4, 6])
@pytest.mark.parametrize("depth", [1, 2])
def test_pngs_of_several_samples_keep_the_high_byte_of_each(kind, depth):
    samples = {2: PHOTO, 4: np.dstack([GREY, GREY]), 6: with_alpha()}[kind]
    rows = samples[..., None].repeat(depth, -1).reshape(len(samples), -1)
    wanted = GREY[..., None].repeat(3, -1) if kind == 4 else PHOTO
    np.testing.assert_array_equal(decoded(png_of(SIZE, rows, 8 * depth, kind)), wanted)


@pytest.mark.parametrize("top", [1, 15, 100, 255, 1000, 4095, 65535])
def test_grey_of_a_pgm_is_scaled_by_its_stated_range(top):
    samples = np.round(GREY * (top / 255)).astype(">u2" if top > 255 else "u1")
    data = b"P5 %d %d %d\n" % (*SIZE, top) + samples.tobytes()
    shown = np.round(samples.astype(int) * (255 / top))
    exact = 255 % top == 0 or top == 65535  # elsewhere halves may be rounded up or down
    assert np.abs(decoded(data, 1)[..., 0] - shown).max() <= (0 if exact else 1)


def two_coloured_bmp(bits):
    bmp = encoded(Image.fromarray(GREY > 99), "BMP")
    return bmp[:28] + bytes([bits]) + bmp[29:]


def test_a_bmp_that_pillow_would_misread_is_refused():
    np.testing.assert_array_equal(decoded(two_coloured_bmp(1), 1)[..., 0], 255 * (GREY > 99))
    with pytest.raises(decode.BadImage, match="a BMP of 8 bits with two colours"):
        decoded(two_coloured_bmp(8))


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


def test_an_orientation_behind_a_thumbnail_is_found():
    """The thumbnail, a JPEG in a segment, has scans of its own."""
    data, thumbnail = oriented(PHOTO, 6), encoded(photo(8, 8))
    segment = b"Photoshop 3.0\x008BIM" + thumbnail
    segment = b"\xff\xed" + (len(segment) + 2).to_bytes(2) + segment
    long = data[:2] + segment + data[2:]
    assert decode.read_header(long, LIMIT).orientation == 6
    np.testing.assert_array_equal(decoded(long), decoded(data))


def test_exif_behind_the_pixels_of_a_jpeg_is_not_its_own():
    """Phones append a second JPEG, and its orientation says nothing about the first."""
    plain = encoded(PHOTO)
    assert decode.read_header(plain + oriented(PHOTO, 6), LIMIT).orientation == 1


@pytest.mark.parametrize("kind", ["ICO", "EPS"])
def test_formats_that_decode_before_their_size_is_known_are_refused(kind):
    with pytest.raises(decode.BadImage, match="^not an image in a known format: JPEG, PNG"):
        decoded(encoded(PHOTO, kind))


BASELINE, PROGRESSIVE = encoded(PHOTO, quality=90), encoded(PHOTO, quality=90, progressive=True)
SCAN = b"\xff\xda\x00\x0c\x03"


def with_segment(data, marker, payload):
    return data[:2] + bytes([255, marker]) + (len(payload) + 2).to_bytes(2) + payload + data[2:]


def with_bounds(data, bounds):
    at = data.index(SCAN) + 11
    return data[:at] + bounds + data[at + 3 :]


def between_scans(padding):
    header, scan, scans = PROGRESSIVE.partition(SCAN)
    return header + scan + scans.replace(b"\xff\xc4", padding + b"\xff\xc4")


HARMLESS = {
    "wrong bounds of a sequential scan": with_bounds(BASELINE, bytes(3)),
    "a zero before the end": BASELINE[:-2] + b"\0" + BASELINE[-2:],
    "zeros before the end": BASELINE[:-2] + bytes(99) + BASELINE[-2:],
    "zeros before the end of progressive scans": PROGRESSIVE[:-2] + bytes(99) + PROGRESSIVE[-2:],
    "zeros between progressive scans": between_scans(bytes(99)),
    "an unknown version of JFIF": BASELINE.replace(b"JFIF\0\x01", b"JFIF\0\x07"),
    "a damaged colour profile": with_segment(BASELINE, 0xE2, b"ICC_PROFILE\0\x05\x02" + bytes(9)),
    "padded markers": BASELINE.replace(b"\xff\xdb", b"\xff\xff\xff\xdb"),
    "bytes behind the end": BASELINE + b"anything",
    "several faults": with_segment(
        with_bounds(BASELINE, bytes(3))[:-2] + bytes(99) + BASELINE[-2:],
        0xE0,
        b"JFIF\0\x07" + bytes(8),
    ),
}


def cmyk(**options):
    return encoded(Image.fromarray(photo(96, 128)).convert("CMYK"), quality=90, **options)


@pytest.mark.parametrize("kind", HARMLESS)
def test_faults_that_do_not_concern_the_pixels_of_a_jpeg_are_no_damage(kind):
    for shrink in (0.0, 2.0):
        expected = PROGRESSIVE if "progressive" in kind else BASELINE
        np.testing.assert_array_equal(
            decoded(HARMLESS[kind], shrink=shrink), decoded(expected, shrink=shrink)
        )


@pytest.mark.parametrize("kind", [*HARMLESS, "CMYK", "progressive CMYK"])
def test_damaged_pixels_are_told_beside_harmless_faults_and_in_cmyk(kind):
    cmyks = {"CMYK": cmyk(), "progressive CMYK": cmyk(progressive=True)}
    data = (HARMLESS | cmyks)[kind]
    at = data.index(b"\xff\xda") + 300
    with pytest.raises(decode.BadImage, match="damaged JPEG"):
        decoded(data[:at] + bytes(40) + data[at + 40 :])


def test_bytes_before_the_end_of_a_jpeg_that_may_be_pixels_are_damage():
    with pytest.raises(decode.BadImage, match="extraneous bytes before marker 0xd9"):
        decoded(BASELINE[:-2] + b"\x12\x34" * 9 + BASELINE[-2:])


def test_a_png_whose_pixels_have_a_wrong_checksum_is_damaged():
    data = encoded(PHOTO, "PNG")
    at = data.index(b"IEND") - 5  # the last byte of the checksum of the last pixels
    with pytest.raises(decode.BadImage, match="^damaged PNG: the checksum of its pixels is wrong"):
        decoded(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_an_error_without_a_text_is_told_too(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(decode.Image, "open", fail)
    with pytest.raises(decode.BadImage, match="^MemoryError"):
        decode.kind(encoded(PHOTO, "PNG"))
