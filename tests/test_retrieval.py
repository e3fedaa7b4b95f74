"""What rankings are worth, by hand, scikit-learn and NumPy; exact search on any devices."""

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from supmim import sharding
from supmim.errors import NumericsError
from supmim.evaluators import knn, retrieval
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib import retrieval_metrics as metrics
from supmim.evaluators.lib.predictions import Predictions
from tests.conftest import tiny_config

rng = np.random.default_rng(0)
NAN = float("nan")


def ranks(*rows):
    """Relevance of rankings written as 0 and 1."""
    return np.array([[c == "1" for c in row] for row in rows])


def mesh_of(*shape):
    return sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


def test_metrics_by_hand():
    relevant, positives = ranks("01100", "10001", "00000"), np.array([2, 4, 0])
    cases = [
        (metrics.recall_at(relevant, positives, 1), [0, 1, NAN]),
        (metrics.recall_at(relevant, positives, 2), [1, 1, NAN]),
        (
            metrics.average_precision(relevant, positives),
            [(1 / 2 + 2 / 3) / 2, (1 + 2 / 5) / 4, NAN],
        ),
        (metrics.average_precision_at_r(relevant, positives), [1 / 4, 1 / 4, NAN]),
        (metrics.average_precision_at(relevant, positives, 2), [1 / 4, 1 / 2, NAN]),
        (metrics.modified_precision_at(relevant, positives, 5), [1 / 2, 1 / 4, NAN]),
        (metrics.modified_precision_at(relevant, positives, 1), [0, 1, NAN]),
    ]
    for found, expected in cases:
        np.testing.assert_allclose(found, expected)
    assert metrics.mean(np.array([0.5, NAN, 1.0])) == 0.75 and np.isnan(
        metrics.mean(np.full(2, NAN))
    )


def test_positives_that_are_not_ranked_count_in_the_denominator():
    relevant = ranks("11")
    assert metrics.average_precision_at(relevant, np.array([200]), 100) == [2 / 100]
    assert metrics.average_precision(relevant, np.array([4])) == [1 / 2]


def test_average_precision_agrees_with_scikit_learn():
    score, label = rng.normal(size=(20, 50)), rng.random((20, 50)) < 0.2
    order = np.argsort(-score, axis=1)
    found = metrics.average_precision(np.take_along_axis(label, order, 1), label.sum(axis=1))
    theirs = [average_precision_score(a, b) for a, b in zip(label, score, strict=True)]
    np.testing.assert_allclose(found, theirs)


def test_revisited_oxford_with_junk_by_hand():
    ranking_of = np.array([7, 3, 9, 1, 5, 2])  # ids, best first
    easy, hard, junk = [3], [1, 2], [7]
    medium = metrics.without_junk(ranking_of, easy + hard, junk)
    np.testing.assert_array_equal(medium, [True, False, True, False, True])
    # ranks 0, 2, 4: (1 + 1) / 2, (1/2 + 2/3) / 2, (2/4 + 3/5) / 2
    assert metrics.trapezoid_average_precision(medium, 3) == pytest.approx(
        (1 + (1 / 2 + 2 / 3) / 2 + (1 / 2 + 3 / 5) / 2) / 3
    )
    harder = metrics.without_junk(ranking_of, hard, junk + easy)
    np.testing.assert_array_equal(harder, [False, True, False, True])
    assert metrics.trapezoid_average_precision(harder, 2) == pytest.approx(
        ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    )
    assert metrics.capped_precision(medium, 3, 1) == 1
    assert metrics.capped_precision(medium, 3, 10) == 3 / 5  # the last positive is fifth
    assert metrics.capped_precision(harder, 2, 3) == 1 / 3
    assert np.isnan(metrics.trapezoid_average_precision(medium, 0))
    assert np.isnan(metrics.capped_precision(medium, 0, 5))


# Search.


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (8, 1, 1)], ids=str)
@pytest.mark.parametrize("block", [7, 130, 10**6])
def test_neighbours_are_exact_on_any_devices_in_blocks_of_any_size(monkeypatch, shape, block):
    monkeypatch.setattr(ranking, "QUERIES", 64)
    bank, queries = (ranking.unit(rng.normal(size=(n, 12)), "x") for n in (301, 90))
    found = ranking.Bank(bank, mesh_of(*shape), mib=4 * 64 * block / ranking.MIB)
    assert found.block == min(
        {7: 7, 130: 128}.get(block, block), found.rows.shape[0] // np.prod(shape)
    )
    similarity, ids = found.nearest(queries, 20)
    exact = queries @ bank.T
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1, kind="stable")[:, :20])
    np.testing.assert_allclose(similarity, np.take_along_axis(exact, ids, 1), atol=1e-6)
    theirs = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute").fit(bank)
    np.testing.assert_array_equal(ids, theirs.kneighbors(queries, return_distance=False))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_largest_by_groups_are_those_of_a_full_sort_equals_in_order(k):
    similarity = rng.integers(0, 3000, (40, 64 * 64)).astype(np.float32)  # some of them are equal
    similarity[0], similarity[1:5, 9:] = 1, -np.inf
    own = similarity.argmax(axis=1)
    similarity[:, 4000:] = 5000  # left out with the rest of their group, and all groups behind it
    found, place = jax.jit(ranking._largest, static_argnums=3)(similarity, own, 4000, k)
    similarity[np.arange(40), own] = similarity[:, 4000:] = -np.inf
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(place, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(similarity, expected, 1))


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1)], ids=str)
@pytest.mark.parametrize("queries", [8, 1024], ids="{} at once".format)
def test_equals_come_by_their_place_and_self_is_left_out(monkeypatch, shape, queries):
    monkeypatch.setattr(ranking, "QUERIES", queries)
    bank = ranking.unit(np.repeat(rng.normal(size=(5, 4)), 4, axis=0), "x")
    similarity, ids = ranking.Bank(bank, mesh_of(*shape), 1).nearest(bank, 30, exclude_self=True)
    assert ids.shape == (20, 19) and np.isfinite(similarity).all()
    assert not (ids == np.arange(20)[:, None]).any() and ids.max() < 20  # and no padding
    np.testing.assert_array_equal(ids[5, :3], [4, 6, 7])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("mib", [1e-3, 10])
