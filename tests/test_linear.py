"""The linear probe: all heads at once equal one at a time; no choice looks at the test images."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from supmim import sharding
from supmim.config import options
from supmim.errors import DataError, NumericsError
from supmim.evaluators import fewshot, linear, logistic
from supmim.evaluators.lib.predictions import Predictions
from supmim.models import layers
from supmim.tasks import probe
from supmim.tasks.probe import Kind
from tests.conftest import tiny_config
from tests.test_evaluators import predictions_of

rng = np.random.default_rng(0)
KINDS = (Kind(1, False, 6, 9), Kind(2, True, 0, 12))
LABEL = rng.integers(0, 3, 70)
FEATURES = (rng.normal(size=(70, 12)) + 2 * LABEL[:, None] * np.eye(12)[7]).astype(np.float16)


def mesh_of(*shape):
    return sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


def one_head(features, label, rows, rate):
    """PyTorch's SGD with momentum, under a cosine, as anyone would write it."""
    x = np.pad(features.astype(np.float64), ((0, 0), (0, 1)), constant_values=1)
    head, velocity = (np.zeros((x.shape[1], 3)) for _ in range(2))
    for step, some in enumerate(rows):
        scores = np.exp(x[some] @ head)
        error = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[label[some]]
        velocity = 0.9 * velocity + x[some].T @ error / len(some)
        decay = (1 + np.cos(np.pi * step / len(rows))) / 2
        head -= rate * len(some) / 256 * decay * velocity
    return head


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_heads_trained_together_are_those_of_one_at_a_time_on_any_mesh(shape, monkeypatch):
    monkeypatch.setattr(linear, "BATCH_SIZE", 9)  # does not divide over the devices
    monkeypatch.setattr(linear, "CHUNK", 16)  # nor the steps over the chunks
    rows = linear.schedule(np.arange(3, 70))[:75]
    assert len(rows) % 16
    heads = linear.train(FEATURES, LABEL, rows, KINDS, 3, mesh_of(*shape), rates=(0.01, 3.0))
    for kind, found in zip(KINDS, heads, strict=True):
        for place, rate in enumerate((0.01, 3.0)):
            expected = one_head(FEATURES[:, kind.first : kind.last], LABEL, rows, rate)
            np.testing.assert_allclose(found[:, place], expected, atol=1e-5)
    right, loss = linear.score(heads, FEATURES, LABEL, np.arange(40, 70), KINDS, mesh_of(*shape))
    scores = FEATURES[40:, 6:9] @ np.asarray(heads[0])[:-1, 1] + np.asarray(heads[0])[-1, 1]
    assert right[0, 1] == pytest.approx((scores.argmax(axis=1) == LABEL[40:]).mean())
    expected = (np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(30), LABEL[40:]]).mean()
    assert loss[0, 1] == pytest.approx(expected, rel=1e-4)


def test_the_grid_is_that_of_dinov2():
    assert len(linear.LEARNING_RATES) == 13 and linear.LEARNING_RATES[::12] == (1e-5, 0.1)

    def heads(**changes):
        options = {f"encoder.{name}": value for name, value in changes.items()}
        return 13 * len(probe.kinds(tiny_config(**options).encoder))

    assert heads(depth=5, pool="cls") == heads(depth=5, pool="map") == 52
    assert heads(depth=5) == 26 and heads(depth=1, pool="cls") == 26


def test_every_pass_takes_each_row_once_and_the_split_is_a_tenth():
    rows, held_out = linear.split(1005)
    assert len(held_out) == 101 and set(rows) | set(held_out) == set(range(1005))
    np.testing.assert_array_equal(linear.split(1005)[1], held_out)
    order = linear.schedule(rows).ravel()
    assert set(order[: len(rows)]) == set(order[len(rows) : 2 * len(rows)]) == set(rows)


