"""Layer-wise learning-rate decay and a frozen encoder: what moves, how far, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from supmim import config as config_lib
from supmim import optimizer, step
from supmim.errors import ConfigError
from supmim.models import layers
from supmim.updates import layer_decay
from tests.conftest import tiny_config
from tests.test_step import prepared, programs, task_of, trained


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def shapes_of(**changes):
    """Of 3 blocks with all that an encoder can have."""
    task, _ = task_of(**{"encoder.depth": 3, "encoder.positions": "learned", "encoder.pool": "map",
                         "mim.hidden": "mask_token"} | changes)  # fmt: skip
    return jax.eval_shape(task.init, jax.random.key(0))


def params_of():
    """Values of those shapes."""
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), shapes_of())


def test_factors_are_those_of_beit_and_mae():
    """By hand, of 3 blocks at decay 0.5: 1/16 before them, then 1/8, 1/4, 1/2, and 1 after."""
    found = layer_decay.factors(shapes_of(), 0.5)
    encoder = found["encoder"]
    for name, factor in {
        "embedding": 1 / 16, "positions": 1 / 16, "mask_token": 1 / 16, "norm": 1, "map_pool": 1,
    }.items():  # fmt: skip
        assert set(jax.tree.leaves(encoder[name])) == {factor}, name
    for block, factor in enumerate((1 / 8, 1 / 4, 1 / 2)):
        assert set(jax.tree.leaves(encoder["blocks"][f"block_{block}"])) == {factor}
    assert set(jax.tree.leaves((found["classifier"], found["decoder"]))) == {1}
    cls = layer_decay.factors(shapes_of(**{"encoder.pool": "cls"}), 0.5)["encoder"]["cls"]
    assert cls == 1 / 16


def test_scanned_blocks_have_the_factors_of_unrolled_ones():
    params = params_of()
    params["encoder"]["blocks"] = layers.stack_blocks(params["encoder"]["blocks"])
    rows = layer_decay.factors(params, 0.7)["encoder"]["blocks"]["stack"]
    expected = np.asarray([0.7**3, 0.7**2, 0.7], np.float32)
    for row, param in zip(
        jax.tree.leaves(rows), jax.tree.leaves(params["encoder"]["blocks"]), strict=True
    ):
        assert row.ndim == param.ndim
        np.testing.assert_array_equal(row.reshape(-1), expected)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_every_update_is_the_usual_one_times_its_factor(name):
    """Decay of weights included, and after LAMB's trust ratio; scanned as unrolled."""
    params = params_of()
    stacked = params | {"encoder": layers.stack_blocks(params["encoder"])}

    def update(params, decay):
        config = tiny_config(**{
            "optimizer.name": name, "optimizer.layer_decay": decay, "optimizer.clip_norm": 0.0,
        }).optimizer  # fmt: skip
        tx = optimizer.create(config, lambda _: 0.1)
        update = jax.jit(functools.partial(tx.update, step=0))
        return update(jax.tree.map(jnp.sin, params), tx.init(params), params)[0]

    plain, factors = update(params, 1.0), layer_decay.factors(params, 0.5)
    found = update(params, 0.5)
    jax.tree.map(
        lambda a, b, factor: np.testing.assert_allclose(a, b * factor, rtol=1e-6),
        found, plain, factors,
    )  # fmt: skip
    unrolled = layers.unstack_blocks(update(stacked, 0.5)["encoder"])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-9),
        unrolled, found["encoder"],
    )  # fmt: skip


def test_without_decay_there_is_no_such_thing_in_the_chain():
    """So checkpoints of before fit, and the training is bit for bit what it was."""
    config = tiny_config().optimizer
    params = {"encoder": {"w": {"kernel": jnp.ones(2)}}}  # no blocks: factors would fail
    state = optimizer.create(config, lambda _: 1.0).init(params)
    assert len(state.inner_state.inner_state[1]) == 3


@pytest.fixture(scope="module")
def both():
    """States before and after 2 steps, by config.optimizer.frozen."""
    states = {}
    for frozen in ("none", "encoder"):
        task, config = task_of(mim_weight=0.0, **{
            "optimizer.frozen": frozen, "optimizer.weight_decay": 0.5, "optimizer.ema_decay": 0.5,
            "optimizer.clip_norm": 0.0,
        })  # fmt: skip
        compiled = programs(task, config)
        states[frozen] = [trained(task, *compiled, steps=steps) for steps in (0, 2)]
    return states


