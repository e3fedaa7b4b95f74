"""Spikes of loss and gradient: counted by OLMo-core's rule, told, and left out if asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from supmim import metrics, optimizer, step
from supmim.runtime import numerics
from supmim.updates import spikes
from tests.test_step import prepared, task_of

PARAMS = {"w": jnp.zeros(3)}


def usual(number):
    """Loss and gradient of a step without a spike."""
    rng = np.random.default_rng(number)
    return 2 + 0.1 * rng.normal(), {"w": jnp.asarray(1 + 0.1 * rng.normal(size=3), jnp.float32)}


@pytest.fixture(scope="module")
def settled():
    """The state after a window of usual steps, by whether spikes are left out."""

    def after(skip):
        tx = spikes.watched(optax.adam(0.1), sigmas=6.0, skip=skip)
        update, state = jax.jit(tx.update), tx.init(PARAMS)
        for number in range(spikes.WINDOW):
            loss, gradient = usual(number)
            _, state = update(gradient, state, PARAMS, loss=loss)
        return update, state

    return {skip: after(skip) for skip in (False, True)}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("loss", "factor", "counted"),
    [(2.0, 1.0, 0), (2.3, 1.0, 0), (3.0, 1.0, 1), (2.0, 3.0, 1), (0.1, 0.1, 0)],
)
def test_a_jump_of_loss_or_gradient_is_counted_and_left_out_if_asked(
    settled, skip, loss, factor, counted
):
    update, state = settled[skip]
    gradient = {"w": jnp.full(3, factor)}
    updates, guard = update(gradient, state, PARAMS, loss=loss)
    before, after = state.inner_state, guard.inner_state
    assert before.spikes == 0 and after.spikes == counted and spikes.count(guard) == counted
    left_out = bool(skip and counted)
    assert bool(after.left_out) == left_out and bool((updates["w"] == 0).all()) == left_out
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before.inner_state, after.inner_state)
    assert all(jax.tree.leaves(same)) == left_out
    later = update(usual(0)[1], guard, PARAMS, loss=usual(0)[0])[1].inner_state
    assert later.spikes == counted and not later.left_out  # the next one is usual again


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_is_a_spike_and_does_not_blind_the_watch(settled, loss):
    update, state = settled[False]
    _, after = update(usual(0)[1], state, PARAMS, loss=loss)
    _, later = update(usual(1)[1], after, PARAMS, loss=50.0)
    assert spikes.count(after) == 1 and spikes.count(later) == 2
    assert np.isfinite(later.inner_state.recent).all()


@pytest.mark.parametrize("skip", [False, True])
def test_a_gradient_that_is_not_finite_is_no_spike_and_changes_nothing(settled, skip):
    update, before = settled[skip]
    gradient = {"w": jnp.asarray([1.0, jnp.nan, 1.0])}
    updates, after = update(gradient, before, PARAMS, loss=jnp.nan)
    assert after.notfinite_count == 1 and after.total_notfinite == 1
    assert not updates["w"].any() and not after.inner_state.left_out
    jax.tree.map(np.testing.assert_array_equal, after.inner_state, before.inner_state)


def test_the_first_steps_are_no_spikes():
    tx = spikes.watched(optax.sgd(0.1), sigmas=6.0, skip=True)
    state = tx.init(PARAMS)
    for loss in (1.0, 1.0, 100.0):
        _, state = tx.update(PARAMS, state, PARAMS, loss=loss)
    assert spikes.count(state) == 0


@pytest.mark.parametrize("skip", [False, True])
def test_a_step_that_is_left_out_changes_no_parameter_and_is_in_the_metrics(skip):
    changes = {"optimizer.skip_spikes": skip, "encoder.depth": 1, "optimizer.warmup_steps": 0}
    task, config = task_of(**changes)
    task.after_update = lambda params, totals: (jax.tree.map(lambda x: x + 1, params), totals)
    tx = optimizer.create(config.optimizer, lambda _: 1e-2)
    create = jax.jit(functools.partial(step.create_state, task=task, tx=tx))
    before = create(jax.random.key(0))
    watched = before.opt_state.inner_state
    seen = jnp.full_like(watched.seen, spikes.WINDOW)  # in which loss and gradient were 0
    opt_state = before.opt_state._replace(inner_state=watched._replace(seen=seen))
    after, totals = jax.jit(lambda *given: step.train_step(*given, task=task, tx=tx))(
        step.State(before.step, before.params, opt_state), prepared(task), jax.random.key(1)
    )
    assert metrics.summarize([totals])["spikes"] == 1
    unchanged = jax.tree.map(lambda a, b: bool((a == b).all()), before.params, after.params)
    assert set(jax.tree.leaves(unchanged)) == {skip}
    assert after.step == 1


def test_spikes_are_told_once_with_their_step(tmp_path):
    told = []
    watch = numerics.NumericsWatch(tmp_path, lambda step: {}, log=told.append, spikes=2)
    for steps, counts in ((range(5, 8), [2, 3, 3]), (range(8, 10), [3, 4, 4])):
        values = jnp.arange(3.0) + steps[0]
        totals = {
            "skipped_in_a_row": metrics.Last(jnp.zeros(3, jnp.int32)),
            "spikes": metrics.Last(jnp.asarray(counts)),
            "loss": metrics.average(values, jnp.ones(3)),
            "grad_norm": metrics.average(2 * values, jnp.ones(3)),
        }
        watch.add(steps, jnp.zeros((3, 2), jnp.int32), totals)
    watch.check()
    watch.check()
    assert told == [
        "spike 3     step 6: loss 6 or gradient norm 12 far above usual",
        "spike 4     step 9: loss 9 or gradient norm 18 far above usual",
    ]
