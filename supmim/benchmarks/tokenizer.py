"""Timing of target ids: the tokenizer alone, and a training step without masked image modelling,
with ids that it computes, and with ids from a cache. All take turns in the same run.

Shapes: B batch, S image side, C channels, N tokens.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from supmim import assemble, sharding, tokenizers
from supmim import config as config_lib
from supmim.benchmarks.step import initial_state, matmul, noise_batch, simplified
from supmim.benchmarks.turns import Contestant, take_turns
from supmim.config import Config, options
from supmim.data import images, pipeline, run_sources, sources
from supmim.data.raw import Raw
from supmim.data.sources import base
from supmim.errors import ConfigError, counted
from supmim.planning import flops
from supmim.tasks.base import Task
from supmim.tasks.registry import TASKS
from supmim.tokenizers import online

DTYPES = ("float32", "bfloat16")
TOKENIZER_ROW = (
    "{tokenizer:33}{images_per_second:10,.1f}{gmac_per_image:10.4g}{share_of_matmul:10.0%}"
)
STEP_ROW = (
    "{step:25}{milliseconds:10,.1f}{images_per_second:10,.1f}{time_ratio:10.3f}{flop_ratio:10.3f}"
    "{time_by_flops:10.3f}"
)
LEGEND = """
GMAC: per image. time, FLOPs: divided by those of the step without MIM; all
steps start from raw images. by FLOPs: time divided by FLOPs, which is 1 if MIM
takes as much more time as it takes more FLOPs."""


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Return what `table` prints. ConfigError if the config has no tokenizer."""
    if not config.has_tokenizer:
        raise ConfigError(
            "supmim benchmark tokenizer times target ids: it takes a config of task=supmim with "
            "config.mim_weight above 0 and config.mim.target=tokens"
        )
    off = {"data.targets": "", "data.unlabelled": ""}
    config = config_lib.replaced(run_sources.settled(config), off)
    mesh = assemble.mesh_of(config)
    sharding.check_batches(config, mesh)
    dtypes = DTYPES[:1] if config.tokenizer.name == "patch_vq" else DTYPES
    with jax.set_mesh(mesh):
        encoders = [tokenizer_alone(config, dtype, mesh) for dtype in dtypes]
        ceiling, steps = matmul(config.encoder.dtype, mesh), list(training_steps(config, mesh))
        take_turns([ceiling, *encoders, *steps], rounds)
        agreement = dtype_agreement(config) if len(encoders) == 2 else None
    return {
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "batch_size": config.batch_size,
        "rounds": rounds,
        "matmul_tflops": ceiling.rate() / 1e12,
        "weights": config.tokenizer.path or "random",
        "agreement_of_bfloat16": agreement,
        "tokenizers": [tokenizer_row(one, config.batch_size, ceiling.rate()) for one in encoders],
        "steps": [training_row(one, steps[0], config.batch_size) for one in steps],
    }


def tokenizer_row(one: Contestant, batch_size: int, peak: float) -> dict[str, Any]:
    """Return rate and cost of the tokenizer; a multiplication with its addition is 1 MAC."""
    return {
        "tokenizer": one.name,
        "images_per_second": batch_size / one.median(),
        "gmac_per_image": one.flops / batch_size / 2e9,
        "share_of_matmul": one.rate() / peak,
    }


def training_row(one: Contestant, without: Contestant, batch_size: int) -> dict[str, Any]:
    """Return the medians of a step, and its ratios to the step without MIM."""
    time_ratio, flop_ratio = one.ratio(without), one.flops / without.flops
    return {
        "step": one.name,
        "milliseconds": 1000 * one.median(),
        "images_per_second": batch_size / one.median(),
        "time_ratio": time_ratio,
        "flop_ratio": flop_ratio,
        "time_by_flops": time_ratio / flop_ratio,
    }


