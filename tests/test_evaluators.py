"""Evaluators against scikit-learn, NumPy and hand-worked cases; every example once."""

import functools
import subprocess
import sys
import tempfile
import tracemalloc
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from supmim import evaluators, sharding
from supmim.config import options
from supmim.config.tasks import EVALUATORS, FACTS, RESULTS
from supmim.errors import ConfigError, NumericsError
from supmim.evaluators import (
    classification,
    fewshot,
    knn,
    landmarks,
    linear,
    reconstruction,
    retrieval,
)
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib.predictions import Predictions
from supmim.tasks.registry import TASKS
from supmim.tasks.supmim import SupMIM
from supmim.tokenizers.patch_vq import PatchVQ
from tests.conftest import digit_views, plain_readers, tiny_config

rng = np.random.default_rng(0)
SPLITS = {name: digit_views(split, tiny_config()) for name, split in
          {"train": "tune", "eval": "test"}.items()}  # fmt: skip


def predictions_of(config, batch_size=104, shape=(1, 1, 1)):
    codes = jax.random.uniform(jax.random.key(9), (config.tokenizer.codebook_size, 4))
    task = SupMIM(config, PatchVQ(codes, 2, 1) if config.mim_weight else None)
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    params = jax.jit(task.init)(jax.random.key(0))
    head = params["classifier"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(3), head["kernel"].shape)
    readers = {name: plain_readers() for name in SPLITS}
    return Predictions(task, SPLITS, batch_size, mesh, readers), params


def test_names_are_those_of_the_config():
    assert list(EVALUATORS) == [n for facts in FACTS.values() for n in facts.evaluators]
    folder = Path(evaluators.__file__).parent
    assert EVALUATORS.keys() == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert tuple(TASKS) == options.OPTIONS["task"].choices
    assert tiny_config(mim_weight=0.0).evaluator_names == ("classification", "knn")
    assert tiny_config(class_weight=0.0).evaluator_names == ("knn", "reconstruction")
    with pytest.raises(ConfigError, match="leaves nothing to evaluate: class_weight=0 trains no"):
        tiny_config(**{"class_weight": 0.0, "eval.evaluators": "classification"})
    untrained = tiny_config(**{"class_weight": 0.0, "eval.evaluators": "all"}).evaluator_names
    assert not {"classification", "corruptions"} & set(untrained)
    every = tiny_config(**{"eval.evaluators": "all"}).evaluator_names
    assert list(every) == [n for n in FACTS["supmim"].evaluators if n != "landmarks"]  # no images


def test_what_can_rank_checkpoints_are_results_of_the_evaluators():
    """Of those whose results are numbered; test_train compares the others with a run."""
    voted = {f"dino_k{k}" for k in knn.VOTERS}
    assert {name for name in RESULTS["knn"] if name.startswith("dino")} == voted
    assert RESULTS["fewshot"] == tuple(f"{shots}_shot" for shots in fewshot.SHOTS)
    searched = {f"train_recall_at_{k}" for k in retrieval.IN_TRAIN}
    searched |= {f"recall_at_{k}" for k in retrieval.AMONG}
    assert set(RESULTS["retrieval"]) == searched | {"map", "map_at_r", f"mmp_at_{retrieval.MMP}"}
    none = np.zeros(0, int)
    graded = dict(landmarks.graded_metrics(none, dict.fromkeys(("easy", "hard", "junk"), none)))
    plain = dict(landmarks.plain_metrics(none, {"positives": none, "junk": none}))
    assert set(RESULTS["landmarks"]) == graded.keys() | plain.keys()
    assert RESULTS.keys() == EVALUATORS.keys()


def test_an_evaluator_that_is_not_asked_for_is_not_imported():
    code = "import sys, supmim.train; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_top_k_agrees_with_scikit_learn_and_ties_count_against_us():
    logits, label = rng.normal(size=(50, 10)), rng.integers(0, 10, 50)
    for k in (1, 5):
        theirs = top_k_accuracy_score(label, logits, k=k, labels=range(10))
        assert classification.top_k(logits, label, k) == theirs
    assert classification.top_k(np.zeros((4, 10)), np.arange(4), 1) == 0.0