@pytest.mark.parametrize(
    ("count", "steps"), [(5, 1250), (1250, 1250), (3000, 3000), (13_000, 12_500)]
)
def test_heads_take_a_step_per_image_between_bounds_that_no_set_moves(count, steps):
    """A tenth as many passes over a few images would leave heads of any rate where they began."""
    assert linear.schedule(np.arange(count)).shape == (steps, min(256, count))


@pytest.mark.parametrize(("place", "told"), [(0, "smallest"), (6, ""), (12, "largest")])
def test_a_rate_at_an_end_of_the_grid_is_told(place, told, monkeypatch):
    monkeypatch.setattr(linear, "MIN_STEPS", 1)
    monkeypatch.setattr(linear, "best", lambda right, loss: (0, place))
    _, said = evaluated(easy(100), easy(40))
    assert said["steps"] == 90
    assert said["head"].get("learning_rate_is", "") == (f"the {told} of the grid" if told else "")


def test_features_are_the_normed_last_blocks_then_the_patches():
    config = tiny_config(**{"encoder.pool": "cls", "encoder.depth": 3, "mim_weight": 0.0})
    predictions, params = predictions_of(config)
    out = predictions.of(params, "eval", predictions.task.probe_features)
    assert out["features"].shape == (297, 4 * 16) and out["features"].dtype == np.float16
    image = 2 * jnp.asarray(predictions.sources["eval"].read([7])["image"] / 255, jnp.float32) - 1
    classify = functools.partial(predictions.task.model.apply, taps=(0, 1), method="classify")
    _, encoded = jax.jit(classify)({"params": params}, image)
    norm = {"params": params["encoder"]["norm"]}
    blocks = [layers.LayerNorm().apply(norm, encoded.taps[i])[0, 0] for i in (0, 1)]
    expected = np.concatenate([*blocks, encoded.embedding[0], encoded.latent[0].mean(axis=0)])
    np.testing.assert_allclose(out["features"][7], expected, atol=2e-3)
    one, with_patches, three, whole = probe.kinds(config.encoder)
    assert (one.first, one.last, with_patches.last, three.first, whole.last) == (32, 48, 64, 0, 64)
    assert predictions.of(params, "eval") is predictions.of(params, "eval")


@pytest.mark.parametrize(
    ("depth", "taps"), [(1, ()), (3, (0, 1)), (4, (0, 1, 2)), (12, (8, 9, 10))]
)
def test_the_last_four_blocks_are_read_or_all_if_there_are_fewer(depth, taps):
    encoder = options.changed(tiny_config().encoder, depth=depth)
    assert probe.taps(encoder) == taps  # and the embedding, which is the last block's summary
    assert {kind.blocks for kind in probe.kinds(encoder)} == {1, min(depth, 4)}
    assert max(kind.last for kind in probe.kinds(encoder)) == 16 * (len(taps) + 1)


def evaluated(train, evaluation, evaluator=linear):
    """A run over arrays instead of images: (features, label) each."""
    arrays = {name: {"features": x, "embedding": x.astype(np.float32), "label": label}
              for name, (x, label) in {"train": train, "eval": evaluation}.items()}  # fmt: skip
    task = SimpleNamespace(predict=None, probe_features=None)
    predictions = Predictions(task, {}, 8, mesh_of(1, 1, 1), {})
    predictions.fresh = lambda params, split, view: arrays[split]
    judge = evaluator.Evaluator(predictions, tiny_config())
    judge.kinds = (Kind(1, False, 0, 8), Kind(2, False, 0, train[0].shape[1]))
    return judge.run(None), judge.protocol()


def easy(count, noise=0.5):
    label = np.arange(count) % 10
    return (np.eye(16)[label] + noise * rng.normal(size=(count, 16))).astype(np.float16), label


@pytest.mark.parametrize("evaluator", [linear, logistic])
def test_the_choice_is_by_the_split_and_never_by_the_evaluation_images(evaluator):
    train, evaluation = easy(400), easy(300)
    results, said = evaluated(train, evaluation, evaluator)
    shuffled = evaluation[0], rng.permutation(evaluation[1])
    adverse, said_then = evaluated(train, shuffled, evaluator)
    assert said_then == said
    (found,), (turned,) = results.values(), adverse.values()
    assert found > 0.5 and turned < 0.3


