"""Timing of training steps side by side: ours, a plain Flax ViT's, and those in between.

All take turns in the same run, so that ratios hold on a machine that is shared.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from supmim import assemble, optimizer, sharding, step
from supmim import config as config_lib
from supmim.benchmarks import naive
from supmim.benchmarks.turns import Contestant, take_turns
from supmim.config import Config
from supmim.data import pipeline, run_sources
from supmim.data.raw import Raw
from supmim.errors import ConfigError, counted
from supmim.planning import flops
from supmim.tasks.base import Task
from supmim.tasks.registry import TASKS

MakeTask = Callable[[Config], Task]
Rung = tuple[str, tuple[str, ...]]  # name of a step, and its naive choices

# Side of the square matrices whose product is the ceiling, by platform.
SIDE = {"gpu": 8192, "tpu": 8192, "cpu": 1024}

# The steps of docs/performance.md from a naive bfloat16 build to ours.
LADDER: tuple[Rung, ...] = (
    ("1 naive", ("scores", "flat", "attention", "gelu", "separate")),
    ("2 scores in the compute dtype", ("flat", "attention", "gelu", "separate")),
    ("3 tokens flat", ("attention", "gelu", "separate")),
    ("4 cuDNN attention", ("gelu", "separate")),
    ("5 GELU keeps its input", ("separate",)),
    ("6 separate q, k, v: ours", ()),
)
ROW = (
    "{step:41}{milliseconds:8.1f}{images_per_second:8.0f}{time_to_plain:8.3f}{share_of_matmul:7.0%}"
    "{temporaries_gb:7.2f}"
)
LEGEND = """
/ plain: time divided by that of the plain step; matmul: share of the ceiling;
GB: temporaries. Each numbered step keeps the changes of those before it."""


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Return what `table` prints: a row for each step, and the ceiling of the same run."""
    config = run_sources.settled(config)
    check_plain(config)
    mesh = assemble.mesh_of(config)
    sharding.check_batches(config, mesh)
    with jax.set_mesh(mesh):
        ceiling = matmul(config.encoder.dtype, mesh)
        steps = list(contestants(config, mesh))
        take_turns([ceiling, *steps], rounds)
    return {
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "batch_size": config.batch_size,
        "dtype": config.encoder.dtype,
        "rounds": rounds,
        "matmul_tflops": ceiling.rate() / 1e12,
        "steps": [
            {
                "step": one.name,
                "milliseconds": 1000 * one.median(),
                "images_per_second": one.images / one.median(),
                "time_to_plain": one.ratio(steps[0]),
                "share_of_matmul": one.rate() / ceiling.rate(),
                "temporaries_gb": one.temp_bytes / 1e9,
            }
            for one in steps
        ],
    }


def check_plain(config: Config) -> None:
    """Raise ConfigError if the plain ViT would be another network than the config's."""
    encoder = config.encoder
    if (encoder.pool, encoder.positions, encoder.attention) != ("gap", "sincos2d", "xla"):
        raise ConfigError(
            "supmim benchmark step compares with a plain ViT: leave config.encoder.pool=gap, "
            "config.encoder.positions=sincos2d and config.encoder.attention=xla (on a GPU it "
            "times cuDNN's attention by itself)"
        )


def simplified(config: Config, **changes: Any) -> Config:
    """Return the config with changes, unrolled and without what the plain ViT does not have."""
    plain = {
        "accumulation_steps": 1,
        "encoder.scan": False,
        "encoder.remat": "none",
        "encoder.dropout": 0.0,
        "encoder.stochastic_depth": 0.0,
    }
    return config_lib.validate(config_lib.flatten(config) | plain | changes)


def contestants(config: Config, mesh: Mesh) -> Iterator[Contestant]:
    """Yield the plain step, then each rung of the supervised step and of SupMIM's."""
    whole = {"mim_weight": 0.0, "class_pass.keep": 1.0, "data.unlabelled": ""}
    supervised, make_task = simplified(config, **whole), TASKS[config.task].abstract
    yield from compiled("plain", [("Flax ViT", ())], supervised, mesh, plain_task)
    yield from compiled("supervised", rungs(supervised, mesh), supervised, mesh, make_task)
    if config.mim_weight:
        joint = simplified(config)
        yield from compiled("SupMIM", rungs(joint, mesh), joint, mesh, make_task)


