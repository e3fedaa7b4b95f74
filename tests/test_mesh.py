"""Law 3: the shape of the mesh does not change the training. Six shapes here, all with -m slow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from supmim import metrics, optimizer, sharding, step
from supmim.data import pipeline, sources
from supmim.errors import ConfigError
from supmim.models import layers
from supmim.tasks.supmim import SupMIM
from supmim.tokenizers.patch_vq import PatchVQ
from tests.conftest import tiny_config

SHAPES = [(2, 1, 1), (1, 4, 1), (1, 1, 2), (2, 2, 2), (8, 1, 1), (1, 8, 1)]
ALL_SHAPES = [
    (data, fsdp, tensor)
    for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) for tensor in (1, 2)
    if 1 < data * fsdp * tensor <= 8
]  # fmt: skip
LOSS_TOLERANCE = 2e-4  # relative, over four AdamW steps
BATCH = 16


def first_gradients_and_losses(shape, **changes):
    """Gradients of the first step and losses of four, on a mesh of that shape."""
    config = tiny_config(batch_size=BATCH, **{"data.mixup": 0.2} | changes)
    codes = jax.random.uniform(jax.random.key(9), (16, 4))
    task = SupMIM(config, PatchVQ(codes, 2, 1))
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    tx = optimizer.create(config.optimizer, lambda _: 3e-3)
    rng = jax.random.key(0)
    with jax.set_mesh(mesh):
        make_state = functools.partial(step.create_state, rng, task, tx)
        placement = sharding.state_sharding(jax.eval_shape(make_state), mesh)
        state = jax.jit(make_state, out_shardings=placement)()
        head = state.params["classifier"]["head"]  # zero at the start: it would hide the encoder
        head["kernel"] = jax.device_put(
            jax.random.normal(jax.random.key(3), head["kernel"].shape), head["kernel"].sharding
        )
        prepare = jax.jit(task.prepare, out_shardings=sharding.batch_sharding(mesh))

        def step_and_gradients(state, batch):
            after, totals = step.train_step(state, batch, rng, task=task, tx=tx)
            key = jax.random.fold_in(rng, state.step)
            drawn = task.draw(batch, key)
            return after, totals, jax.grad(task.loss_fn, has_aux=True)(state.params, drawn, key)[0]

        program = jax.jit(step_and_gradients, out_shardings=(placement, None, None))
        first, losses = None, []
        for batch in pipeline.train_batches(
            sources.digits("train"), config.data, BATCH, mesh, 0, 4
        ):
            batch = prepare(task.frozen, batch)
            state, totals, grads = program(state, batch)
            first = grads if first is None else first
            values = metrics.summarize([totals])
            losses.append([values["class_loss"], values["mim_loss"], values["grad_norm"]])
        return jax.device_get(first), np.array(losses)


@functools.cache
def reference():
    return first_gradients_and_losses((1, 1, 1))


def check(shape):
    grads, losses = first_gradients_and_losses(shape)
    wanted_grads, wanted_losses = reference()

    def compare(path, ours, wanted):
        name = sharding.path_name(path)
        norm = 1.0 if name.endswith("key/bias") else np.linalg.norm(wanted)
        assert np.abs(ours - wanted).max() <= 1e-5 * norm, name

    jax.tree_util.tree_map_with_path(compare, grads, wanted_grads)
    np.testing.assert_allclose(losses, wanted_losses, rtol=LOSS_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mesh_does_not_change_the_training(shape):
    check(shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", sorted(set(ALL_SHAPES) - set(SHAPES)), ids=str)
def test_no_mesh_changes_the_training(shape):
    check(shape)


def test_every_rule_matches_and_large_parameters_are_split():
    task = SupMIM(tiny_config(**{"encoder.width": 64, "encoder.mlp_dim": 128}), None)
    tx = optimizer.create(tiny_config(**{"optimizer.ema_decay": 0.9}).optimizer, lambda _: 1.0)
    shapes = jax.eval_shape(lambda: step.create_state(jax.random.key(0), task, tx))
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    names = [sharding.path_name(path) for path, _ in leaves]
    for pattern, _ in sharding.RULES:
        assert any(sharding.re.search(pattern, name) for name in names), pattern
    placement = {
        sharding.path_name(path): where.spec
        for path, where in jax.tree_util.tree_leaves_with_path(
            sharding.state_sharding(shapes, mesh)
        )
    }
    for (_, leaf), name in zip(leaves, names, strict=True):
        if leaf.size >= 1024:
            assert any(placement[name]), name
    kernel = "encoder/blocks/block_0/mlp/up/kernel"
    moments = [n for n in names if n.endswith(kernel)]
    assert len(moments) == 4  # parameters, two moments, average
    assert {placement[n] for n in moments} == {jax.sharding.PartitionSpec("fsdp", "tensor")}


def test_stacked_blocks_are_split_like_unrolled_ones():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    spec = sharding.partition_spec("blocks/stack/mlp/up/kernel", (3, 16, 32), mesh)
    assert spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    params = {"block_0": {"a": jnp.zeros(2)}, "block_1": {"a": jnp.ones(2)}}
    assert layers.stack_blocks({"blocks": params})["blocks"]["stack"]["a"].shape == (2, 2)


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
    spec = sharding.partition_spec("head/kernel", (16, 10), mesh)
    assert spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert sharding.partition_spec("head/kernel", (12, 10), mesh)[0] is None


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (2, 2, 1), (0, 1, 1), (16, 1, 1)])
def test_a_mesh_that_does_not_fit_is_told(sizes):
    with pytest.raises(ConfigError, match="8 devices"):
        sharding.make_mesh(*sizes)


def test_a_batch_that_does_not_divide_is_told_with_the_nearest():
    mesh = sharding.make_mesh(4, 2, 1)
    sharding.check_divides("batch_size", 16, mesh)
    with pytest.raises(ConfigError, match=r"config.batch_size=20 .* 8 devices; nearest: 16 or 24"):
        sharding.check_divides("batch_size", 20, mesh)