def load_tokenizer(config: Config) -> tokenizers.Tokenizer:
    """Return the tokenizer of config.tokenizer.path, or one of random weights, equal in cost."""
    if config.tokenizer.path:
        return tokenizers.load(config)
    leaves, tree = jax.tree.flatten(tokenizers.abstract(config))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    weights = [
        jax.random.normal(key, leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, weights)


def tokenizer_alone(config: Config, dtype: str, mesh: Mesh) -> Contestant:
    """Return the program that turns images into ids, as a run has it."""
    config = config_lib.replaced(config, {"tokenizer.dtype": dtype})
    task, raw = task_with_tokenizer(config, mesh), raw_noise(config, mesh)
    tokenize = online.Tokenize(task.tokenize, mesh, config.tokenizer.microbatch)
    count = flops.count(task.tokenize, task.frozen, raw)
    return Contestant(dtype, lambda: tokenize(task.frozen, raw), count)


def task_with_tokenizer(config: Config, mesh: Mesh) -> Task:
    """Return the task of a config, without data; its tokenizer, if any, has weights."""
    task = TASKS[config.task].abstract(config)
    if task.frozen is not None:
        task.frozen = jax.device_put(load_tokenizer(config), sharding.replicated(mesh))
    return task


def raw_noise(config: Config, mesh: Mesh, slots: int = 0) -> Raw:
    """Return a raw batch of noise, or a stack of `slots`, placed on the devices as readers do."""
    where = sharding.batch_sharding(mesh, stacked=slots > 0)
    return noise_batch(pipeline.abstract_batch(config, mesh, slots), where)


def training_steps(config: Config, mesh: Mesh) -> Iterator[Contestant]:
    """Yield a step without MIM, then with two passes and with one, with ids online and cached."""
    yield training_step("no MIM", simplified(config, mim_weight=0.0), mesh)
    for passes, name in (("two", "two passes"), ("one", "one pass")):
        # With one pass there is only one view, so the options of the class view have no effect.
        paths = options.that_change("colours", "class view") if passes == "one" else ()
        one_view = {path: options.OPTIONS[path].default for path in paths}
        arm = simplified(config, **one_view, **{"mim.passes": passes})
        yield training_step(f"{name}, ids online", arm, mesh)
        yield training_step(f"{name}, ids cached", arm, mesh, cached=True)


def training_step(name: str, config: Config, mesh: Mesh, cached: bool = False) -> Contestant:
    """Return all that runs on the devices in a step, from a raw batch on; cached: with its ids."""
    task, rng = task_with_tokenizer(config, mesh), jax.random.key(config.seed)
    state, tx = initial_state(config, task, mesh)
    tokenize, train_steps = assemble.programs(config, task, tx, mesh, state)
    raw, one = raw_noise(config, mesh, slots=1), np.int32(1)
    tokenized = tokenize(task.frozen, raw)
    count = flops.count(train_steps, state, tokenized, one, rng)
    if not cached:
        count += flops.count(task.tokenize, task.frozen, pipeline.abstract_batch(config, mesh))
    raw = tokenized if cached else raw
    program = train_steps.lower(state, tokenized, one, rng).compile()

    def advance():
        nonlocal state
        state, totals = program(state, tokenize(task.frozen, raw), one, rng)
        return totals

    return Contestant(name, advance, count)


def dtype_agreement(config: Config) -> float:
    """Return the share of ids that are the same in bfloat16 and float32, on one microbatch.

    The images are those of the evaluation for a trained tokenizer, and noise for a random one.
    """
    size, count = config.tokenizer_size, config.tokenizer.microbatch
    if config.tokenizer.path:
        data = config_lib.replaced(config, {"data.image_size": size}).data
        cropped = images.evaluation(sources.load(config.data)[1], data)
        pixels = cropped.read(base.evenly(len(cropped), count))["image"] / np.float32(255)
    else:
        shape = (count, size, size, config.data.channels)
        pixels = jax.random.uniform(jax.random.key(1), shape)
    encode = jax.jit(lambda frozen, x: frozen.encode(x))
    found = [load_tokenizer(config_lib.replaced(config, {"tokenizer.dtype": d})) for d in DTYPES]
    ids = [encode(tokenizer, jnp.asarray(pixels)) for tokenizer in found]
    return float((ids[0] == ids[1]).mean())


def table(result: dict[str, Any]) -> str:
    """Return the result as text of at most 80 columns."""
    weights = "random weights" if result["weights"] == "random" else result["weights"]
    rounds = counted(result["rounds"], "round")
    lines = [
        f"{result['device']}, batch {result['batch_size']}, median of {rounds}",
        f"matmul ceiling of this run: {result['matmul_tflops']:.3g} TFLOP/s",
        f"tokenizer: {weights}"[:80],
        "",
        f"{'tokenizer':33}{'img/s':>10}{'GMAC':>10}{'matmul':>10}",
    ]
    lines += [TOKENIZER_ROW.format(**one) for one in result["tokenizers"]]
    if result["agreement_of_bfloat16"] is not None:
        lines.append(f"equal ids in bfloat16 and float32: {result['agreement_of_bfloat16']:.2%}")
    lines += ["", f"{'step':25}{'ms':>10}{'img/s':>10}{'time':>10}{'FLOPs':>10}{'by FLOPs':>10}"]
    return "\n".join([*lines, *(STEP_ROW.format(**one) for one in result["steps"]), LEGEND])