def test_the_head_chosen_is_the_best_on_what_was_held_out():
    right = np.array([[0.5, 0.9, 0.9], [0.1, 0.9, 0.2]])
    assert linear.best(right, np.array([[0.0, 2.0, 1.0], [0.0, 1.5, 0.0]])) == (0, 2)
    assert linear.best(right, np.full((2, 3), 1.0)) == (0, 1)


def test_duplicates_of_all_rows_change_nothing_that_is_learned(monkeypatch):
    """In one batch of all rows the mean gradient is the same, whatever their number."""
    monkeypatch.setattr(linear, "BATCH_SIZE", 10**6)
    twice, mesh = np.concatenate([FEATURES, FEATURES]), mesh_of(2, 1, 1)
    rates = (0.1 * 256 / 70,), (0.1 * 256 / 140,)
    heads = [
        linear.train(x, np.resize(LABEL, len(x)), linear.schedule(np.arange(len(x)))[:10], KINDS, 3,
                     mesh, rates=rate)
        for x, rate in zip((FEATURES, twice), rates, strict=True)
    ]  # fmt: skip
    for one, other in zip(*heads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_logistic_regression_is_scikit_learns_at_the_chosen_c():
    train, evaluation = easy(300), easy(200)
    results, said = evaluated(train, evaluation, logistic)
    theirs = LogisticRegression(C=said["C"], max_iter=1000).fit(train[0].astype(float), train[1])
    expected = theirs.score(evaluation[0].astype(float), evaluation[1])
    assert results == {"logistic/top1": pytest.approx(expected)}


def test_the_smallest_c_of_the_best_on_what_was_held_out_is_chosen():
    label = (np.arange(300) % 4 == 0).astype(int)  # the strongest penalties answer 0 everywhere
    embedding = (0.1 * label[:, None] + 0.02 * rng.normal(size=(300, 3))).astype(np.float32)
    rows, held_out = linear.learnable_split(label)
    right = [
        LogisticRegression(C=c, max_iter=200).fit(embedding[rows], label[rows])
        .score(embedding[held_out], label[held_out]) for c in logistic.C_GRID
    ]  # fmt: skip
    expected = logistic.C_GRID[int(np.argmax(right))]
    assert logistic.choose(embedding, label) == expected > 1e-3 and max(right) > 0.9


def test_no_fit_of_logistic_regression_goes_on_for_long(monkeypatch):
    monkeypatch.setattr(logistic, "MAX_STEPS", 2)
    _, said = evaluated(easy(300, noise=2.0), easy(20), logistic)
    assert said["steps"] == 2


@pytest.mark.parametrize("evaluator", [linear, logistic, fewshot])
@pytest.mark.parametrize("place", ["training", "evaluation"])
@pytest.mark.parametrize("harm", [np.nan, 0.0, 1.0])
def test_features_that_mean_nothing_are_an_error_and_no_number(evaluator, place, harm):
    sources = {"training": easy(40), "evaluation": easy(20)}
    sources[place] = np.full_like(sources[place][0], harm), sources[place][1]
    with pytest.raises(NumericsError, match=f"of the {place} source"):
        evaluated(*sources.values(), evaluator)


@pytest.mark.parametrize("evaluator", [linear, logistic])
def test_what_cannot_be_probed_is_told(evaluator):
    features, label = easy(40)
    with pytest.raises(DataError, match="fewer than two classes"):
        evaluated((features, np.zeros_like(label)), easy(20), evaluator)
    with pytest.raises(DataError, match="from 1 training image and"):
        evaluated((features[:2], label[:2]), easy(20), evaluator)
    features[3, 5] = np.inf
    with pytest.raises(NumericsError, match="evaluation source .* the first is image 3"):
        evaluated(easy(40), (features, label), evaluator)
