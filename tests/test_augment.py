"""The views of an image: each operation against Pillow, each draw against its distribution."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage, stats
from sklearn.datasets import load_sample_images

from supmim import config as config_lib
from supmim import sharding
from supmim.config import options, presets
from supmim.data import pipeline
from supmim.data.augment import boxes, colour, mixing, operations, randaugment, views
from supmim.tasks.supmim import SupMIM
from supmim.tokenizers.patch_vq import PatchVQ
from tests.conftest import digits, prepare, tiny_config, tiny_preset

DATA = tiny_config().data
SIDE = 40
OFF = {"data.shift": 0.0, "data.rotate": 0.0}
COLOURS = {
    "data.three_augment": True, "data.colour_jitter": 0.3, "data.randaug_num": 2,
    "data.randaug_magnitude": 10.0, "data.erase": 0.5,
}  # fmt: skip
apply = jax.jit(randaugment.apply, static_argnames="level")
blur = jax.jit(operations.blur)
one_of_three = jax.jit(jax.vmap(colour._draw_one_of_three))
jitters = jax.jit(jax.vmap(lambda key: colour._draw_jitter(key, 0.3)))


def keys_of(count, epoch=0, seed=0):
    return views.example_keys(seed, jnp.full(count, epoch), jnp.arange(count))


@functools.cache
def photographs():
    """Square pieces of two photographs, uint8 [6, SIDE, SIDE, 3]."""
    pieces = [Image.fromarray(photograph[:, left : left + 427]).resize((SIDE, SIDE))
              for photograph in load_sample_images().images for left in (0, 100, 213)]  # fmt: skip
    return np.stack([np.asarray(piece) for piece in pieces])


def by_pillow(change, pictures=None):
    pictures = photographs() if pictures is None else pictures
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])


def assert_within(ours, theirs, levels):
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= levels


def applied(name, level, pictures=None, sign=0, centre=(0, 0)):
    """One operation of RandAugment on every picture."""
    pictures = photographs() if pictures is None else pictures
    count = len(pictures)
    drawn = randaugment.Draw(
        jnp.full(count, randaugment.OPERATIONS.index(name)), jnp.full(count, sign),
        jnp.broadcast_to(jnp.array(centre), (count, 2)),
    )  # fmt: skip
    return np.asarray(apply(jnp.asarray(pictures), drawn, level))


# Keys and geometry.


def test_augmentation_is_keyed_by_seed_epoch_and_index_alone():
    image = views.to_float(jnp.asarray(digits("train").image[:6]))
    move = jax.jit(functools.partial(views.geometry, data=DATA))
    whole = move(keys_of(6), image)
    np.testing.assert_array_equal(whole[3:], move(keys_of(6)[3:], image[3:]))
    assert not (whole == move(keys_of(6, epoch=1), image)).all()
    assert not (whole == move(keys_of(6, seed=1), image)).all()


def test_no_augmentation_is_the_identity():
    still = tiny_config(**{"data.shift": 0.0, "data.rotate": 0.0}).data
    image = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    np.testing.assert_array_equal(views.geometry(keys_of(3), image, still), image)


@pytest.mark.parametrize(
    "change",
    [{"data.shift": 2.0}, {"data.rotate": 40.0}, {"data.scale": 0.3}, {"data.shear": 20.0}],
)
def test_affine_stays_within_its_limits_and_agrees_with_scipy(change):
    still = {"data.shift": 0.0, "data.rotate": 0.0}
    data = tiny_config(**still | change).data
    (name, limit), = change.items()  # fmt: skip
    centre = np.array([3.5, 3.5])
    seen = []
    # Recover each map from three tracer images whose values are the coordinates themselves.
    y, x = np.mgrid[:8, :8] / 20 + 0.2
    tracer = np.stack([y, x, np.ones((8, 8))], axis=-1).astype(np.float32)
    picture = digits("train").image[5].astype(np.float32) / 255
    count = 40
    both = np.concatenate([tracer, picture], axis=-1)
    moved = np.asarray(views.geometry(keys_of(count), jnp.asarray(both)[None].repeat(count, 0),
                                        data))  # fmt: skip
    grid = np.stack(np.mgrid[:8, :8], axis=-1).reshape(-1, 2) - centre
    for out in moved:
        inside = out[..., 2].ravel() > 0.9999
        at = (out[..., :2].reshape(-1, 2) - 0.2) * 20
        design = np.concatenate([grid, np.ones((64, 1))], axis=1)
        solution, *_ = np.linalg.lstsq(design[inside], at[inside] - centre, rcond=None)
        matrix, offset = solution[:2].T, solution[2]
        if name != "data.shift":
            np.testing.assert_allclose(offset, 0, atol=5e-3)  # the centre stays
        theirs = ndimage.affine_transform(
            picture[..., 0], matrix, centre - matrix @ centre + offset, order=1, mode="constant"
        )
        target = grid @ matrix.T + offset + centre
        near = ((target > 0.01) & (target < 6.99)).all(axis=1).reshape(8, 8)
        mine = out[..., 3]
        np.testing.assert_allclose(mine[near], theirs[near], atol=2e-3)
        seen.append({
            "data.shift": np.abs(offset).max(),
            "data.rotate": abs(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))),
            "data.scale": np.abs(1 / np.linalg.norm(matrix, axis=0) - 1).max(),
            "data.shear": abs(np.degrees(np.arctan(matrix[1, 0]))),
        }[name])  # fmt: skip
    assert 0.7 * limit < max(seen) <= limit * 1.01


def test_flip_mirrors_half_of_the_images():
    data = tiny_config(**{"data.shift": 0.0, "data.rotate": 0.0, "data.flip": True}).data
    image = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (400, 8, 8, 1))
    move = jax.jit(functools.partial(views.geometry, data=data))
    out = np.asarray(move(keys_of(400), image))
    flipped = out[:, 0, 0, 0] == 7
    assert 0.4 < flipped.mean() < 0.6
    np.testing.assert_array_equal(out[flipped], np.asarray(image[0, :, ::-1])[None].repeat(
        flipped.sum(), 0))  # fmt: skip


# Operations.

# Pillow truncates what exact integers leave whole (autocontrast); XLA may round a float32 product
# and sum once where Pillow rounds twice (blends).
WITHIN_ONE = ("autocontrast", "colour", "contrast", "brightness", "sharpness")


def colour_operations(level):
    enhanced = 1.8 * level + 0.1
    return {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterize": lambda image: ImageOps.posterize(image, int(4 * level)),
        "solarize": lambda image: ImageOps.solarize(image, int(256 * level)),
        "colour": lambda image: ImageEnhance.Color(image).enhance(enhanced),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(enhanced),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(enhanced),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(enhanced),
    }


def geometric_operations(level):
    """For a positive sign."""

    def moved(*matrix):
        return lambda image: image.transform(
            image.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128)
        )

    shift = 100 * level * SIDE / 224
    return {
        "rotate": lambda image: image.rotate(30 * level, fillcolor=(128, 128, 128)),
        "shear_x": moved(1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": moved(1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": moved(1, 0, shift, 0, 1, 0),
        "translate_y": moved(1, 0, 0, 0, 1, shift),
    }


@pytest.mark.parametrize("level", [0.5, 1.5])
def test_colour_operations_equal_pillows(level):
    for name, theirs in colour_operations(level).items():
        assert_within(applied(name, level), by_pillow(theirs), int(name in WITHIN_ONE))


@pytest.mark.parametrize("level", [0.5, 1.5])
def test_geometric_operations_equal_pillows_both_ways(level):
    for name, theirs in geometric_operations(level).items():
        np.testing.assert_array_equal(applied(name, level, sign=0), by_pillow(theirs))
        back = geometric_operations(-level)[name]
        np.testing.assert_array_equal(applied(name, level, sign=1), by_pillow(back))


def test_solarize_add_and_cutout_act_as_defined():
    image = photographs().astype(int)
    added = np.where(image < 128, np.minimum(image + 55, 255), image)
    np.testing.assert_array_equal(applied("solarize_add", 0.5), added)
    half = int(40 * 1.5 * SIDE / 224)
    cut = photographs().copy()
    cut[:, 20 - half : 20 + half, : 3 + half] = 128  # the left edge cuts the box
    np.testing.assert_array_equal(applied("cutout", 1.5, centre=(20, 3)), cut)


def test_every_operation_is_tested_here():
    tested = {*colour_operations(1), *geometric_operations(1), "solarize_add", "cutout"}
    assert tested == set(randaugment.OPERATIONS) and len(randaugment.OPERATIONS) == 16


def test_at_level_zero_nothing_moves_and_posterize_keeps_a_bit():
    for name in (*geometric_operations(0), "cutout", "solarize_add"):
        np.testing.assert_array_equal(applied(name, 0.0), photographs())
    np.testing.assert_array_equal(applied("posterize", 0.0), photographs() & 128)


def test_operations_beyond_their_range_are_the_identity():
    for name in ("posterize", "solarize"):
        np.testing.assert_array_equal(applied(name, 2.0), photographs())


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_flat_and_nearly_flat_images_are_those_of_pillow(name):
    rng = np.random.default_rng(0)
    flat = np.full((1, 16, 16, 3), 77, np.uint8)
    two = rng.choice(np.array([3, 200], np.uint8), (1, 16, 16, 3))
    few = rng.integers(100, 104, (1, 16, 16, 3), dtype=np.uint8)
    one_bright = flat.copy()
    one_bright[0, 0, 0] = 78
    pictures = np.concatenate([flat, two, few, one_bright])
    theirs = by_pillow(colour_operations(0.5)[name], pictures)
    assert_within(applied(name, 0.5, pictures), theirs, int(name in WITHIN_ONE))


def test_a_grey_image_is_changed_as_its_rgb_copy():
    grey = photographs()[..., :1]
    for name in randaugment.OPERATIONS:
        ours = applied(name, 0.5, grey, centre=(9, 9))
        copy = applied(name, 0.5, grey.repeat(3, axis=-1), centre=(9, 9))
        np.testing.assert_array_equal(ours, copy[..., :1], err_msg=name)


def test_grey_and_solarize_equal_pillows():
    image = jnp.asarray(photographs())
    grey = np.asarray(operations.grey(image))[..., 0]
    np.testing.assert_array_equal(grey, by_pillow(lambda picture: picture.convert("L")))
    ours = np.asarray(operations.solarize(image, 128))
    np.testing.assert_array_equal(ours, by_pillow(ImageOps.solarize))


@pytest.mark.parametrize("radius", [0.1, 0.9, 2.0])
def test_blur_is_a_gaussian_and_near_pillows(radius):
    """Pillow's is three box filters, and repeats the edge of each: near the edges they differ."""
    image = photographs()
    ours = np.asarray(blur(jnp.asarray(image), jnp.full(len(image), radius)))
    sigma = (0, radius, radius, 0)
    exact = ndimage.gaussian_filter(image.astype(float), sigma, mode="nearest", radius=6)
    assert_within(ours, np.floor(exact + 0.5).astype(np.uint8), 1)
    theirs = by_pillow(lambda picture: picture.filter(ImageFilter.GaussianBlur(radius)))
    inner = slice(6, -6)
    assert_within(ours[:, inner, inner], theirs[:, inner, inner], 4)
    assert np.abs(ours.astype(int) - theirs).mean() < 1


