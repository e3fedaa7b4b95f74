"""Masks: exact counts, their shapes in the picture, independence between images."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from supmim import masking
from supmim.config import options


def draw(batch=64, grid=8, seed=0, **changes):
    return masking.draw(jax.random.key(seed), batch, grid, options.Mim(**changes))


@pytest.mark.parametrize("kind", ["random", "block", "units"])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75])
def test_every_image_hides_the_same_exact_count(kind, ratio):
    mask = draw(masking=kind, mask_ratio=ratio)
    assert (mask.mask.sum(axis=1) == round(64 * ratio)).all()
    assert mask.num_keep == mask.num_visible == 64 - round(64 * ratio)


@pytest.mark.parametrize("kind", ["random", "block", "units", "variable"])
def test_order_is_a_permutation_with_hidden_patches_last(kind):
    mask = draw(masking=kind)
    assert (jnp.sort(mask.ids_shuffle, axis=1) == jnp.arange(64)[None]).all()
    in_order = masking.take_tokens(mask.mask, mask.ids_shuffle)
    assert (jnp.diff(in_order, axis=1) >= 0).all()
    assert (masking.take_tokens(mask.mask, mask.ids_shuffle[:, : mask.num_visible]) == 0).all()


@pytest.mark.parametrize("kind", ["random", "block", "units"])
def test_each_image_has_its_own_mask_and_each_patch_its_turn(kind):
    mask = draw(batch=512, masking=kind).mask
    assert len(np.unique(np.asarray(mask), axis=0)) > 200
    share = np.asarray(mask.mean(axis=0))
    assert share.min() > 0.08 and share.max() < 0.92
    assert not (draw(seed=1, masking=kind).mask == draw(masking=kind).mask).all()


def test_units_are_hidden_whole():
    mask = np.asarray(draw(masking="units", unit=2).mask).reshape(-1, 4, 2, 4, 2)
    assert (mask == mask[:, :, :1, :, :1]).all()


def test_blocks_are_more_connected_than_random_patches():
    def neighbours(mask):
        square = np.asarray(mask).reshape(-1, 8, 8)
        return (square[:, 1:] * square[:, :-1]).mean()

    assert neighbours(draw(512, masking="block").mask) > 1.3 * neighbours(draw(512).mask)


def test_one_large_block_is_a_rectangle():
    mask = np.asarray(draw(masking="block", block_min=32, mask_ratio=0.25).mask).reshape(-1, 8, 8)
    for picture in mask:  # 16 patches of one rectangle of 32: they span no more than it
        rows, columns = picture.any(axis=1).sum(), picture.any(axis=0).sum()
        assert rows * columns <= 40


def test_rectangles_have_the_stated_areas_and_log_uniform_aspects():
    scores = np.asarray(masking.block_order(jax.random.key(0), 2000, 16, 36, 64))
    first = scores.reshape(-1, 16, 16) >= masking.BLOCK_DRAWS  # the most urgent rectangle
    height, width = first.any(axis=2).sum(axis=1), first.any(axis=1).sum(axis=1)
    assert (first.sum(axis=(1, 2)) == height * width).all()
    assert abs((height * width).mean() - 50) < 1
    aspect = np.log(height / width)
    assert abs(aspect.mean()) < 0.05 and abs(aspect.std() - np.log(1 / 0.3) / 3**0.5) < 0.05


def test_variable_ratio_is_one_per_batch_with_a_fixed_floor():
    masks = [draw(masking="variable", seed=seed) for seed in range(200)]
    ratios = np.array([float(mask.mask.mean()) for mask in masks])
    assert all(len(np.unique(mask.mask.sum(axis=1))) == 1 for mask in masks)
    assert {mask.num_keep for mask in masks} == {32} and {m.num_visible for m in masks} == {0}
    assert ratios.min() >= 0.5 and ratios.max() <= 1.0
    assert abs(ratios.mean() - 0.694) < 0.02  # MAGE's truncated normal, method.md 2.2
    assert len(np.unique(ratios)) > 15


def test_mask_token_keeps_every_patch_in():
    mask = draw(hidden="mask_token")
    assert mask.num_keep == 64 and mask.ids_keep.shape == (64, 64)
    assert mask.ids_predict.shape == (64, 32)


def test_num_hidden_is_in_whole_units():
    assert masking.num_hidden(64, 0.6, unit=2) == 4 * (16 - round(16 * 0.4))
    assert masking.num_hidden(196, 0.75) == 147


def test_the_count_of_visible_units_is_rounded_to_the_nearest():
    # BEiT's 75 of 196, MAGE's 64 of 256 at its least; 3.9 and 3.6 visible units are 4, 3.1 are 3.
    assert [masking.num_hidden(n, r) for n, r in ((196, 75 / 196), (256, 0.75))] == [75, 192]
    assert [masking.num_hidden(10, ratio) for ratio in (0.61, 0.64, 0.69)] == [6, 6, 7]
    assert masking.num_hidden(40, 0.61, unit=2) == 24


def test_a_share_of_the_patches_is_kept_at_random():
    mask = masking.keep_some(jax.random.key(0), 512, 4, 0.75)
    assert mask.ids_keep.shape == (512, 12)
    seen = (np.asarray(mask.ids_keep)[:, :, None] == np.arange(16)).any(axis=1)
    assert (seen.sum(axis=1) == 12).all() and len(np.unique(seen, axis=0)) > 200
    assert seen.mean(axis=0).min() > 0.6 and seen.mean(axis=0).max() < 0.9
    assert (masking.take_tokens(mask.mask, mask.ids_keep) == 0).all()


def test_a_loss_on_all_patches_has_them_all_predicted_and_the_same_ones_hidden():
    some, all_of_them = draw(mask_ratio=0.75), draw(mask_ratio=0.75, loss_on="all")
    assert some.ids_predict.shape == (64, 48) and all_of_them.ids_predict.shape == (64, 64)
    assert (some.mask == all_of_them.mask).all() and (some.ids_keep == all_of_them.ids_keep).all()


def test_rows_are_the_first_ones_of_every_group():
    tree = {"x": jnp.arange(24).reshape(12, 2), "none": None}
    taken = masking.take_rows(tree, Fraction(2, 3))
    np.testing.assert_array_equal(taken["x"][:, 0] // 2, [0, 1, 3, 4, 6, 7, 9, 10])
    assert taken["none"] is None and masking.take_rows(tree, Fraction(1)) is tree
