"""Segmentation by the nearest patches: shares of classes, the vote, the bank, and whole images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from supmim import sharding
from supmim.commands import evaluate
from supmim.data import images
from supmim.data.bad_records import BadRecords
from supmim.data.sources import base, scenes
from supmim.errors import ConfigError, DataError, NumericsError
from supmim.evaluators import patch_knn
from supmim.evaluators.lib.predictions import Predictions
from supmim.tasks.registry import TASKS
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


def test_a_patch_has_a_share_of_each_class_of_its_counted_pixels():
    pixels = np.array([[0, 0, 1, 2], [-1, -1, 1, -1], [2, 0, -1, -1]])
    expected = [[0.5, 0.25, 0.25], [0, 1, 0], [0.5, 0, 0.5]]
    np.testing.assert_array_equal(patch_knn.class_shares(pixels, 3), expected)


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
    assert evaluator.protocol()["bank"] == 9 * patch_knn.PATCHES_PER_IMAGE


def test_patches_and_their_classes_come_from_the_same_place(monkeypatch):
    monkeypatch.setattr(patch_knn, "PATCHES_PER_IMAGE", 64)
    evaluator, _ = evaluator_of(Halves([(40, 90), (70, 33)] * 8, png), Halves([(32, 32)], png))
    rows, shares = evaluator.known_patches({"scale": 1.0})
    bright = rows[:, 0] > rows[:, 1]
    assert 0.1 < bright.mean() < 0.9 and len(shares) == len(rows) == 16 * 64
    assert (bright == (shares[:, 1] > 0.5)).mean() > 0.95
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    again, _ = evaluator.known_patches({"scale": 1.0})
    np.testing.assert_array_equal(again, rows)


def test_patches_without_a_class_are_not_in_the_bank(monkeypatch):
    monkeypatch.setattr(patch_knn, "PATCHES_PER_IMAGE", 64)
    half = Halves([(64, 64)] * 40, png)
    evaluator, _ = evaluator_of(half, half, **{"data.ignore_label": 1})
    rows, shares = evaluator.known_patches({"scale": 1.0})
    assert len(rows) == len(shares) == 40 * 32 and (shares == [1, 0]).all()


def test_a_bank_may_have_fewer_patches_than_neighbours(monkeypatch):
    monkeypatch.setattr(patch_knn, "PATCHES_PER_IMAGE", 1)
    evaluator, _ = evaluator_of(Halves([(32, 32)] * 4, png), Halves([(32, 32)], png))
    assert evaluator.run({"scale": 1.0})["patch_knn/miou"] > 0.3
    assert evaluator.protocol()["bank"] == evaluator.protocol()["k"] == 4


def broken(mask):
    return png(mask)[:60]


def test_unreadable_training_images_are_listed_and_left_out(tmp_path):
    first = (40, 40)  # readers take images in any order
    sizes = [first, (32, 32), (32, 32), (32, 32)]
    train = Halves(sizes, lambda mask: (broken if mask.shape == first else png)(mask))
    evaluator, predictions = evaluator_of(train, Halves([(32, 32)], png))
    told = []
    note = BadRecords(tmp_path / "bad_records.jsonl", told.append).of(train, 0.5)
    predictions.readers["train"] = plain_readers(note)
    assert evaluator.run({"scale": 1.0})["patch_knn/miou"] > 0.9
    assert predictions.unreadable() == {"unreadable/train": 1.0}
    assert len(told) == 1 and "pair 0" in told[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda mask: png(np.ones_like(mask)), "halves: no pixel of its masks counts"),
        (broken, "halves: none of 3 images with its mask can be read"),
    ],
)
def test_a_training_source_without_a_class_is_an_error(change, told):
    train = Halves([(32, 32)] * 3, change)
    evaluator, _ = evaluator_of(train, Halves([(32, 32)], png), **{"data.ignore_label": 1})
    with pytest.raises(DataError, match=told):
        evaluator.run({"scale": 1.0})


def test_hosts_that_read_other_images_are_an_error(monkeypatch):
    evaluator, _ = evaluator_of(Halves([(32, 32)] * 3, png), Halves([(32, 32)], png))
    monkeypatch.setattr("supmim.runtime.hosts.gather", lambda text: [text, "[2]"])
    with pytest.raises(DataError, match="not every process could read the same images"):
        evaluator.run({"scale": 1.0})


@pytest.mark.parametrize("scale", [np.nan, 0.0])
def test_tokens_that_cannot_be_compared_are_an_error(scale):
    evaluator, _ = evaluator_of(Halves([(32, 32)] * 3, png), Halves([(32, 32)], png))
    told = "embeddings of halves cannot be compared: 48 are zero or not finite; the first is patch"
    with pytest.raises(NumericsError, match=told):
        evaluator.run({"scale": scale})


def test_tokens_of_evaluation_that_are_not_finite_are_an_error(monkeypatch):
    evaluator, _ = evaluator_of(Halves([(32, 32)] * 3, png), Halves([(32, 32)], png))
    known = evaluator.known_patches({"scale": 1.0})
    monkeypatch.setattr(evaluator, "known_patches", lambda params: known)
    with pytest.raises(NumericsError, match="the patch tokens of 1 of 1 window are not finite"):
        evaluator.run({"scale": np.nan})


def test_tokens_are_those_of_patches_alone():
    """Neither the class token nor registers; of any compute dtype."""
    config = small_config(**{"encoder.pool": "cls", "encoder.registers": 2,
                             "encoder.dtype": "bfloat16"})  # fmt: skip
    task = TASKS["segmentation"].abstract(config)
    image = jnp.zeros((3, 32, 32, 1), jnp.uint8)
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.eval_shape(task.patch_tokens, params, {"image": image}).shape == (3, 64, 16)


def test_patches_are_not_searched_among_those_of_the_same_images():
    config = small_config(**{"eval.evaluators": "all"})
    source = scenes.load("validation", base.WHOLE)
    assert evaluate.meaningless(config, config, "", source, source).keys() >= {"patch_knn"}
    other = scenes.load("tune", base.WHOLE)
    assert not evaluate.meaningless(config, config, "", other, source)


def test_a_class_can_rank_checkpoints():
    ranked = {"eval.evaluators": "patch_knn", "checkpoint.keep_best_metric": "patch_knn/iou/0"}
    assert small_config(**ranked).checkpoint.keep_best_metric == "patch_knn/iou/0"
    with pytest.raises(ConfigError, match="segmentation/miou is not a higher-is-better result"):
        small_config(**{"eval.evaluators": "patch_knn"})
