"""Boxes and their one resize, against Pillow and against their own distributions."""

import concurrent.futures
import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from supmim.config import options
from supmim.data import crop, decode, images
from supmim.data.sources import base
from tests.conftest import tiny_config
from tests.pictures import encoded, oriented, photo

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(300, 400), (400, 300), (256, 256), (257, 511), (60, 61), (1000, 90)]
INCEPTION = crop.RandomCrop(0, (0.2, 1.0), (3 / 4, 4 / 3))
DATA = tiny_config(**{
    "data.crop": "inception", "data.image_size": 32, "data.channels": 3, "data.area_min": 0.2,
}).data  # fmt: skip


def close_to_pillow(ours, theirs):
    """Within a level, but for a pixel in 200 where a cubic overshoots the ends of the scale."""
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.mean() < 0.25 and (difference > 1).mean() < 0.005


@pytest.mark.parametrize("method", PILLOW)
@pytest.mark.parametrize("box", [(10, 5, 250, 200), (0, 0, 64, 48), (30.5, 7.25, 41.5, 19.0)])
def test_a_box_is_resized_as_by_pillow(method, box):
    pixels = photo(240, 320)
    theirs = Image.fromarray(pixels).resize((56, 56), PILLOW[method], box=box)
    close_to_pillow(crop.resize(pixels, box, 56, method), theirs)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    theirs = np.asarray(Image.fromarray(grey).resize((56, 56), PILLOW[method], box=box))
    close_to_pillow(crop.resize(grey[..., None], box, 56, method), theirs[..., None])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", PILLOW)
def test_the_evaluation_view_is_the_short_side_resized_and_the_centre_cropped(size, method):
    """The view of DINO's kNN: torchvision's Resize and CenterCrop, on Pillow."""
    pixels = photo(*size)
    height, width = size
    scaled = (64, int(64 * width / height)) if height <= width else (int(64 * height / width), 64)
    whole = np.asarray(Image.fromarray(pixels).resize(scaled[::-1], PILLOW[method]))
    top, left = round((scaled[0] - 56) / 2), round((scaled[1] - 56) / 2)
    box = crop.CentralCrop("short_side", 64, 56)(height, width, 0, 0)
    close_to_pillow(crop.resize(pixels, box, 56, method), whole[top : top + 56, left : left + 56])


def test_a_long_side_is_rounded_down_as_by_torchvision():
    assert crop.short_side_size(100, 149, 32) == (32, 47)  # of 47.68
    assert crop.short_side_size(199, 100, 64) == (127, 64)  # of 127.36


@pytest.mark.parametrize("size", SIZES)
def test_the_stretched_view_ignores_the_aspect(size):
    """big_vision's few-shot view."""
    pixels = photo(*size)
    whole = np.asarray(Image.fromarray(pixels).resize((64, 64), PILLOW["bilinear"]))
    box = crop.CentralCrop("stretch", 64, 56)(*size, 0, 0)
    close_to_pillow(crop.resize(pixels, box, 56, "bilinear"), whole[4:60, 4:60])


def test_an_image_of_the_right_size_is_untouched():
    pixels = photo(32, 32)
    box = crop.CentralCrop("short_side", 32, 32)(32, 32, 0, 0)
    np.testing.assert_array_equal(crop.resize(pixels, box, 32, "bicubic"), pixels)


def test_random_boxes_have_the_stated_areas_aspects_and_places():
    boxes = np.array([INCEPTION(300, 400, 3, i) for i in range(3000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 400).all() and (bottom <= 300).all()
    area = (right - left) * (bottom - top) / (300 * 400)
    aspect = np.log((right - left) / (bottom - top))
    small = area < 0.5  # all of these fit, whatever their aspect
    low, high = np.log(INCEPTION.aspect)
    for values, ends in ((area[small], (0.2, 0.5)), (aspect[small], (low, high))):
        places = np.sort((values - ends[0]) / (ends[1] - ends[0]))
        uniform = np.linspace(0, 1, len(places))
        assert np.abs(places - uniform).max() < 1.63 / np.sqrt(len(places)) + 0.01  # KS, 1 %
    assert area.max() > 0.9
    room = left[small] / np.maximum(400 - (right - left)[small], 1)
    assert abs(room.mean() - 0.5) < 0.03


def test_a_crop_is_fixed_by_seed_epoch_and_index():
    def box(seed=0, epoch=1, index=2):
        return dataclasses.replace(INCEPTION, seed=seed)(300, 400, epoch, index)

    assert box() == box()
    assert len({box(), box(seed=1), box(epoch=2), box(index=3), box(epoch=2, index=1)}) == 5


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1)])
def test_extreme_shapes_have_a_box(size):
    left, top, right, bottom = INCEPTION(*size, 0, 0)
    assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
    for view in crop.EVAL_SIZES:
        box = crop.CentralCrop(view, 64, 56)(*size, 0, 0)
        pixels = crop.resize(photo(*size), box, 56, "bilinear")
        assert pixels.shape == (56, 56, 3)


