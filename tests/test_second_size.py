"""Encoder and tokenizer see the same part of an image, each at its own size."""

import jax
import numpy as np
import pytest
from PIL import Image

from supmim import config as config_lib
from supmim import sharding, train
from supmim.data import crop, data_identity, decode, images, pipeline
from supmim.data.augment import views
from supmim.data.sources import base
from supmim.errors import ConfigError
from supmim.tokenizers import patch_vq
from tests.conftest import digits, plain_readers, tiny_config
from tests.pictures import encoded, photo

CROPPED = {"data.crop": "inception", "data.channels": 3, "data.image_size": 16}
OWN_SIZE = {"tokenizer.image_size": 16, "tokenizer.patch_size": 4}


class Files(base.InMemory):
    def __init__(self):
        self.name, self.class_names = "files", ("a", "b")
        self.pixels = photo(480, 640)
        self.data = encoded(self.pixels, quality=90)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return base.Record(self.data, index % 2, f"file {index}")


def test_both_views_show_the_same_box_each_resized_once():
    source, data = Files(), tiny_config(**CROPPED).data
    whole = base.InMemory("x", source.pixels[None].repeat(4, 0), np.arange(4) % 2, "ab")
    found, _ = images.training(whole, data, images.Second(24)).take(range(4), [1] * 4)
    assert found["image"].shape == (4, 16, 16, 3)
    assert found["tokenizer_image"].shape == (4, 24, 24, 3)
    box_of = images.training(whole, data).box_of
    for index, shown in enumerate(found["tokenizer_image"]):
        box = box_of(480, 640, 1, index)
        by_hand = crop.resize(source.pixels, box, 24, "bilinear")
        np.testing.assert_array_equal(shown, by_hand)
    plain, _ = images.training(whole, data).take(range(4), [1] * 4)
    assert set(plain) == {"image", "label"}
    np.testing.assert_array_equal(plain["image"], found["image"])


def test_a_view_that_is_read_from_a_cache_changes_no_pixel_of_the_other(monkeypatch):
    shrinks, plain_decode = [], decode.decode

    def spy(data, header, channels, shrink):
        shrinks.append(shrink)
        return plain_decode(data, header, channels, shrink)

    monkeypatch.setattr(decode, "decode", spy)
    source, data = Files(), tiny_config(**CROPPED).data
    views = {
        name: images.training(source, data, second).take(range(4), [0] * 4)[0]["image"]
        for name, second in {
            "made": images.Second(64), "read": images.Second(64, made=False),
            "none": images.NO_SECOND,
        }.items()
    }  # fmt: skip
    np.testing.assert_array_equal(views["made"], views["read"])
    assert not (views["made"] == views["none"]).all()  # decoded smaller: enough for 16 alone
    np.testing.assert_allclose(np.array(shrinks[8:]) / shrinks[:4], 4)


@pytest.mark.parametrize("changes", [{"data.targets": "cache"}, {"mim_weight": 0.0},
                                     {"mim.target": "pixels"}], ids=str)  # fmt: skip
def test_an_arm_without_online_ids_sees_the_pixels_of_the_arm_with_them(changes):
    sizes = {**CROPPED, "tokenizer.image_size": 64, "tokenizer.patch_size": 8,
             "encoder.patch_size": 2}  # fmt: skip
    online, other = tiny_config(**sizes), tiny_config(**sizes, **changes)
    ours, theirs = (
        images.training(Files(), config.data, images.second_of(config)).take(range(4), [0] * 4)[0]
        for config in (online, other)
    )
    np.testing.assert_array_equal(ours["image"], theirs["image"])
    assert "tokenizer_image" in ours.keys() - theirs.keys()
    assert "tokenizer_image" not in pipeline.abstract_batch(other, sharding.make_mesh(8, 1, 1))


