"""Law 3: the shape of the mesh does not change the training; with -m slow, all shapes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from supmim import assemble, metrics, optimizer, sharding, step
from supmim.data import images, pipeline, sources, stream
from supmim.errors import ConfigError
from supmim.models import layers
from supmim.planning import program
from supmim.tasks.registry import TASKS
from supmim.tasks.supmim import SupMIM
from supmim.tokenizers.patch_vq import PatchVQ
from tests import processes
from tests.conftest import digit_views, digits, tiny_config

ALL_SHAPES = [
    (data, fsdp, tensor)
    for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) for tensor in (1, 2)
    if 1 < data * fsdp * tensor <= 8
]  # fmt: skip
LOSS_TOLERANCE = 2e-4  # relative, over four AdamW steps
BATCH = 16


class Recorded(NamedTuple):
    inner: Any
    gradient: Any
    notfinite_count: Any
    total_notfinite: Any
    inner_state: Any


def recording(tx):
    """The transformation, which also keeps the last gradient."""

    def state(inner, gradient):
        counts = inner.notfinite_count, inner.total_notfinite
        return Recorded(inner, gradient, *counts, inner.inner_state)

    def update(gradient, old, params, **extra):
        updates, inner = tx.update(gradient, old.inner, params, **extra)
        return updates, state(inner, gradient)

    return optax.GradientTransformationExtraArgs(
        lambda params: state(tx.init(params), params), update
    )


def first_gradients_and_losses(shape, **changes):
    """Gradients of the first step and losses of four, on a mesh of that shape."""
    config = tiny_config(batch_size=BATCH, **{"data.mixup": 0.2, "encoder.depth": 1} | changes)
    codes = jax.random.uniform(jax.random.key(9), (16, 4))
    task = SupMIM(config, PatchVQ(codes, 2, 1))
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    tx = recording(optimizer.create(config.optimizer, lambda _: 3e-3))
    rng = jax.random.key(0)
    with jax.set_mesh(mesh):
        make_state = functools.partial(step.create_state, rng, task, tx)
        splits = config.mesh.fsdp_splits
        placement = sharding.state_sharding(jax.eval_shape(make_state), mesh, splits)
        state = jax.jit(make_state, out_shardings=placement)()
        head = state.params["classifier"]["head"]  # zero at the start: it would hide the encoder
        head["kernel"] = jax.device_put(
            jax.random.normal(jax.random.key(3), head["kernel"].shape), head["kernel"].sharding
        )
        tokenize, _ = assemble.programs(config, task, tx, mesh, state)
        prepare = jax.jit(task.prepare, out_shardings=sharding.batch_sharding(mesh))

        program = jax.jit(
            functools.partial(step.train_step, task=task, tx=tx, rng=rng),
            out_shardings=(placement, sharding.replicated(mesh)),
        )
        first, losses = None, []
        seen = images.training(sources.with_unlabelled(digits("train"), config.data), config.data)
        rows = pipeline.local_rows(config.step_images, mesh)
        read = stream.Training(seen, 0, BATCH, rows, config.unlabelled_rows)
        for number in range(4):
            batch = pipeline.placed(read(number)[0], config.step_images, mesh)
            batch = prepare(tokenize(task.frozen, batch))
            state, totals = program(state, batch)
            first = state.opt_state.gradient if first is None else first
            values = metrics.summarize([totals])
            losses.append([values["class_loss"], values["mim_loss"], values["grad_norm"]])
        return multihost_utils.process_allgather(first, tiled=True), np.array(losses)


@functools.cache
def on_one_device():
    return first_gradients_and_losses((1, 1, 1))


def check(found, wanted=None):
    grads, losses = found
    wanted_grads, wanted_losses = wanted or on_one_device()

    def compare(path, ours, expected):
        name = sharding.path_name(path)
        norm = 1.0 if name.endswith("key/bias") else np.linalg.norm(expected)
        assert np.abs(ours - expected).max() <= 1e-5 * norm, name

    jax.tree_util.tree_map_with_path(compare, grads, wanted_grads)
    np.testing.assert_allclose(losses, wanted_losses, rtol=LOSS_TOLERANCE)


@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, marks=[] if s == (2, 2, 2) else pytest.mark.slow) for s in ALL_SHAPES],
    ids=str,
)
def test_mesh_does_not_change_the_training(shape):
    check(first_gradients_and_losses(shape))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"class_pass.keep": 0.75, "mim.row_share": 0.5, "mim.end_share": 0.5,
             "mim.soft_target_weight": 1.0, "data.mixup": 0.0},
            marks=pytest.mark.slow,
        ),
        {"data.labels": 100.0, "data.unlabelled": "rest", "data.unlabelled_batch": 24,
         "class_pass.keep": 0.75},
    ],
    ids=["cheaper passes", "images without labels"],
)  # fmt: skip
def test_the_mesh_does_not_change_which_rows_patches_and_steps_are_masked(changes):
    found = first_gradients_and_losses((2, 2, 2), **changes)
    check(found, first_gradients_and_losses((1, 1, 1), **changes))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 2, 2)], ids=str)
def test_several_processes_train_as_one(shape, tmp_path):
    out, count = tmp_path / "found.npz", np.prod(shape) // processes.DEVICES_EACH
    command = ["tests.processes", ",".join(map(str, shape)), str(out)]
    done = processes.finished(processes.start(*[command] * count))
    assert [code for code, _, _ in done] == [0] * count, done[0][2]
    with np.load(out) as stored:
        leaves = [stored[name] for name in stored.files if name != "losses"]
        losses = stored["losses"]
    tree = jax.tree.structure(on_one_device()[0])
    check((jax.tree.unflatten(tree, leaves), losses))


def test_a_frozen_tokenizer_is_whole_on_every_device(tmp_path):
    """It works without communication."""
    config = tiny_config(**{"mesh.fsdp": 4, "data.limit": 64})
    mesh = sharding.make_mesh(2, 4, 1)
    task = assemble.create_task(config, digit_views("train", config), tmp_path, mesh)
    with jax.set_mesh(mesh):
        planned = program.build(config, mesh).frozen
    for codes in (task.frozen.codes, planned.codes):
        assert codes.sharding.is_fully_replicated and len(codes.sharding.device_set) == 8


def abstract_state(config):
    task = TASKS[config.task].abstract(config)
    tx = optimizer.create(config.optimizer, lambda _: 1.0)
    shapes = jax.eval_shape(lambda: step.create_state(jax.random.key(0), task, tx))
    return {"state": shapes}


def specs(tree, mesh, **how):
    placed = jax.tree_util.tree_leaves_with_path(sharding.state_sharding(tree, mesh, **how))
    return {sharding.path_name(path): where.spec for path, where in placed}


LARGE = 2**15  # elements
EVERYTHING = {
    "data.image_size": 224, "data.channels": 3, "encoder.patch_size": 14, "encoder.width": 256,
    "encoder.mlp_dim": 1024, "encoder.num_heads": 4, "encoder.pool": "map",
    "encoder.positions": "learned", "decoder.width": 128, "decoder.mlp_dim": 512,
    "classifier.rep_size": 256, "classifier.num_classes": 1000, "mim.hidden": "mask_token",
    "tokenizer.patch_size": 14, "optimizer.ema_decay": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("scan", [False, True])
def test_every_rule_matches_and_every_large_leaf_is_split_when_asked(scan):
    tree = abstract_state(tiny_config(**EVERYTHING, **{"encoder.scan": scan}))
    placement = specs(tree, sharding.make_mesh(data=1, fsdp=4, tensor=2))
    for pattern, _ in sharding.RULES:
        assert any(sharding.re.search(pattern, name) for name in placement), pattern
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    large = [sharding.path_name(path) for path, leaf in leaves if leaf.size >= LARGE]
    assert len(large) > 40
    assert not [name for name in large if "fsdp" not in placement[name]]
    matrices = [n for n in large if "embedding" not in n and "posit" not in n]
    assert not [name for name in matrices if "tensor" not in placement[name]]


def test_a_block_is_split_so_that_its_products_meet_once():
    """Megatron's split: what one layer's `tensor` axis makes, the next one sums over."""
    tree = abstract_state(tiny_config(**EVERYTHING))["state"]
    placement = specs(tree.params, sharding.make_mesh(data=1, fsdp=4, tensor=2))
    block = "encoder/blocks/block_0"
    expected = {
        "attention/query/kernel": ("fsdp", "tensor", None),  # [D, heads, head]
        "attention/query/bias": ("tensor", None),
        "attention/out/kernel": ("tensor", None, "fsdp"),  # [heads, head, D]
        "attention/out/bias": (),
        "mlp/up/kernel": ("fsdp", "tensor"),  # [D, 4 D]
        "mlp/up/bias": ("tensor",),
        "mlp/down/kernel": ("tensor", "fsdp"),  # [4 D, D]
        "mlp/down/bias": (),
    }
    assert {name: tuple(placement[f"{block}/{name}"]) for name in expected} == expected


def test_moments_and_averages_are_split_like_their_parameters():
    tree = abstract_state(tiny_config(**EVERYTHING))["state"]
    placement = specs(tree, sharding.make_mesh(data=1, fsdp=4, tensor=2))
    params = {name: spec for name, spec in placement.items() if name.startswith("params/")}
    for name, spec in params.items():
        others = [n for n in placement if n.endswith(name.removeprefix("params")) and n != name]
        assert len(others) == 3, name  # two moments and the average
        assert {placement[n] for n in others} == {spec}


def test_zero_1_splits_the_optimizer_alone():
    tree = abstract_state(tiny_config(**EVERYTHING))["state"]
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    whole, zero = specs(tree, mesh), specs(tree, mesh, fsdp_splits="optimizer")
    for name, spec in zero.items():
        if name.startswith("opt_state"):
            assert spec == whole[name]
        else:
            assert "fsdp" not in spec and ("tensor" in spec) == ("tensor" in whole[name])
    assert any("fsdp" in spec for spec in zero.values())


def test_zero_1_does_not_change_the_training():
    check(first_gradients_and_losses((2, 4, 1), **{"mesh.fsdp_splits": "optimizer"}))


class Tpu:
    """What mesh_utils reads of a device."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, number):
        self.id, self.slice_index, self.process_index = number, number // 8, number // 4
        self.coords = (number % 4, number % 8 // 4, 0)


def test_an_axis_may_take_part_of_a_side_of_a_pod():
    devices = [Tpu(number) for number in range(64)]
    for number, device in enumerate(devices):
        device.slice_index = 0
        device.coords = (number % 4, number // 4 % 4, number // 16)
    grid = sharding.arrange({"data": 8, "fsdp": 8, "tensor": 1}, devices)
    assert grid.shape == (8, 8, 1) and len({device.id for device in grid.flat}) == 64


def test_only_the_data_axis_crosses_slices():
    devices = [Tpu(number) for number in (5, 3, 14, 9, 0, 1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 15)]
    for data, fsdp, tensor in ((2, 8, 1), (4, 2, 2), (16, 1, 1)):
        grid = sharding.arrange({"data": data, "fsdp": fsdp, "tensor": tensor}, devices)
        assert grid.shape == (data, fsdp, tensor)
        slices = np.vectorize(lambda device: device.slice_index)(grid)
        assert (slices == slices[:, :1, :1]).all()
        assert sorted(slices[:, 0, 0]) == list(slices[:, 0, 0])  # outermost: slice after slice
    with pytest.raises(ConfigError, match="2 slices .* --config.mesh.data=2"):
        sharding.arrange({"data": 1, "fsdp": 16, "tensor": 1}, devices)


@pytest.mark.parametrize(
    ("held", "groups"),
    [
        ([(0, [0, 1]), (0, [2, 3]), (1, [4, 5]), (1, [6, 7])], [([0], 4), ([1], 4)]),
        ([(0, range(4)), (1, range(4))], [([0, 1], 4)]),
        ([(0, [0]), (2, [1]), (1, [0]), (3, [1])], [([0, 1], 1), ([2, 3], 1)]),
        # tensor=3 on hosts of two devices: the second has rows of both others.
        ([(0, [0]), (0, [0]), (1, [0]), (1, [1]), (2, [1]), (2, [1])], [([0, 1, 2], 2)]),
        ([(0, [0]), (2, [1]), (1, [0]), (1, [1])], [([0, 1, 2], 2)]),
    ],
)
def test_processes_that_share_rows_are_one_group_and_no_row_is_in_two(held, groups):
    found = sharding.grouped(held)
    assert [(group.processes, len(group.rows)) for group in found] == groups
    rows = np.concatenate([group.rows for group in found])
    assert sorted(rows) == sorted({row for _, own in held for row in own})


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
    with pytest.raises(ConfigError, match="over 8 devices in 4 parts; nearest: 32"):
        sharding.check_divides("batch_size", 16, mesh, parts=4)