def test_fast_and_shrunk_decoding_stay_near_the_exact_path():
    """Below 2 levels on average: the price of scaled decoding and fast kernels."""
    pixels = photo(640, 800)
    data = encoded(pixels, quality=90)
    source = base.Record(data, 0, "photo")
    seen = images.training(base.InMemory("x", pixels[None], np.zeros(1, int), "ab"), DATA)
    exact = decode.decode(data, decode.read_header(data, 10**9), 3)
    differences = []
    for index in range(20):
        box = seen.box_of(640, 800, 0, index)
        theirs = np.asarray(Image.fromarray(exact).resize((32, 32), PILLOW["bilinear"], box=box))
        differences.append(np.abs(seen.crop(source, 0, index)["image"].astype(int) - theirs).mean())
    assert 0 < np.mean(differences) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_of_a_shrunk_jpeg_shows_the_same_place(orientation):
    """Of grey ramps, on which a level is a place; their sides are no multiple of a factor."""
    places = np.mgrid[:425, :633] * (255 / 633)
    for ramp, (size, area) in itertools.product(places, ((48, 0.6), (80, 0.5), (160, 0.5))):
        record = base.Record(oriented(ramp.astype(np.uint8), orientation), 0, "ramp")
        whole = decode.decode(record.image, decode.read_header(record.image, 10**9), 3)
        stored = base.InMemory("x", whole[None], np.zeros(1, int), "ab")
        seen = images.training(stored, options.changed(DATA, image_size=size, area_min=area))
        for index in range(4):
            box = seen.box_of(*whole.shape[:2], 0, index)
            wanted = crop.resize(whole, box, size, "bilinear").astype(int)
            off = (seen.crop(record, 0, index)["image"] - wanted)[2:-2, 2:-2]
            assert np.abs(off).max() <= 1


def test_exact_decoding_gives_the_crops_of_exact_pixels():
    pixels = photo(640, 800)
    data = encoded(pixels, quality=90)
    record = base.Record(data, 0, "photo")
    stored = base.InMemory("x", pixels[None], np.zeros(1, int), "ab")
    exact = images.training(stored, options.changed(DATA, exact_decoding=True))
    whole = decode.decode(data, decode.read_header(data, 10**9), 3)
    for index in range(5):
        wanted = crop.resize(whole, exact.box_of(640, 800, 0, index), 32, "bilinear")
        np.testing.assert_array_equal(exact.crop(record, 0, index)["image"], wanted)


def test_the_options_reach_the_crops():
    data = tiny_config(**{
        "data.seed": 7, "data.crop": "inception", "data.area_min": 0.3, "data.area_max": 0.9,
        "data.aspect_min": 0.5, "data.aspect_max": 1.5, "data.eval_view": "stretch",
        "data.eval_resize": 10,
    }).data  # fmt: skip
    source = base.InMemory("x", photo(8, 8)[None], np.zeros(1, int), "ab")
    assert images.training(source, data).box_of == crop.RandomCrop(7, (0.3, 0.9), (0.5, 1.5))
    assert images.evaluation(source, data).box_of == crop.CentralCrop("stretch", 10, 8)
    still = tiny_config().data
    assert images.training(source, still).box_of == crop.CentralCrop("short_side", 8, 8)


def test_a_box_at_the_edge_of_a_shrunk_image_stays_inside():
    """The side times its own quotient may round above what it is a quotient of."""
    for factor in (2, 4, 8):
        for side in range(factor, 4500):
            small = -(-side // factor)
            for offset in (0.0, small - side / factor):
                whole = (0, 0, side, side)
                box = crop.scaled(whole, factor, (offset, offset), (small, small))
                assert min(box) >= 0 and max(box) <= small
    pixels = photo(752, 502)  # what 1503 x 1003 is decoded to: it stuck out
    box = crop.scaled((100.0, 100.0, 1003.0, 1503.0), 2, (0, 0), (752, 502))
    assert crop.resize(pixels, box, 224, "bilinear").shape == (224, 224, 3)


def test_threads_resize_side_by_side():
    pixels = photo(200, 300)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        views = list(pool.map(lambda _: crop.resize(pixels, (0, 0, 300, 200), 64, "bicubic"),
                              range(200)))  # fmt: skip
    assert all((view == views[0]).all() for view in views)
