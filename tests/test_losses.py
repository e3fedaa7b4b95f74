"""Losses against scikit-learn and by hand; means that padding cannot touch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss

from supmim import losses, metrics

rng = np.random.default_rng(0)


def test_softmax_cross_entropy_agrees_with_scikit_learn():
    logits, label = rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    ours = losses.softmax_cross_entropy(jnp.asarray(logits), losses.one_hot(label, 4, 0.0))
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours.mean(), log_loss(label, share, labels=range(4)), rtol=1e-5)


def test_sigmoid_cross_entropy_sums_binary_losses():
    logits = jnp.asarray([[2.0, -1.0]])
    by_hand = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))
    ours = losses.sigmoid_cross_entropy(logits, jnp.asarray([[1.0, 0.0]]))
    np.testing.assert_allclose(ours, [by_hand], rtol=1e-6)


def test_token_loss_is_the_mean_over_hidden_tokens_alone():
    logits = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    ids, mask = jnp.asarray([[0, 1, 2], [3, 4, 0]]), jnp.asarray([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    each = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    by_hand = (each[0, 0, 0] + each[0, 2, 2]) / 2
    np.testing.assert_allclose(
        losses.token_cross_entropy(logits, ids, mask), [by_hand, 0.0], rtol=1e-5
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_token_loss_and_its_gradient_are_those_of_optax_with_one_hot_targets(label_smoothing):
    logits = jnp.asarray(3 * rng.normal(size=(2, 3, 50)), jnp.float32)
    ids, mask = jnp.asarray([[0, 1, 49], [3, 4, 0]]), jnp.ones((2, 3))

    def by_one_hot(logits):
        targets = losses.one_hot(ids, 50, label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    def ours(logits):
        return losses.token_cross_entropy(logits, ids, mask, label_smoothing).mean()

    expected, found = jax.value_and_grad(by_one_hot)(logits), jax.value_and_grad(ours)(logits)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-8)


def test_label_smoothing_spreads_its_share():
    np.testing.assert_allclose(
        losses.one_hot(jnp.asarray([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6
    )


def test_means_over_batches_equal_the_mean_over_all():
    values, valid = jnp.asarray([1.0, 2.0, 3.0, jnp.nan]), jnp.asarray([1.0, 1.0, 1.0, 0.0])
    steps = [
        {"x": metrics.mean(values[:1], valid[:1])}, {"x": metrics.mean(values[1:], valid[1:])}
    ]  # fmt: skip
    assert metrics.summarize(steps) == {"x": 2.0}


def test_what_a_step_did_not_measure_is_left_out_of_the_mean():
    ids, valid = jnp.asarray([[0, 1]]), jnp.ones(1)
    measured = {"x": metrics.scalar(jnp.float32(3.0)), **metrics.code_metrics(ids, 4, valid)}
    missing = jax.tree.map(jnp.zeros_like, measured)
    both = metrics.summarize([missing, measured, missing])
    assert both == metrics.summarize([measured]) and both["x"] == 3.0
    always = {"loss": metrics.scalar(jnp.float32(0.0)), "skipped": metrics.Last(jnp.int32(0))}
    assert metrics.summarize([missing | always]) == {"loss": 0.0, "skipped": 0.0}


def test_code_usage_and_perplexity_count_valid_tokens():
    ids = jnp.asarray([[0, 0], [1, 1], [2, 3]])
    totals = metrics.code_metrics(ids, 8, jnp.asarray([1.0, 1.0, 0.0]))
    values = metrics.summarize([totals, totals])
    np.testing.assert_allclose([values["code_usage"], values["code_perplexity"]], [0.25, 2.0])


def test_pixel_loss_counts_every_class_from_0_and_nothing_below():
    logits = jnp.asarray(rng.normal(size=(2, 2, 3, 4)), jnp.float32)
    label_map = np.array([[[0, 0, 1], [3, -1, 2]], [[-1, -1, -1], [-1, -1, -1]]])
    each = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[0].reshape(-1, 4)
    by_hand = each[[0, 1, 2, 3, 5], [0, 0, 1, 3, 2]].mean()
    found = losses.pixel_cross_entropy(logits, jnp.asarray(label_map))
    np.testing.assert_allclose(found, [by_hand, 0.0], rtol=1e-5)