# RandAugment.


def test_operations_signs_and_centres_are_drawn_uniformly():
    count = 4096
    for epoch in range(2):
        drawn = randaugment.draw(keys_of(count, epoch), jnp.zeros((count, 24, 30, 3), jnp.uint8))
        assert stats.chisquare(np.bincount(drawn.operation, minlength=16)).pvalue > 1e-3
        table = np.zeros((16, 2))
        np.add.at(table, (drawn.operation, drawn.sign), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-3
        assert abs(np.mean(drawn.sign) - 0.5) < 0.03
        for axis, side in enumerate((24, 30)):
            centres = np.bincount(drawn.centre[:, axis], minlength=side)
            assert len(centres) == side and stats.chisquare(centres).pvalue > 1e-3


def test_rounds_draw_anew_and_follow_one_another():
    keys, image = keys_of(6), jnp.asarray(photographs())
    out = jax.jit(lambda keys, image: randaugment.randaugment(keys, image, 3, 10.0))(keys, image)
    by_hand, seen = image, []
    for number in range(3):
        rounds = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(keys)
        drawn = randaugment.draw(rounds, by_hand)
        by_hand = apply(by_hand, drawn, 1.0)
        seen.append(np.asarray(drawn.operation))
    np.testing.assert_array_equal(out, by_hand)
    assert not (seen[0] == seen[1]).all() and not (seen[1] == seen[2]).all()


# 3-Augment, jitter, erasing.


def test_three_augment_takes_each_of_three_for_a_third():
    kind, radius = one_of_three(keys_of(3000))
    assert stats.chisquare(np.bincount(kind)).pvalue > 1e-3 and set(np.asarray(kind)) == {0, 1, 2}
    for one in range(3):  # the radius does not hang on the kind
        drawn = np.asarray(radius)[kind == one]
        assert stats.kstest(drawn, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3

    keys = keys_of(6, epoch=1)
    image, (kind, radius) = jnp.asarray(photographs()), one_of_three(keys)
    assert set(np.asarray(kind)) == {0, 1, 2}
    each = [
        np.asarray(operations.grey(image)).repeat(3, axis=-1),
        np.asarray(operations.solarize(image, 128)), np.asarray(blur(image, radius)),
    ]  # fmt: skip
    expected = np.stack([each[k][row] for row, k in enumerate(np.asarray(kind))])
    np.testing.assert_array_equal(jax.jit(colour.three_augment)(keys, image), expected)


def test_jitter_orders_and_factors_are_uniform():
    order, factors = jitters(keys_of(3000))
    orders, counts = np.unique(np.asarray(order), axis=0, return_counts=True)
    assert len(orders) == 6 and stats.chisquare(counts).pvalue > 1e-3
    for slot in np.asarray(factors).T:
        assert stats.kstest(slot, stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3


def test_jitter_is_pillows_enhancements_one_after_the_other():
    keys = keys_of(6)
    ours = np.asarray(jax.jit(colour.jitter)(keys, jnp.asarray(photographs()), 0.3))
    order, factors = jitters(keys)
    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    theirs = []
    for picture, kinds, by in zip(photographs(), order, factors, strict=True):
        image = Image.fromarray(picture)
        for kind, factor in zip(kinds, by, strict=True):
            image = steps[int(kind)](image).enhance(float(factor))
        theirs.append(np.asarray(image))
    assert_within(ours, np.stack(theirs), 3)  # a level at each step, stretched by the next


def test_erasing_fills_boxes_of_the_published_sizes_in_its_share_of_images():
    count, side = 1500, 32
    image = jnp.full((count, side, side, 1), 9, jnp.uint8)
    out = np.asarray(jax.jit(boxes.erase)(keys_of(count), image, 0.3))[..., 0]
    assert set(np.unique(out)) == {9, 128}
    erased = (out == 128).any(axis=(1, 2))
    assert abs(erased.mean() - 0.3) < 0.04
    draw = jax.jit(jax.vmap(lambda key: boxes._erased(key, 1000, 1000, 1.0)))
    box = np.asarray(draw(keys_of(count)))
    sides = box[:, 2:] - box[:, :2]
    assert (box >= 0).all() and (box <= 1000).all()
    whole = (sides < 1000).all(axis=1)
    area, aspect = sides.prod(axis=1)[whole] / 1e6, np.log(sides[:, 0] / sides[:, 1])[whole]
    assert area.min() > 0.018 and 0.38 < area.max() < 0.402
    assert abs(aspect).max() < np.log(1 / 0.3) + 0.05
    assert whole.mean() > 0.95 and abs(aspect.mean()) < 0.06
    assert stats.kstest(area[area < 0.27], stats.uniform(0.02, 0.25).cdf).pvalue > 1e-3
    rows = (out == 128)[erased].any(axis=2).sum(axis=1) * (out == 128)[erased].any(axis=1).sum(1)
    np.testing.assert_array_equal(rows, (out == 128)[erased].sum(axis=(1, 2)))  # a box is whole


# Views.


RGB = OFF | {"data.image_size": 16, "data.channels": 3, "tokenizer.codebook_size": 16}


def test_class_views_are_keyed_by_seed_epoch_and_index_alone():
    image = views.to_float(jnp.asarray(photographs()))
    view = jax.jit(functools.partial(views.class_view, data=tiny_config(**COLOURS).data))
    whole = view(keys_of(6), image)
    rows = np.array([4, 3, 5, 5, 0, 4])  # of the same number, so that one program makes both
    np.testing.assert_array_equal(whole[rows], view(keys_of(6)[rows], image[rows]))
    for other in (keys_of(6, epoch=1), keys_of(6, seed=1)):
        assert not (whole == view(other, image)).all(axis=(1, 2, 3)).any()


def test_a_class_view_without_colours_is_the_very_mim_view():
    image = jnp.zeros((2, 8, 8, 1))
    assert views.class_view(keys_of(2), image, DATA) is image


@pytest.mark.parametrize("name", [name for name in COLOURS if "magnitude" not in name])
def test_each_option_alone_makes_another_class_view(name):
    data = tiny_config(**{"data.randaug_magnitude": 10.0, name: COLOURS[name]}).data
    image = views.to_float(jnp.asarray(photographs()))
    view = jax.jit(functools.partial(views.class_view, data=data))
    assert not (view(keys_of(6), image) == image).all()


def task_of(config):
    codes = jax.random.uniform(jax.random.key(9), (16, 12))
    return SupMIM(config, PatchVQ(codes, 2, 3) if config.mim_weight else None)


def raw_batch():
    image = np.stack([np.asarray(Image.fromarray(picture).resize((16, 16)))
                      for picture in photographs()])  # fmt: skip
    return {"image": image, "label": np.arange(6), "valid": np.ones(6, np.float32),
            "index": np.arange(6), "epoch": np.zeros(6, np.int32)}  # fmt: skip


def prepared(config):
    task = task_of(config)
    return jax.jit(functools.partial(prepare, task))(task.frozen, raw_batch())


def test_options_of_the_class_view_reach_neither_mim_view_nor_targets():
    plain = prepared(tiny_config(**RGB, **{"data.flip": True}))
    both = prepared(tiny_config(**RGB, **COLOURS, **{"data.flip": True}))
    assert plain.class_view is None
    np.testing.assert_array_equal(both.mim_view, plain.mim_view)
    np.testing.assert_array_equal(both.target_ids, plain.target_ids)
    assert not (both.class_view == both.mim_view).all(axis=(1, 2, 3)).any()
    flipped = (np.abs(plain.mim_view - raw_batch()["image"] / 255) > 0.01).any(axis=(1, 2, 3))
    assert 0 < flipped.sum() < 6


def test_the_baseline_carries_the_class_view_alone():
    both, baseline = (
        prepared(tiny_config(mim_weight=weight, **RGB, **{"data.erase": 0.5})) for weight in (1, 0)
    )
    assert baseline.mim_view is None and baseline.target_ids is None
    np.testing.assert_array_equal(baseline.class_view, both.class_view)


def test_the_class_pass_gets_the_mixed_class_view():
    config = tiny_config(**RGB, **{"data.erase": 0.5, "data.mixup": 0.5})
    batch = prepared(config)
    drawn = jax.jit(task_of(config).draw)(batch, jax.random.key(1))
    share = float(drawn.class_target[0].max())
    by_hand = share * batch.class_view + (1 - share) * jnp.roll(batch.class_view, 1, axis=0)
    np.testing.assert_allclose(drawn.class_view, by_hand, atol=1e-6)
    np.testing.assert_array_equal(drawn.mim_view, batch.mim_view)


def test_devices_make_their_own_views_without_exchanging_anything():
    moved = {"data.flip": True, "data.shift": 1.0}
    config = tiny_config(batch_size=16, **RGB | COLOURS | moved)
    mesh = sharding.make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        task, raw = task_of(config), pipeline.abstract_batch(config, mesh)
        where = sharding.batch_sharding(mesh)
        text = jax.jit(task.prepare, out_shardings=where).lower(raw).compile().as_text()
    assert "u8[2,16,16,3]" in text  # two images on each device
    assert not re.findall("all-gather|all-reduce|all-to-all|collective-permute", text)


# Mixing.


def mixed(rng, image, target, valid=None, mixup=0.0, cutmix=0.0):
    valid = jnp.ones(len(image)) if valid is None else valid
    return mixing.mix(rng, image, target, valid, mixup=mixup, cutmix=cutmix)


def test_mixup_blends_neighbours_with_one_share_of_at_least_half():
    image, shares = jnp.arange(4.0).reshape(4, 1, 1, 1), []
    for seed in range(50):
        out, target = mixed(jax.random.key(seed), image, jnp.eye(4), mixup=0.5)
        share = np.asarray(target)[np.arange(4), np.arange(4)]
        assert np.ptp(share) == 0 and 0.5 <= share[0] <= 1
        by_hand = share[0] * np.arange(4) + (1 - share[0]) * np.roll(np.arange(4), 1)
        np.testing.assert_allclose(out.ravel(), by_hand, atol=1e-6)
        shares.append(share[0])
    assert np.std(shares) > 0.1


def test_cutmix_takes_a_box_from_the_neighbour_and_its_share_of_the_target():
    image = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 10, 12, 3))
    mix = jax.jit(functools.partial(mixed, cutmix=1.0))
    for seed in range(20):
        out, target = (np.asarray(x) for x in mix(jax.random.key(seed), image, jnp.eye(4)))
        taken = out[1, ..., 0] == 0
        for row in range(4):
            np.testing.assert_array_equal(out[row, ..., 0], np.where(taken, (row - 1) % 4, row))
        np.testing.assert_allclose(np.diag(target), 1 - taken.mean(), atol=1e-6)
        np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-6)
        assert taken.any(axis=1).sum() * taken.any(axis=0).sum() == taken.sum()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_area_of_cutmix_is_beta_cut_by_the_edges(alpha):
    rngs = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda rng: mixing._draw_cutmix(rng, (100, 100), alpha)[1]))
    area = 1 - np.asarray(draw(rngs))
    numbers = np.random.default_rng(0)
    half = np.sqrt(numbers.beta(alpha, alpha, 2000))[:, None] / 2
    centre = numbers.random((2000, 2))
    expected = np.prod(np.minimum(centre + half, 1) - np.maximum(centre - half, 0), axis=1)
    ours, theirs = (np.quantile(x, [0.3, 0.6, 0.9]) for x in (area, expected))
    assert np.abs(ours - theirs).max() < 0.05
    assert abs(area.mean() - expected.mean()) < 0.02