def test_relevance_to_the_last_rank_is_that_of_a_full_sort(shape, mib):
    bank, label = ranking.unit(rng.normal(size=(53, 6)), "x"), rng.integers(0, 4, 53)
    exact = bank @ bank.T
    np.fill_diagonal(exact, -np.inf)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :-1]
    expected = label[order] == label[:, None]
    chunks = list(ranking.Bank(bank, mesh_of(*shape), mib).relevance(bank, label))
    assert (len(chunks) > 1) == (mib < 1)
    np.testing.assert_array_equal(np.concatenate([part for _, part in chunks]), expected)
    assert [first for first, _ in chunks] == list(np.cumsum([0, *(len(p) for _, p in chunks)])[:-1])
    exact = bank[:9] @ bank.T
    rankings = np.concatenate(
        [x for _, x in ranking.Bank(bank, mesh_of(*shape), mib).rankings(bank[:9])]
    )
    np.testing.assert_array_equal(rankings, np.argsort(-exact, axis=1, kind="stable"))


# The evaluator.


def results_of(train, queries, train_label, label, mib=256):
    """retrieval/* of embeddings that are given."""

    class Given(Predictions):
        all_shared = False

        def fresh(self, params, split, view=None):
            embedding, labels = {"train": (train, train_label), "eval": (queries, label)}[split]
            return {"embedding": embedding, "label": labels}

    config = tiny_config(**{"eval.similarity_mib": mib})
    return retrieval.Evaluator(Given(None, {}, 8, mesh_of(2, 1, 1), {}), config).run("parameters")


def test_the_evaluator_agrees_with_brute_force():
    train, queries = rng.normal(1, 1, (90, 5)), rng.normal(1, 1, (61, 5))
    train_label, label = rng.integers(0, 6, 90), rng.integers(0, 6, 61)
    found = results_of(train, queries, train_label, label)
    rows, seen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, queries))
    hits = train_label[np.argsort(-seen @ rows.T, axis=1)] == label[:, None]
    for k in (1, 5, 10):
        assert found[f"retrieval/train_recall_at_{k}"] == hits[:, :k].any(axis=1).mean()
    exact = seen @ seen.T
    precisions = [
        average_precision_score(np.delete(label == label[i], i), np.delete(exact[i], i))
        for i in range(61)
    ]
    np.testing.assert_allclose(found["retrieval/map"], np.mean(precisions))
    assert found["retrieval/without_positives"] == 0
    assert "retrieval/recall_at_10" in found and "retrieval/recall_at_100" not in found


def test_queries_without_positives_are_left_out_and_counted():
    train, queries = np.eye(4)[[0, 1, 2]] + 0.1, np.eye(4)[[0, 0, 3, 2]] + 0.1
    found = results_of(train, queries, np.array([0, 1, 2]), np.array([0, 0, 3, 5]))
    assert found["retrieval/train_recall_at_1"] == 1  # of the two whose class is in the bank
    assert found["retrieval/recall_at_1"] == 1 and found["retrieval/map"] == 1
    assert found["retrieval/without_positives"] == 0.5
    assert found["retrieval/train_without_positives"] == 0.5


def test_what_no_query_has_a_value_of_is_no_result():
    found = results_of(np.eye(3), np.eye(3), np.array([0, 0, 0]), np.array([1, 2, 3]))
    assert found == {"retrieval/train_without_positives": 1, "retrieval/without_positives": 1}


def test_a_k_beyond_the_bank_is_no_result():
    train, queries = rng.normal(size=(6, 5)), rng.normal(size=(3, 5))
    found = results_of(train, queries, np.arange(6) % 2, np.arange(3) % 2)
    assert {name for name in found if "recall" in name} == {
        "retrieval/train_recall_at_1", "retrieval/train_recall_at_5", "retrieval/recall_at_1",
    }  # fmt: skip


def test_one_image_has_none_among_the_others():
    train, query, label = rng.normal(size=(6, 5)), rng.normal(size=(1, 5)), np.arange(6) % 2
    found = results_of(train, query, label, label[:1])
    assert found["retrieval/without_positives"] == 1 and "retrieval/recall_at_1" not in found
    bank = ranking.Bank(query, mesh_of(1, 1, 1), 1)
    assert knn.leave_one_out(bank, query, label[:1]) == {}


def test_banks_are_made_once_and_anew_for_other_parameters():
    class Given(Predictions):
        def fresh(self, params, split, view=None):
            return {"embedding": np.full((2, 2), params) + np.eye(2)}

    predictions = Given(None, {}, 8, mesh_of(2, 1, 1), {})
    rows, bank = predictions.bank(1, "eval", 1)
    assert predictions.bank(1, "eval", 1)[1] is bank
    other, anew = predictions.bank(5, "eval", 1)
    assert anew is not bank and (other != rows).any()


def test_embeddings_that_mean_nothing_are_an_error():
    good, label = rng.normal(size=(5, 3)), np.zeros(5, int)
    for harm, told in ((np.nan, "the first is image 2"), (0.0, "the first is image 2")):
        bad = good.copy()
        bad[2] = harm
        with pytest.raises(NumericsError, match=told):
            results_of(good, bad, label, label)
    with pytest.raises(NumericsError, match="are equal"):
        results_of(np.ones((5, 3)), good, label, label)
