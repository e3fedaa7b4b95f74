"""Times training steps side by side: ours, a plain Flax ViT's, and the way from one to the other.

All take turns in the same run, so that ratios hold on a machine that does other things too.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from supmim import assemble, optimizer, sharding, step
from supmim import config as config_lib
from supmim.benchmarks import naive
from supmim.benchmarks.turns import Contestant, take_turns
from supmim.config import Config
from supmim.data import pipeline
from supmim.data.raw import Raw
from supmim.errors import ConfigError
from supmim.planning import flops
from supmim.tasks.base import Prepared, Task
from supmim.tasks.registry import TASKS

Batch = TypeVar("Batch", Raw, Prepared)

SIDE = {"gpu": 8192, "tpu": 8192, "cpu": 1024}  # of the square matrices of the ceiling

# docs/performance.md's steps from a naive bfloat16 build to ours; what each leaves naive.
LADDER = (
    ("1 naive", ("scores", "flat", "attention", "gelu", "separate")),
    ("2 scores in the compute dtype", ("flat", "attention", "gelu", "separate")),
    ("3 tokens flat", ("attention", "gelu", "separate")),
    ("4 cuDNN attention", ("gelu", "separate")),
    ("5 GELU keeps its input", ("separate",)),
    ("6 separate q, k, v: ours", ()),
)


@dataclasses.dataclass
class Step(Contestant):
    """A training step, or the product that is its ceiling."""

    flops: float = 0.0
    temp_bytes: int = 0


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Everything that is printed: a row per step, and the matmul ceiling of the same run."""
    config = assemble.settled(config)
    check(config)
    mesh = assemble.mesh_of(config)
    sharding.check_divides("batch_size", config.batch_size, mesh)
    with jax.set_mesh(mesh):
        ceiling = matmul(config.encoder.dtype, mesh)
        steps = list(contestants(config, mesh))
        take_turns([ceiling, *steps], rounds)
    plain = steps[0]
    peak = ceiling.flops / ceiling.median()
    return {
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "batch_size": config.batch_size,
        "dtype": config.encoder.dtype,
        "rounds": rounds,
        "matmul_tflops": peak / 1e12,
        "steps": [row(one, plain, config.batch_size, peak) for one in steps],
    }


def row(one: Step, plain: Step, batch_size: int, peak: float) -> dict[str, Any]:
    """Medians of a step; `time_to_plain` is the median of its ratios within a round."""
    seconds = one.median()
    return {
        "step": one.name,
        "milliseconds": 1000 * seconds,
        "images_per_second": batch_size / seconds,
        "time_to_plain": one.ratio(plain),
        "share_of_matmul": one.flops / seconds / peak,
        "temporaries_gb": one.temp_bytes / 1e9,
    }


def check(config: Config) -> None:
    """ConfigError where the plain ViT would not be the same network."""
    encoder = config.encoder
    if (encoder.pool, encoder.positions, encoder.attention) != ("gap", "sincos2d", "xla"):
        raise ConfigError(
            "supmim benchmark step compares with a plain ViT: leave config.encoder.pool=gap, "
            "config.encoder.positions=sincos2d and config.encoder.attention=xla (on a GPU it "
            "times cuDNN's attention by itself)"
        )


def settings(config: Config, **changes: Any) -> Config:
    """The config, unrolled and without what only the one or the other has, and with changes."""
    plain = {
        "accumulation_steps": 1,
        "encoder.scan": False,
        "encoder.remat": "none",
        "encoder.dropout": 0.0,
        "encoder.stochastic_depth": 0.0,
    }
    return config_lib.validate(config_lib.flatten(config) | plain | changes)


def contestants(config: Config, mesh: jax.sharding.Mesh) -> Iterator[Step]:
    """The plain step first, then each rung for the supervised step and for SupMIM's."""
    supervised = settings(config, mim_weight=0.0)
    yield from compiled("plain", [("Flax ViT", ())], supervised, mesh, plain_task)
    yield from compiled("supervised", rungs(supervised, mesh), supervised, mesh, abstract_task)
    if config.mim_weight:
        joint = settings(config)
        yield from compiled("SupMIM", rungs(joint, mesh), joint, mesh, abstract_task)


def compiled(
    arm: str, steps: list[tuple[str, tuple[str, ...]]], config: Config, mesh: jax.sharding.Mesh,
    make_task: Callable[[Any], Task],
) -> Iterator[Step]:  # fmt: skip
    """The steps of one task, each naive in its own choices, all from the same state."""
    rng = jax.random.key(config.seed)
    state, tx = first_state(config, make_task(config), mesh)
    for name, left in steps:
        expected = "cudnn" if "attention" not in left and has_cudnn(config, mesh) else "xla"
        with naive.naive(*left):
            task = make_task(settings(config, **{"encoder.attention": expected}))
            _, prepare, train_step = assemble.programs(config, task, tx, mesh, state)
            raw = pipeline.abstract_batch(config, mesh)
            shapes = jax.eval_shape(prepare, jax.eval_shape(task.tokenize, task.frozen, raw))
            batch = made_up(shapes, sharding.batch_sharding(mesh))
            yield contestant(f"{arm} {name}", train_step, state, batch, rng)