def test_votes_agree_with_scikit_learn():
    rows, queries = (ranking.unit(rng.normal(size=(n, 12)), "x") for n in (300, 110))
    label = rng.integers(0, 5, 300)
    similarity, ids = ranking.Bank(rows, sharding.make_mesh(8, 1, 1), 1).nearest(queries, 20)
    theirs = KNeighborsClassifier(
        20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(rows, label)
    assert (knn.vote(similarity, label[ids], 5) == theirs.predict(queries)).mean() > 0.99


def test_vote_weighs_by_similarity():
    similarity = np.array([[0.9, 0.5, 0.5]])
    assert knn.vote(similarity, np.array([[2, 1, 1]]), 3) == [2]  # one near beats two far
    assert knn.vote(np.array([[0.51, 0.5, 0.5]]), np.array([[2, 1, 1]]), 3) == [1]
    # At DINO's 0.07, one beats two from a lead of 0.07 log 2 = 0.0485 on.
    leads = np.array([[0.549, 0.5, 0.5], [0.548, 0.5, 0.5]])
    assert knn.vote(leads, np.array([[2, 1, 1]] * 2), 3).tolist() == [2, 1]


def test_neighbours_vote_in_dinos_numbers_and_no_image_is_its_own():
    label, embedding = rng.integers(0, 5, 210), rng.normal(size=(210, 6))
    predictions = Predictions(types.SimpleNamespace(), {}, 8, sharding.make_mesh(8, 1, 1), {})
    out = {"embedding": embedding, "label": label, "index": np.arange(210)}
    predictions.fresh = lambda *_: out
    evaluator = knn.Evaluator(predictions, tiny_config())
    evaluator.floors = {}
    results = evaluator.run({})
    numbers = [10, 20, 100, 200]
    assert [name for name in results if "dino" in name] == [f"knn/dino_k{k}" for k in numbers]
    assert evaluator.protocol()["k"] == numbers
    assert results["knn/recall_at_1"] == 1  # of two sources that hold the same images
    rows = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    cosine = rows @ rows.T - 9 * np.eye(210)
    expected = (label[cosine.argmax(axis=1)] == label).mean()
    assert results["knn/leave_one_out_recall_at_1"] == expected < 1


@pytest.mark.parametrize("harm", ["nan", "zero", "constant"])
def test_embeddings_that_mean_nothing_are_an_error(harm):
    embedding = rng.normal(size=(5, 3))
    if harm == "constant":
        embedding[:] = embedding[0]
    else:
        embedding[2] = {"nan": np.nan, "zero": 0.0}[harm]
    told = "are equal" if harm == "constant" else "the first is image 2"
    with pytest.raises(NumericsError, match=told):
        ranking.unit(embedding, "x")


def test_pixel_floors_are_the_published_ones():
    views = (digit_views(split, tiny_config()) for split in ("train", "test"))
    floors = knn.pixel_floors(*views, sharding.make_mesh(8, 1, 1), mib=1)
    assert round(100 * floors["floor/knn_pixels_cosine"], 2) == 97.98
    assert round(100 * floors["floor/knn_pixels_euclidean"], 2) == 98.32


def test_pixel_floors_hold_no_matrix_of_all_pairs():
    """1,000 x 20,000 similarities would take 80 MB of the host."""

    class Pixels:
        def __init__(self, count):
            self.image = np.random.default_rng(count).integers(0, 256, (count, 2, 2, 1), np.uint8)

        def __len__(self):
            return len(self.image)

        def read_valid(self, index):
            return {"image": self.image, "label": self.image[:, 0, 0, 0]}

    mesh = sharding.make_mesh(8, 1, 1)
    knn.pixel_floors(Pixels(20_000), Pixels(1_000), mesh, mib=1)
    tracemalloc.start()
    try:
        knn.pixel_floors(Pixels(20_000), Pixels(1_000), mesh, mib=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6


def test_the_floor_is_a_random_encoder_with_a_key_of_its_own_taken_once(monkeypatch):
    task, seen = types.SimpleNamespace(init=jax.random.key_data), []
    predictions = Predictions(task, SPLITS, 8, sharding.make_mesh(8, 1, 1), {})

    def fresh(params, split, view=None):
        seen.append(np.asarray(params).tolist())
        return {"embedding": np.eye(3), "label": np.arange(3), "index": np.arange(3)}

    predictions.fresh = fresh
    evaluator, params = knn.Evaluator(predictions, tiny_config()), task.init(jax.random.key(0))
    out = predictions.of(params, "eval")
    results = evaluator.run(params)
    assert results == evaluator.run(params) and results["floor/random_encoder_recall_at_1"] == 1
    assert predictions.of(params, "eval") is out and len(seen) == 4
    knn.random_floor(predictions, 1, 1)
    assert seen[0] == seen[1] != seen[2] == seen[3] != seen[4] != seen[0]
    monkeypatch.setattr(knn, "RANDOM_FLOOR_LIMIT", 100)
    assert not any("random" in n for n in knn.Evaluator(predictions, tiny_config()).run(params))


@functools.cache
def results_of_all(*how):
    """But for landmarks, of other images, and logistic regression, which stops by rounding."""
    names = [n for n in FACTS["supmim"].evaluators if n not in ("landmarks", "logistic")]
    config = tiny_config(**{"eval.evaluators": ",".join(names)})
    predictions, params = predictions_of(config, *how)
    few = mock.patch.object(linear, "STEPS", 5)
    suite = evaluators.create(config, predictions)
    with few, tempfile.TemporaryDirectory() as folder:
        results = suite.run(params)
        suite.draw(Path(folder))
    return results


@pytest.mark.parametrize(
    ("batch_size", "shape"),
    [
        (300, (2, 2, 2)),
        pytest.param(8, (8, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_results_do_not_depend_on_batches_or_devices(batch_size, shape):
    """Law 8."""
    expected, ours = results_of_all(), results_of_all(batch_size, shape)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(ours[name] - value) < 0.5 / 297, name


def test_predictions_are_those_of_each_image_in_order_and_computed_once():
    predictions, params = predictions_of(tiny_config())
    out = predictions.of(params, "eval")
    np.testing.assert_array_equal(out["index"], np.arange(297))
    np.testing.assert_array_equal(out["label"], SPLITS["eval"].source.label)
    image = 2 * jnp.asarray(SPLITS["eval"].source.image[200:203] / 255, jnp.float32) - 1
    logits, encoded = predictions.task.model.apply({"params": params}, image, method="classify")
    np.testing.assert_allclose(out["embedding"][200:203], encoded.embedding, atol=1e-5)
    np.testing.assert_allclose(out["logits"][200:203], logits, atol=1e-5)
    assert predictions.of(params, "eval") is out
    changed = jax.tree.map(lambda x: x * 2, params)
    assert predictions.of(changed, "eval") is not out


def test_token_accuracy_counts_hidden_tokens_alone():
    predictions, params = predictions_of(tiny_config())
    evaluator = reconstruction.Evaluator(predictions, tiny_config())
    out, of_target = {}, predictions.task.target.results
    predictions.task.target.results = lambda scores: out.update(scores) or of_target(scores)
    results = evaluator.run(params)
    assert (out["mask"].sum(axis=1) == 8).all() and len(np.unique(out["mask"], axis=0)) > 100
    visible = out["mask"] == 0
    np.testing.assert_array_equal(out["filled_ids"][visible], out["target_ids"][visible])
    hits = (out["filled_ids"] == out["target_ids"])[~visible]
    np.testing.assert_allclose(results["reconstruction/token_accuracy"], hits.mean())
    counts = np.bincount(out["target_ids"][~visible])
    np.testing.assert_allclose(results["floor/token_accuracy"], counts.max() / counts.sum())


def test_nothing_hidden_has_no_token_accuracy():
    config = tiny_config(**{"mim.mask_ratio": 0.0})
    predictions, params = predictions_of(config)
    assert reconstruction.Evaluator(predictions, config).run(params) == {}
