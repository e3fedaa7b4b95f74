"""Times what target ids cost: the tokenizer alone, and a training step without masked images, with
ids computed beside it, and with ids that were read. All take turns in the same run.

Shapes: B batch, S image side, C channels, N tokens.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim import assemble, sharding, tokenizers
from supmim import config as config_lib
from supmim.benchmarks.step import Step, first_state, made_up, matmul, settings
from supmim.benchmarks.turns import take_turns
from supmim.config import Config, options
from supmim.data import images, pipeline, sources
from supmim.data.raw import Raw
from supmim.data.sources import base
from supmim.errors import ConfigError
from supmim.planning import flops
from supmim.tasks.base import Task
from supmim.tasks.registry import TASKS
from supmim.tokenizers import online

DTYPES = {"patch_vq": ("float32",)}  # of the others: both
BOTH = ("float32", "bfloat16")
WITHOUT = "no MIM"


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Everything that is printed."""
    if not config.has_tokenizer:
        raise ConfigError(
            "supmim benchmark tokenizer times target ids: it takes a config of task=supmim with "
            "config.mim_weight above 0 and config.mim.target=tokens"
        )
    config = config_lib.replaced(assemble.settled(config), {"data.targets": ""})
    mesh = assemble.mesh_of(config)
    sharding.check_divides("batch_size", config.batch_size, mesh)
    with jax.set_mesh(mesh):
        encoders = [encoder(config, dtype, mesh) for dtype in dtypes(config)]
        ceiling, steps = matmul(config.encoder.dtype, mesh), list(contestants(config, mesh))
        take_turns([ceiling, *encoders, *steps], rounds)
        agreement = agree(config) if len(encoders) == 2 else None
    peak = ceiling.flops / ceiling.median()
    return {
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "batch_size": config.batch_size,
        "rounds": rounds,
        "matmul_tflops": peak / 1e12,
        "weights": config.tokenizer.path or "random",
        "agreement_of_bfloat16": agreement,
        "tokenizers": [of_encoder(one, config, peak) for one in encoders],
        "steps": [of_step(one, steps[0], config.batch_size) for one in steps],
    }


def dtypes(config: Config) -> tuple[str, ...]:
    """Those that the tokenizer can compute in."""
    return DTYPES.get(config.tokenizer.name, BOTH)


def of_encoder(one: Step, config: Config, peak: float) -> dict[str, Any]:
    """Rate and cost of the tokenizer; a multiplication with its addition is 1 MAC."""
    size, seconds = config.batch_size, one.median()
    return {
        "tokenizer": one.name,
        "images_per_second": size / seconds,
        "gmac_per_image": one.flops / size / 2e9,
        "share_of_matmul": one.flops / seconds / peak,
    }


def of_step(one: Step, without: Step, batch_size: int) -> dict[str, Any]:
    """Medians of a step, and its ratios to the step without MIM."""
    time_ratio, flop_ratio = one.ratio(without), one.flops / without.flops
    return {
        "step": one.name,
        "milliseconds": 1000 * one.median(),
        "images_per_second": batch_size / one.median(),
        "time_ratio": time_ratio,
        "flop_ratio": flop_ratio,
        "time_by_flops": time_ratio / flop_ratio,
    }


def tokenizer_of(config: Config) -> tokenizers.Tokenizer:
    """That of config.tokenizer.path, or one of random weights: its cost is the same."""
    if config.tokenizer.path:
        return tokenizers.load(config)
    shapes = tokenizers.abstract(config)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            jax.random.normal(key, leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
            for key, leaf in zip(keys, leaves, strict=True)
        ],
    )


def encoder(config: Config, dtype: str, mesh: jax.sharding.Mesh) -> Step:
    """Images to ids as a run does it, with nothing else."""
    config = config_lib.replaced(config, {"tokenizer.dtype": dtype})
    task, raw = task_of(config, mesh), raw_batch(config, mesh)
    tokenize = online.Tokenize(task.tokenize, mesh, config.tokenizer.microbatch)
    count = flops.count(task.tokenize, task.frozen, raw)
    return Step(dtype, lambda: tokenize(task.frozen, raw), flops=count)


def task_of(config: Config, mesh: jax.sharding.Mesh) -> Task:
    """The task of a config without data, with a tokenizer that computes."""
    task = TASKS[config.task].abstract(config)
    if task.frozen is not None:
        task.frozen = jax.device_put(tokenizer_of(config), sharding.replicated(mesh))
    return task