def test_with_both_a_step_takes_mixup_or_cutmix_with_equal_chance():
    draw = jax.jit(jax.vmap(lambda rng: mixing._draw(rng, (12, 12), 0.8, 1.0)))
    own, share = draw(jax.random.split(jax.random.key(0), 1000))
    boxed = np.isin(own, (0, 1)).all(axis=(1, 2, 3, 4))
    assert 0.44 < boxed.mean() < 0.56
    blended = np.asarray(share)[~boxed]
    assert (np.ptp(np.asarray(own)[~boxed], axis=(1, 2, 3, 4)) == 0).all() and blended.min() >= 0.5


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_padding_is_never_mixed_into_an_image(kind):
    image = jnp.asarray([1.0, 2.0, jnp.inf])[:, None, None, None]
    image = jnp.broadcast_to(image, (3, 8, 8, 1))
    valid = jnp.asarray([1.0, 1.0, 0.0])
    for seed in range(5):
        out, target = mixed(jax.random.key(seed), image, jnp.eye(3), valid, **{kind: 1.0})
        assert np.isfinite(np.asarray(out[:2])).all()
        np.testing.assert_allclose(out[0], 1.0, rtol=1e-6)
        np.testing.assert_allclose(target[0], [1, 0, 0], atol=1e-6)
        assert target[1, 0] > 0 or kind == "cutmix"


# Presets.


@pytest.mark.parametrize("name", presets.AUGMENTATIONS)
def test_known_augmentations_are_valid_and_replace_one_another(name):
    config, clean = tiny_preset(), config_lib.get_config()
    for each in ("deit3", name):
        config.data.update(**config_lib.augmentation(each))
    config_lib.validate(config)
    clean.data.update(**config_lib.augmentation(name))
    for path, option in options.OPTIONS.items():
        if option.augmentation:
            assert config_lib.flatten(config)[path] == config_lib.flatten(clean)[path]