def first_state(
    config: Config, task: Task, mesh: jax.sharding.Mesh
) -> tuple[step.State, optax.GradientTransformation]:
    """The state of a task before its first step, on the mesh, and its optimizer."""
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, 10**6))
    make_state = functools.partial(step.create_state, jax.random.key(config.seed), task, tx)
    placement = sharding.of(assemble.place(make_state, mesh, config.mesh.fsdp_splits))
    return jax.jit(make_state, out_shardings=placement)(), tx


def rungs(config: Config, mesh: jax.sharding.Mesh) -> list[tuple[str, tuple[str, ...]]]:
    """LADDER, without cuDNN's rung where there is none."""
    if has_cudnn(config, mesh):
        return list(LADDER)
    return [rung for rung in LADDER if "cuDNN" not in rung[0]]


def has_cudnn(config: Config, mesh: jax.sharding.Mesh) -> bool:
    """Whether the config could use cuDNN's attention here."""
    if mesh.devices.flat[0].platform != "gpu":
        return False
    with contextlib.suppress(ConfigError):
        settings(config, **{"encoder.attention": "cudnn"})
        return True
    return False


def abstract_task(config: Config) -> Task:
    """The task of a config, without data."""
    return TASKS[config.task].abstract(config)


def plain_task(config: Config) -> Task:
    """The supervised task with a plain ViT for its encoder."""
    task = abstract_task(config)
    names = ("patch_size", "width", "depth", "num_heads", "mlp_dim", "gelu", "dtype")
    sizes = {name: vars(config.encoder)[name] for name in names}
    task.model = task.model.clone(encoder=naive.PlainViT(grid=task.grid, **sizes))
    return task


def contestant(
    name: str, train_step: Any, state: step.State, batch: Prepared, rng: jax.Array
) -> Step:
    """A jitted step, compiled, with a state of its own to run it on."""
    count = flops.count(train_step, state, batch, rng)
    program = train_step.lower(state, batch, rng).compile()
    temp_bytes = program.memory_analysis().temp_size_in_bytes
    state = jax.tree.map(jnp.copy, state)  # it is donated

    def advance():
        nonlocal state
        state, totals = program(state, batch, rng)
        return totals

    return Step(name, advance, flops=count, temp_bytes=temp_bytes)


def made_up(shapes: Batch, where: jax.sharding.Sharding) -> Batch:
    """A batch, raw or prepared: images of noise, all valid, every label and id 0 or 1."""

    def fill(path, shape):
        if sharding.path_name(path) == "valid":
            return jax.device_put(jnp.ones(shape.shape, shape.dtype), where)
        top = 256 if shape.dtype == jnp.uint8 else 1
        values = jax.random.uniform(jax.random.key(0), shape.shape, maxval=top)
        values = values.round() if shape.dtype == jnp.int32 else values
        return jax.device_put(values, where).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def matmul(dtype: str, mesh: jax.sharding.Mesh) -> Step:
    """The ceiling: one large square product per device, in the dtype of the steps."""
    side = SIDE[mesh.devices.flat[0].platform]
    where = sharding.batch_sharding(mesh)
    left = jax.device_put(jnp.ones((mesh.size * side, side), dtype), where)
    right = jax.device_put(jnp.ones((side, side), dtype), sharding.replicated(mesh))
    product = jax.jit(jnp.matmul, out_shardings=where)
    return Step("matmul", lambda: product(left, right), flops=2.0 * mesh.size * side**3)


def table(result: dict[str, Any]) -> str:
    """The result as text of at most 80 columns."""
    lines = [
        f"{result['device']}, {result['dtype']}, batch {result['batch_size']}, median of "
        f"{result['rounds']} rounds",
        f"matmul ceiling of this run: {result['matmul_tflops']:.3g} TFLOP/s",
        "",
        f"{'step':41}{'ms':>8}{'img/s':>8}{'/ plain':>8}{'matmul':>7}{'GB':>7}",
    ]
    for one in result["steps"]:
        lines.append(
            f"{one['step']:41}{one['milliseconds']:8.1f}{one['images_per_second']:8.0f}"
            f"{one['time_to_plain']:8.3f}{one['share_of_matmul']:7.0%}{one['temporaries_gb']:7.2f}"
        )
    return "\n".join([
        *lines, "",
        "/ plain: time of a step to the plain step's; matmul: share of the ceiling; GB:",
        "temporaries. Each rung keeps those before it.",
    ])  # fmt: skip
