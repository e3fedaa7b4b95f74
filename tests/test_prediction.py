"""Targets of masked image modelling: what each wants of a patch, and what it makes of an answer."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from supmim import masking, metrics, train
from supmim.config import options
from supmim.errors import ConfigError
from supmim.tasks import filling, targets
from supmim.tasks import supmim as task_lib
from supmim.tokenizers.patch_vq import PatchVQ
from tests.conftest import prepare, tiny_config
from tests.test_step import raw_batch

rng = np.random.default_rng(0)
PIXELS = ("pixels", "normalized_pixels")
IMAGE = rng.uniform(size=(3, 8, 8, 1)).astype(np.float32)


def task_of(target, **changes):
    config = tiny_config(batch_size=24, **{"mim.target": target} | changes)
    codes = jax.random.uniform(jax.random.key(9), (16, 4))
    return task_lib.SupMIM(config, PatchVQ(codes, 2, 1) if target == "tokens" else None)


@pytest.mark.parametrize("kind", ["random", "variable"])
def test_hidden_patches_are_filled_in_and_no_visible_one(kind):
    mim = options.Mim(masking=kind)
    token_mask = masking.draw(jax.random.key(0), 3, 8, mim)
    answers = jnp.broadcast_to(9, token_mask.ids_predict.shape)
    model = SimpleNamespace(apply=lambda *_, **__: answers)
    target = SimpleNamespace(of=lambda image, ids: ids, answer=lambda predicted: predicted)
    ids = jnp.asarray(rng.integers(0, 9, (3, 64)))
    found = filling.fill_in(model, {}, target, IMAGE, ids, token_mask)
    np.testing.assert_array_equal(found.filled, jnp.where(token_mask.mask > 0, 9, ids))
    assert 0 < float((token_mask.mask > 0).mean()) < 1


@pytest.mark.parametrize("target", PIXELS)
def test_pixels_are_those_of_the_mim_view_whatever_colours_the_class_view_has(target):
    task = task_of(target)
    batch = task.draw(prepare(task, None, raw_batch()), jax.random.key(0))
    ids = batch.token_mask.ids_predict
    predicted = jax.random.normal(jax.random.key(1), (*ids.shape, task.target.size))
    coloured = batch.replace(class_view=1 - batch.class_view)
    loss, other = (task.mim_terms(predicted, some)[0] for some in (batch, coloured))
    assert loss == other > 0


def test_names_are_those_of_the_config():
    assert tuple(targets.TARGETS) == options.OPTIONS["mim.target"].choices


def test_normalized_pixels_are_those_of_mae():
    """(x - mean) / sqrt(unbiased variance + 1e-6) of each patch."""
    found = targets.create(tiny_config(**{"mim.target": "normalized_pixels"})).of(IMAGE, None)
    patch = 2 * IMAGE[1, 2:4, 6:8].reshape(-1) - 1  # row 1, column 3 of 4 x 4
    expected = (patch - patch.mean()) / np.sqrt(((patch - patch.mean()) ** 2).sum() / 3 + 1e-6)
    np.testing.assert_allclose(found[1, 7], expected, rtol=1e-5)


def test_the_loss_on_pixels_is_the_squared_error_of_hidden_patches_alone():
    target = targets.create(tiny_config(**{"mim.target": "pixels"}))
    expected, found = rng.normal(size=(2, 2, 5, 4))
    mask = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], np.float32)
    by_hand = [((expected[0, [0, 2]] - found[0, [0, 2]]) ** 2).mean(), 0]
    np.testing.assert_allclose(target.loss(found, expected, mask), by_hand, rtol=1e-6)


@pytest.mark.parametrize("name", PIXELS)
def test_a_right_answer_is_the_image_and_explains_everything(name):
    target = targets.create(tiny_config(**{"mim.target": name}))
    expected, mask = target.of(IMAGE, None), jnp.ones((3, 16)).at[:, ::2].set(0)
    np.testing.assert_allclose(
        target.pictures(None, IMAGE, expected, expected)[0], IMAGE, rtol=1e-4, atol=1e-6
    )
    right = target.results(jax.device_get(target.scores(expected, expected, mask)))
    assert right == {"reconstruction/pixels_explained": 1.0}
    mean = jnp.broadcast_to(expected[:, ::2].mean(axis=1, keepdims=True), expected.shape)
    found = target.results(jax.device_get(target.scores(expected, mean, mask)))
    np.testing.assert_allclose(found["reconstruction/pixels_explained"], 0, atol=1e-6)
    assert target.results({"error": np.zeros(3), "spread": np.zeros(3)}) == {}


@pytest.mark.parametrize("passes", ["two", "one"])
@pytest.mark.parametrize("name", PIXELS)
def test_every_parameter_learns_from_pixels(name, passes):
    task = task_of(name, **{"mim.passes": passes, "class_weight": 0.0, "encoder.depth": 1})
    batch = jax.jit(lambda batch: prepare(task, None, batch))(raw_batch())
    assert batch.target_ids is None
    params = jax.jit(task.init)(jax.random.key(0))
    assert params["decoder"]["head"]["kernel"].shape == (16, 4)

    def loss(params):
        return task.loss_fn(params, task.draw(batch, jax.random.key(1)), jax.random.key(2))

    grads, totals = jax.jit(jax.grad(loss, has_aux=True))(params)
    found = metrics.summarize([totals])
    assert 0 < found["mim_loss"] < 9 and "token_accuracy" not in found
    learning = {k: v for k, v in grads.items() if k != "classifier"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(learning):
        name = jax.tree_util.keystr(path)
        assert jnp.abs(leaf).max() > 0 or ("key" in name and "bias" in name), name


@pytest.mark.slow
def test_a_run_on_pixels_asks_for_no_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(task_lib.tokenizers,
                        "load_or_fit", lambda *a, **k: pytest.fail("a tokenizer"))  # fmt: skip
    config = tiny_config(
        total_epochs=3,
        **{"data.limit": 104, "mim.target": "normalized_pixels", "tokenizer.patch_size": 7},
        **{"eval.evaluators": "classification,reconstruction", "checkpoint.keep_best": 0},
    )
    results = train.train_and_evaluate(config, tmp_path)
    assert results["reconstruction/pixels_explained"] < 1
    assert (tmp_path / "pictures" / "reconstructions.png").is_file()
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mim.target": "pixels", "data.targets": "ids"}, "ids, but config.mim.target=pixels"),
        ({"data.targets": "ids", "tokenizer.codebook_size": 65_537}, "65536 codes"),
        ({"mim.target": "normalized_pixels", "encoder.patch_size": 1}, "has no spread"),
    ],
)
def test_targets_that_do_not_fit_are_told(changes, told):
    with pytest.raises(ConfigError, match=told):
        tiny_config(**changes)
