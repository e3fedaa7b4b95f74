"""Corrupted evaluation images: each kind by hand, and the mean of top-1 over strengths."""

import jax
import numpy as np
import pytest

from supmim import sharding
from supmim.evaluators import corruptions
from supmim.evaluators.lib.predictions import Predictions
from supmim.tasks.registry import TASKS
from tests.conftest import digit_views, plain_readers, tiny_config

KEYS = jax.random.split(jax.random.key(0), 2)


def images(side=16):
    return np.random.default_rng(0).random((2, side, side, 3), np.float32)


def test_contrast_keeps_the_mean_and_shrinks_the_rest():
    image = images()
    found = np.asarray(corruptions.contrast(KEYS, image, 0.2))
    np.testing.assert_allclose(found.mean(axis=(1, 2)), image.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.std(axis=(1, 2)), 0.2 * image.std(axis=(1, 2)), rtol=1e-5)


def test_pixels_become_the_means_of_squares():
    image = images()
    found = np.asarray(corruptions.pixelation(KEYS, image, 0.25)).reshape(2, 4, 4, 4, 4, 3)
    assert (found == found[:, :, :1, :, :1]).all()
    flat = np.full((2, 16, 16, 3), 0.3, np.float32)
    np.testing.assert_allclose(corruptions.pixelation(KEYS, flat, 0.4), flat, rtol=1e-6)
    assert np.unique(corruptions.pixelation(KEYS, image, 0.01)[0, ..., 0]).size == 1


def test_blur_is_a_mean_with_gaussian_weights_of_a_share_of_the_side():
    spot = np.zeros((1, 33, 33, 1), np.float32)
    spot[0, 16, 16] = 1
    found = np.asarray(corruptions.blur(KEYS[:1], spot, 1 / 11))[0, ..., 0]  # deviation 3
    assert found.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(found[16, 19] / found[16, 16], np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-7)
    flat = np.full((1, 8, 8, 1), 0.7, np.float32)
    np.testing.assert_allclose(corruptions.blur(KEYS[:1], flat, 0.2), flat, rtol=1e-5)


def test_noise_has_its_deviation_and_is_each_images_own():
    grey = np.full((2, 64, 64, 3), 0.5, np.float32)
    found = np.asarray(corruptions.noise(KEYS, grey, 0.18)) - 0.5
    assert found.std() == pytest.approx(0.18, rel=0.03)
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] < 0.05
    np.testing.assert_array_equal(corruptions.noise(KEYS[1:], grey[1:], 0.18) - 0.5, found[1:])


def test_results_are_means_of_top1_over_strengths_whatever_the_batches():
    config = tiny_config(**{"eval.evaluators": "corruptions", "checkpoint.keep_best": 0})
    seen = digit_views("test", config)
    task = TASKS[config.task].abstract(config)
    params = jax.jit(task.init)(jax.random.key(0))
    head = params["classifier"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    found = []
    for batch_size, devices in ((297, 1), (64, 8)):
        mesh = sharding.make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            sources = {"train": seen, "eval": seen}
            readers = dict.fromkeys(sources, plain_readers())
            predictions = Predictions(task, sources, batch_size, mesh, readers)
            judge = corruptions.Evaluator(predictions, config)
            found.append(judge.run(params))
    assert found[0] == pytest.approx(found[1], abs=0.011)
    names = ["noise", "blur", "contrast", "pixelation", "top1"]
    assert list(found[0]) == [f"corruptions/{name}" for name in names]
    by_kind = [found[0][f"corruptions/{name}"] for name in names]
    assert by_kind[-1] == pytest.approx(np.mean(by_kind[:-1]))

    batch = seen.take(np.arange(297), np.zeros(297, int))[0]
    batch |= {"index": np.arange(297), "epoch": np.zeros(297, int)}
    images = np.asarray(corruptions.corrupted(batch))
    assert images.shape == (12, 297, 8, 8, 1) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 255
    logits = [task.predict(params, {**batch, "image": image})["logits"] for image in images[6:9]]
    tops = [(np.argmax(x, axis=1) == batch["label"]).mean() for x in logits]
    assert found[0]["corruptions/contrast"] == pytest.approx(np.mean(tops), abs=0.004)