def compiled(
    arm: str, steps: Sequence[Rung], config: Config, mesh: Mesh, make_task: MakeTask
) -> Iterator[Contestant]:
    """Yield the compiled steps of a task, each with its naive choices, from the same state."""
    rng = jax.random.key(config.seed)
    state, tx = initial_state(config, make_task(config), mesh)
    for name, choices in steps:
        attention = "cudnn" if "attention" not in choices and has_cudnn(config, mesh) else "xla"
        with naive.patched(*choices):
            task = make_task(simplified(config, **{"encoder.attention": attention}))
            programs = assemble.programs(config, task, tx, mesh, state)
            raw = pipeline.abstract_batch(config, mesh, slots=1)
            shapes = jax.eval_shape(programs.tokenize, task.frozen, raw)
            batches = noise_batch(shapes, sharding.batch_sharding(mesh, stacked=True))
            yield contestant(f"{arm} {name}", programs.train_steps, state, batches, rng)


def initial_state(
    config: Config, task: Task, mesh: Mesh
) -> tuple[step.State, optax.GradientTransformationExtraArgs]:
    """Return the state before the first step, on the mesh, and the optimizer."""
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, 10**6))
    make_state = functools.partial(step.create_state, jax.random.key(config.seed), task, tx)
    placement = sharding.of(assemble.placed_shapes(make_state, mesh, config.mesh.fsdp_splits))
    return jax.jit(make_state, out_shardings=placement)(), tx


def rungs(config: Config, mesh: Mesh) -> list[Rung]:
    """Return LADDER, without cuDNN's rung if cuDNN is not available."""
    return [rung for rung in LADDER if "cuDNN" not in rung[0] or has_cudnn(config, mesh)]


def has_cudnn(config: Config, mesh: Mesh) -> bool:
    """Return whether the config could use cuDNN's attention on these devices."""
    if mesh.devices.flat[0].platform != "gpu":
        return False
    with contextlib.suppress(ConfigError):
        simplified(config, **{"encoder.attention": "cudnn"})
        return True
    return False


def plain_task(config: Config) -> Task:
    """Return the task with a plain ViT as its encoder."""
    task: Any = TASKS[config.task].abstract(config)
    task.model = task.model.clone(encoder=naive.PlainViT(config.encoder, config.grid))
    return task


def contestant(
    name: str, train_steps: Any, state: step.State, batches: Raw, rng: jax.Array
) -> Contestant:
    """Return one step of a compiled program, with its own copy of the state."""
    one = np.int32(1)
    count = flops.count(train_steps, state, batches, one, rng)
    program = train_steps.lower(state, batches, one, rng).compile()
    temp_bytes = program.memory_analysis().temp_size_in_bytes
    state = jax.tree.map(jnp.copy, state)  # the step donates it

    def advance():
        nonlocal state
        state, totals = program(state, batches, one, rng)
        return totals

    return Contestant(name, advance, count, temp_bytes, batches["index"].shape[1])


def noise_batch(shapes: Raw, where: jax.sharding.Sharding) -> Raw:
    """Return a batch of noise, or a stack: all images valid, each label and id 0 or 1."""

    def fill(path, shape):
        if sharding.path_name(path) == "valid":
            return jax.device_put(jnp.ones(shape.shape, shape.dtype), where)
        top = 256 if shape.dtype == jnp.uint8 else 1
        values = jax.random.uniform(jax.random.key(0), shape.shape, maxval=top)
        values = values.round() if shape.dtype == jnp.int32 else values
        return jax.device_put(values, where).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def matmul(
    dtype: str, mesh: Mesh, axes: tuple[str, ...] = sharding.BATCH, precision: str | None = None
) -> Contestant:
    """Return the ceiling: one large square product per device, split over these axes."""
    side = SIDE[mesh.devices.flat[0].platform]
    where = NamedSharding(mesh, PartitionSpec(axes))
    left = jax.device_put(jnp.ones((mesh.size * side, side), dtype), where)
    right = jax.device_put(jnp.ones((side, side), dtype), sharding.replicated(mesh))
    product = jax.jit(functools.partial(jnp.matmul, precision=precision), out_shardings=where)
    return Contestant("matmul", lambda: product(left, right), 2.0 * mesh.size * side**3)


def table(result: dict[str, Any]) -> str:
    """Return the result as text of at most 80 columns."""
    lines = [
        f"{result['device']}, {result['dtype']}, batch {result['batch_size']}, median of "
        f"{counted(result['rounds'], 'round')}",
        f"matmul ceiling of this run: {result['matmul_tflops']:.3g} TFLOP/s",
        "",
        f"{'step':41}{'ms':>8}{'img/s':>8}{'/ plain':>8}{'matmul':>7}{'GB':>7}",
    ]
    return "\n".join([*lines, *(ROW.format(**one) for one in result["steps"]), LEGEND])