def raw_batch(config: Config, mesh: jax.sharding.Mesh) -> Raw:
    """What the readers would have placed on the devices: noise."""
    return made_up(pipeline.abstract_batch(config, mesh), sharding.batch_sharding(mesh))


def contestants(config: Config, mesh: jax.sharding.Mesh) -> Iterator[Step]:
    """A training step without MIM; then with it, in two passes and in one, online and cached."""
    yield whole_step(WITHOUT, settings(config, mim_weight=0.0), mesh)
    for passes, name in (("two", "two passes"), ("one", "one pass")):
        arm = settings(config, **one_view(passes), **{"mim.passes": passes})
        yield whole_step(f"{name}, ids online", arm, mesh)
        yield whole_step(f"{name}, ids cached", arm, mesh, cached=True)


def one_view(passes: str) -> dict[str, Any]:
    """What a single pass must do without: a class view of its own."""
    paths = options.that_change("colours", "class view") if passes == "one" else ()
    return {path: options.OPTIONS[path].default for path in paths}


def whole_step(name: str, config: Config, mesh: jax.sharding.Mesh, cached: bool = False) -> Step:
    """All that a step runs on the devices from a raw batch on; cached: target ids are in that."""
    task, rng = task_of(config, mesh), jax.random.key(config.seed)
    state, tx = first_state(config, task, mesh)
    tokenize, prepare, train_step = assemble.programs(config, task, tx, mesh, state)
    raw = raw_batch(config, mesh)
    tokenized = tokenize(task.frozen, raw)
    raw = tokenized if cached else raw
    prepared = prepare(tokenized)
    count = flops.count(task.tokenize, task.frozen, raw)
    count += flops.count(train_step, state, prepared, rng)
    program = train_step.lower(state, prepared, rng).compile()

    def advance():
        nonlocal state
        state, totals = program(state, prepare(tokenize(task.frozen, raw)), rng)
        return totals

    return Step(name, advance, flops=count)


def agree(config: Config) -> float:
    """Share of ids that bfloat16 and float32 have in common, on one microbatch.

    Of evaluation images where there is a trained tokenizer, else of noise.
    """
    size, count = config.tokenizer_size, config.tokenizer.microbatch
    if config.tokenizer.path:
        data = config_lib.replaced(config, {"data.image_size": size}).data
        seen = images.evaluation(sources.load(config.data)[1], data)
        pixels = seen.read(base.evenly(len(seen), count))["image"] / np.float32(255)
    else:
        shape = (count, size, size, config.data.channels)
        pixels = jax.random.uniform(jax.random.key(1), shape)
    ids = [
        jax.jit(lambda frozen, x: frozen.encode(x))(
            tokenizer_of(config_lib.replaced(config, {"tokenizer.dtype": dtype})),
            jnp.asarray(pixels),
        )
        for dtype in BOTH
    ]
    return float((ids[0] == ids[1]).mean())


def table(result: dict[str, Any]) -> str:
    """The result as text of at most 80 columns."""
    weights = "random weights" if result["weights"] == "random" else result["weights"]
    lines = [
        f"{result['device']}, batch {result['batch_size']}, median of {result['rounds']} rounds",
        f"matmul ceiling of this run: {result['matmul_tflops']:.3g} TFLOP/s",
        f"tokenizer: {weights}"[:80],
        "",
        f"{'tokenizer':33}{'img/s':>10}{'GMAC':>10}{'matmul':>10}",
    ]
    for one in result["tokenizers"]:
        lines.append(
            f"{one['tokenizer']:33}{one['images_per_second']:10,.1f}{one['gmac_per_image']:10.4g}"
            f"{one['share_of_matmul']:10.0%}"
        )
    if result["agreement_of_bfloat16"] is not None:
        lines.append(f"ids of bfloat16 and float32 agree: {result['agreement_of_bfloat16']:.2%}")
    lines += ["", f"{'step':25}{'ms':>10}{'img/s':>10}{'time':>10}{'FLOPs':>10}{'by FLOPs':>10}"]
    for one in result["steps"]:
        lines.append(
            f"{one['step']:25}{one['milliseconds']:10,.1f}{one['images_per_second']:10,.1f}"
            f"{one['time_ratio']:10.3f}{one['flop_ratio']:10.3f}{one['time_by_flops']:10.3f}"
        )
    return "\n".join([
        *lines, "",
        "GMAC: per image. time, FLOPs: as multiples of the step without MIM, from raw",
        "images on. by FLOPs: time over FLOPs, 1 where MIM costs what it computes.",
    ])  # fmt: skip
