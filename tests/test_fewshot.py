"""Few-shot ridge against scikit-learn; draws that nest."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from supmim.evaluators import fewshot
from supmim.evaluators.lib.predictions import Predictions
from tests.conftest import tiny_config

rng = np.random.default_rng(0)


@pytest.mark.parametrize("count", [12, 90])  # fewer and more than the width
def test_ridge_agrees_with_scikit_learn(count):
    embedding, label = rng.normal(2, 3, (count, 30)), rng.integers(0, 4, count)
    queries = rng.normal(2, 3, (50, 30))
    bank, seen = fewshot.whiten(embedding, queries)
    assert (bank[:, -1] == 100).all() and bank.shape[1] == 31
    np.testing.assert_allclose(bank[:, :-1].mean(axis=0), 0, atol=1e-9)
    theirs = Ridge(alpha=2**10, fit_intercept=False).fit(bank, 2 * np.eye(4)[label] - 1)
    found = seen @ fewshot.ridge(bank, label, 4)
    np.testing.assert_allclose(found, theirs.predict(seen), rtol=1e-6, atol=1e-9)


def test_queries_are_whitened_by_the_shots_and_not_by_themselves():
    shots, queries = rng.normal(2, 3, (40, 5)), rng.normal(-7, 0.5, (30, 5))
    expected = (queries - shots.mean(axis=0)) / (shots.std(axis=0) + 1e-5)
    for some in (queries, queries[:1]):
        found = fewshot.whiten(shots, some)[1]
        np.testing.assert_allclose(found[:, :-1], expected[: len(some)], rtol=1e-6)
        assert (found[:, -1] == 100).all()


def test_draws_have_each_class_nest_and_differ_by_seed():
    label = np.repeat([3, 0, 1], [40, 2, 30])
    few, more = fewshot.draw_shots(label, 5, 0), fewshot.draw_shots(label, 10, 0)
    assert np.bincount(label[few]).tolist() == [2, 5, 0, 5]
    assert np.bincount(label[more]).tolist() == [2, 10, 0, 10]
    assert set(few) < set(more) and len(set(more)) == len(more)
    assert set(few) != set(fewshot.draw_shots(label, 5, 1))


def test_shots_that_no_class_has_are_no_result_and_classes_with_fewer_are_told():
    labels = {"train": np.repeat([0, 1], [7, 3]), "eval": np.arange(20) % 2}
    predictions = Predictions(SimpleNamespace(predict=None), {}, 8, None, {})
    predictions.fresh = lambda params, split, view: {
        "embedding": rng.normal(size=(len(labels[split]), 4)), "label": labels[split],
    }  # fmt: skip
    judge = fewshot.Evaluator(predictions, tiny_config(**{"classifier.num_classes": 2}))
    assert set(judge.run(None)) == {"fewshot/1_shot", "fewshot/5_shot"}
    assert judge.protocol()["classes_with_fewer"] == {"5": 1}
    labels["train"] = np.repeat([0, 1], 25)
    assert len(judge.run("others")) == 4 and "classes_with_fewer" not in judge.protocol()