@pytest.mark.parametrize("option", ["flip", "shift", "rotate", "shear", "scale"])
def test_both_sizes_are_moved_alike(option):
    """A smooth picture at thrice the size, moved and then shrunk, is the small one moved."""
    moved = {"flip": True, "shift": 3.0, "rotate": 30.0, "shear": 20.0, "scale": 0.3}[option]
    data = tiny_config(**{"data.image_size": 16, "data.shift": 0.0, "data.rotate": 0.0,
                          f"data.{option}": moved}).data  # fmt: skip
    y, x = np.mgrid[:48, :48] / 48
    large = np.exp(-((x - 0.45) ** 2 + (y - 0.55) ** 2) / 0.07)[None, ..., None].repeat(8, 0)
    small = large.reshape(8, 16, 3, 16, 3, 1).mean(axis=(2, 4))
    keys = views.example_keys(0, np.zeros(8, int), np.arange(8))
    moved_large, moved_small = (np.asarray(views.geometry(keys, x, data)) for x in (large, small))
    shrunk = moved_large.reshape(8, 16, 3, 16, 3, 1).mean(axis=(2, 4))
    assert np.abs(moved_small - small).max() > 0.1
    np.testing.assert_allclose(moved_small, shrunk, atol=0.03)


@pytest.mark.slow
def test_a_run_tokenizes_and_draws_at_the_tokenizers_size(tmp_path):
    asked = {"eval.evaluators": "classification,reconstruction", "checkpoint.keep_best": 0}
    config = tiny_config(batch_size=104, total_epochs=3, **OWN_SIZE, **asked, **{"data.limit": 200})
    results = train.train_and_evaluate(config, tmp_path)
    assert 0 < results["reconstruction/token_accuracy"] <= 1
    assert (tmp_path / "pictures" / "reconstructions.png").is_file()
    assert patch_vq.load(tmp_path / "tokenizer").codes.shape == (16, 16)


def test_ids_are_those_of_the_larger_view():
    config = tiny_config(batch_size=8, **OWN_SIZE)
    mesh = sharding.make_mesh(8, 1, 1)
    seen = images.training(digits("train"), config.data, images.second_of(config))
    (batch,) = pipeline.train_batches(seen, 0, 8, mesh, 0, 1, plain_readers())
    shapes = pipeline.abstract_batch(config, mesh)
    assert {k: v.shape for k, v in batch.items()} == {k: v.shape for k, v in shapes.items()}
    small = np.asarray(batch["image"][0, ..., 0])
    by_hand = np.asarray(Image.fromarray(small).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(by_hand - np.asarray(batch["tokenizer_image"][0, ..., 0]).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer.image_size": 18}, "nearest: 16 or 20; the encoder's grid of 4 x 4"),
        ({"tokenizer.image_size": 20}, "patch_size=5 or config.tokenizer.image_size=16"),
        ({"data.image_size": 6}, "3 x 3 tokens: config.tokenizer.patch_size=4 at 16 pixels"),
    ],
)
def test_a_grid_that_differs_is_told_with_what_fits(changes, told):
    with pytest.raises(ConfigError) as error:
        tiny_config(**OWN_SIZE | changes)
    assert told.replace("patch_size=5 or", "config.tokenizer.patch_size=5 or") in str(error.value)


def test_debug_keeps_the_tokenizers_grid():
    small = config_lib.debug(tiny_config(**{
        "data.image_size": 32, "tokenizer.image_size": 64, "tokenizer.patch_size": 4
    }))  # fmt: skip
    assert (small.data.image_size, small.tokenizer.image_size) == (8, 16)


def test_a_size_of_its_own_is_part_of_the_fingerprint_and_the_same_size_is_not():
    source = digits("test")
    plain, same, other = (
        data_identity.of(source, source, tiny_config(**changes))
        for changes in ({}, {"tokenizer.image_size": 8}, OWN_SIZE)
    )
    assert plain == same and other == plain | {"tokenizer.image_size": 16}
    assert jax.tree.structure(plain) != jax.tree.structure(other)