def test_a_frozen_encoder_stays_bit_equal_and_all_else_moves(both):
    before, after = both["encoder"]
    assert_equal(after.params["encoder"], before.params["encoder"])
    head, averages = after.params["classifier"]["head"], optimizer.evaluated_params(after)
    assert np.any(head["kernel"]) and np.any(head["bias"])
    assert_equal(averages["encoder"], before.params["encoder"])
    assert not np.array_equal(averages["classifier"]["head"]["kernel"], head["kernel"])


def test_a_frozen_encoder_has_no_optimizer_state_and_the_rest_begins_as_ever(both):
    for name in ("mu", "nu", "average"):
        kept = optax.tree_utils.tree_get(both["encoder"][1].opt_state, name)
        assert kept.keys() == {"classifier"}
    assert_equal(both["encoder"][0].params, both["none"][0].params)


def test_the_gradient_of_all_else_is_what_it_is_with_a_moving_encoder():
    task, _ = task_of()
    params, rng = jax.jit(task.init)(jax.random.key(0)), jax.random.key(1)
    params["classifier"]["head"]["kernel"] += 0.1
    batch = jax.jit(task.draw)(prepared(task), rng)
    found = {}
    for task.fixed in ((), ("encoder",)):
        free, fixed = step.divided(params, task)
        loss = functools.partial(lambda fixed, p, *rest: task.loss_fn(p | fixed, *rest), fixed)
        found[task.fixed] = jax.jit(functools.partial(step.gradients, loss, parts=1))(
            free, batch, rng
        )[0]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
        found["encoder",], {name: found[()][name] for name in ("classifier", "decoder")},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dropout", "stochastic_depth"])
@pytest.mark.parametrize("frozen", ["encoder", "none"])
def test_a_frozen_encoder_drops_nothing(kind, frozen):
    """The head would learn of a noisier encoder than the one it is evaluated with."""
    task, _ = task_of(**{
        "mim_weight": 0.0, "optimizer.frozen": frozen, "encoder.depth": 2, f"encoder.{kind}": 0.5,
    })  # fmt: skip
    params = jax.jit(task.init)(jax.random.key(0))
    head = params["classifier"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    batch = task.draw(prepared(task), jax.random.key(0))
    loss = jax.jit(task.loss_fn)
    losses = [loss(params, batch, jax.random.key(i))[0] for i in (0, 1)]
    assert (losses[0] == losses[1]) == (frozen == "encoder")


def test_a_frozen_encoder_is_not_differentiated():
    """Its step costs a forward pass where the usual one costs three."""

    def cost(**changes):
        task, config = task_of(mim_weight=0.0, **changes)
        tx = optimizer.create(config.optimizer, lambda _: 1.0)
        state = step.create_state(jax.random.key(0), task, tx)
        run = jax.jit(functools.partial(step.train_step, task=task, tx=tx))
        lowered = run.lower(state, prepared(task), jax.random.key(0))
        return lowered.compile().cost_analysis()["flops"]

    assert cost(**{"optimizer.frozen": "encoder"}) < 0.45 * cost()


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ConfigError, match="layer_decay=0.5 has nothing to act on"):
        tiny_config(**{"optimizer.frozen": "encoder", "optimizer.layer_decay": 0.5})
    tokenizer = {"task": "tokenizer", "eval.evaluators": "tokenizer", "tokenizer.name": "vqgan",
                 "checkpoint.keep_best": 0, "tokenizer.filters": 32,
                 "tokenizer.channel_multipliers": "1,1"}  # fmt: skip
    of_others = {"init.model": "x", "optimizer.layer_decay": 0.5, "encoder.depth": 3,
                 "mim_weight": 0.5, "segmentation.stride": 2, "data.mixup": 0.5,
                 "data.colour_jitter": 0.5, "eval.all_labels": True}  # fmt: skip
    for name, value in of_others.items():
        with pytest.raises(ConfigError, match=f"config.{name}=.* not for config.task=tokenizer"):
            tiny_config(**tokenizer | {name: value})
    assert config_lib.debug(tiny_config(**{"init.model": "x"})).init.model == ""
