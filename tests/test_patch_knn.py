"""Segmentation by the nearest patches: shares of classes, the vote, the bank, and whole images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from supmim import sharding
from supmim.data import images
from supmim.errors import DataError, NumericsError
from supmim.evaluators import patch_knn
from supmim.evaluators.lib.predictions import Predictions
from tests.conftest import plain_readers
from tests.test_segmentation import Halves, png, small_config


class Colours:
    """Tokens of 4 x 4 pixels, with the patch's mean grey and its opposite."""

    def patch_tokens(self, params, batch):
        image = jnp.asarray(batch["image"], jnp.float32)[..., 0] / 255
        grey = image.reshape(len(image), 8, 4, 8, 4).mean(axis=(2, 4)).reshape(len(image), -1)
        return jnp.stack([grey, 1 - grey], axis=-1) * params["scale"]

    def predict(self, params, batch):
        raise AssertionError("the head is not asked")


def upside_down(mask):
    """Masks that say 1 of the dark half: only a bank of them can know it."""
    return png(1 - mask)


def evaluator_of(train, evaluation, batch_size=4, devices=1, **changes):
    config = small_config(**{"eval.pictures": 2} | changes)
    mesh = sharding.make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
    seen = {"train": images.training(train, config.data),
            "eval": images.evaluation(evaluation, config.data)}  # fmt: skip
    readers = dict.fromkeys(seen, plain_readers())
    predictions = Predictions(Colours(), seen, batch_size, mesh, readers)
    return patch_knn.Evaluator(predictions, config), predictions


def test_a_patch_has_a_share_of_each_class_and_none_for_pixels_that_do_not_count():
    labels = np.array([[0, 0, 1, 1], [0, 2, 1, -1], [2, 2, -1, -1], [2, 2, -1, -1]])
    expected = [[0.75, 0, 0.25], [0, 0.75, 0], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_array_equal(patch_knn.class_shares(labels, 2, 3), expected)


def test_the_nearest_of_the_neighbours_weigh_the_most():
    similarity = np.array([[0.9, 0.88, 0.5], [0.2, 0.2, 0.2]])
    shares = np.array([[[1.0, 0], [0, 1.0], [0, 1.0]], [[1.0, 0], [0.5, 0.5], [0, 1.0]]])
    weights = np.exp([0, -1, -20])
    first = weights[0] / weights.sum()
    expected = [[first, 1 - first], [0.5, 0.5]]
    np.testing.assert_allclose(patch_knn.vote(similarity, shares), expected, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "devices"), [(4, 1), (16, 8)])
def test_classes_come_from_the_training_masks(batch_size, devices):
    sizes = [(32, 32), (70, 40), (33, 90), (64, 64), (20, 25)]
    for change, low, high in ((png, 0.9, 1), (upside_down, 0, 0.05)):
        train, evaluation = Halves([(48, 64)] * 9, change), Halves(sizes, png)
        evaluator, predictions = evaluator_of(train, evaluation, batch_size, devices)
        results = evaluator.run({"scale": 1.0})
        assert low <= results["patch_knn/miou"] <= high
        assert {"patch_knn/iou/left", "floor/segmentation_miou"} <= results.keys()
        assert predictions.sources_read() == ("train", "eval")
    assert evaluator.protocol()["bank"] == 9 * patch_knn.PATCHES


def test_patches_and_their_classes_come_from_the_same_place(monkeypatch):
    monkeypatch.setattr(patch_knn, "PATCHES", 64)
    evaluator, _ = evaluator_of(Halves([(40, 90), (70, 33)] * 8, png), Halves([(32, 32)], png))
    bank, shares = evaluator.known_patches({"scale": 1.0})
    bright = np.asarray(bank.rows)[: bank.length, 0] > np.asarray(bank.rows)[: bank.length, 1]
    assert 0.1 < bright.mean() < 0.9 and len(shares) == 16 * 64
    assert (bright == (shares[:, 1] > 0.5)).mean() > 0.95
    again, _ = evaluator.known_patches({"scale": 1.0})
    np.testing.assert_array_equal(again.rows, bank.rows)


def test_patches_without_a_class_are_not_in_the_bank_and_a_source_of_them_is_an_error(
    monkeypatch,
):
    monkeypatch.setattr(patch_knn, "PATCHES", 64)
    left_out = {"data.ignore_label": 1}
    half = Halves([(64, 64)] * 40, png)
    evaluator, _ = evaluator_of(half, half, **left_out)
    bank, shares = evaluator.known_patches({"scale": 1.0})
    assert bank.length == len(shares) == 40 * 32 and (shares == [1, 0]).all()
    nothing = Halves([(32, 32)] * 3, lambda mask: png(np.ones_like(mask)))
    evaluator, _ = evaluator_of(nothing, half, **left_out)
    with pytest.raises(DataError, match="halves: no pixel of its masks counts"):
        evaluator.run({"scale": 1.0})


def test_hosts_that_read_other_images_are_an_error(monkeypatch):
    evaluator, _ = evaluator_of(Halves([(32, 32)] * 3, png), Halves([(32, 32)], png))
    monkeypatch.setattr("supmim.runtime.hosts.gather", lambda text: [text, "[2]"])
    with pytest.raises(DataError, match="not every process could read the same images"):
        evaluator.run({"scale": 1.0})


def test_tokens_that_are_not_finite_are_an_error():
    evaluator, _ = evaluator_of(Halves([(32, 32)] * 3, png), Halves([(32, 32)], png))
    with pytest.raises(NumericsError, match="patch tokens are not finite"):
        evaluator.run({"scale": jnp.nan})
