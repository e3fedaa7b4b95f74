"""The train step of a config on a mesh, without data: its shapes, FLOPs, memory and program."""

import math
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

from supmim import assemble, optimizer, sharding, step
from supmim import config as config_lib
from supmim.config import Config
from supmim.data import pipeline
from supmim.data.raw import Raw
from supmim.errors import DeviceError
from supmim.planning import flops, topology
from supmim.tasks.base import Prepared
from supmim.tasks.registry import TASKS
from supmim.tokenizers import online


class Step(NamedTuple):
    """The jitted step of a config on a mesh, with the shapes that it takes."""

    config: Config
    mesh: jax.sharding.Mesh
    state: step.State
    raw: Raw
    prepared: Prepared
    frozen: Any
    key: Any
    tokenize: Any
    online: online.Tokenize
    prepare: Any
    train_step: Any


def build(config: Config, mesh: jax.sharding.Mesh) -> Step:
    """What `train` would run, but for the length of its schedule; under `jax.set_mesh(mesh)`."""
    total_steps = config.optimizer.warmup_steps + 1
    task = TASKS[config.task].abstract(config)
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, total_steps))
    state = assemble.place(
        lambda: step.create_state(jax.random.key(config.seed), task, tx),
        mesh,
        config.mesh.fsdp_splits,
    )
    ahead, prepare, train_step = assemble.programs(config, task, tx, mesh, state)
    everywhere = sharding.replicated(mesh)
    frozen = placed(task.frozen, jax.tree.map(lambda _: everywhere, task.frozen))
    raw = pipeline.abstract_batch(config, mesh)
    tokenized = jax.eval_shape(task.tokenize, frozen, raw)
    shapes = jax.eval_shape(prepare, tokenized)
    prepared = placed(shapes, jax.tree.map(lambda _: sharding.batch_sharding(mesh), shapes))
    key = jax.eval_shape(lambda: jax.random.key(config.seed))
    return Step(
        config, mesh, state, raw, prepared, frozen, key, task.tokenize, ahead, prepare, train_step
    )


def placed(shapes: Any, where: Any) -> Any:
    """Shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, where
    )


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def count_flops(real: Step) -> dict[str, float]:
    """Per image: of the training, by formula, as executed (with what remat repeats), of its ids.

    A tokenizer has no formula: 0.
    """
    executed = flops.count(real.train_step, real.state, real.prepared, real.key)
    once = executed
    if real.config.encoder.remat != "none":
        plain = config_lib.replaced(real.config, {"encoder.remat": "none"})
        other = build(plain, real.mesh)
        once = flops.count(other.train_step, other.state, other.prepared, other.key)
    images = real.config.batch_size
    return {
        "train": once / images,
        "analytic": flops.analytic(real.config).train if real.config.task == "supmim" else 0.0,
        "executed": executed / images,
        "tokenize": flops.count(real.tokenize, real.frozen, real.raw) / images,
    }


OUT_OF_MEMORY = (
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM",
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"allocate ([\d.]+)([KMGT]?)i?B",
)


class Compiled(NamedTuple):
    """The compiler's account of memory (None if it gave up, for `needed` bytes) and the HLO."""

    memory: Any
    text: str
    needed: int


def compile_step(real: Step, where: topology.Topology) -> Compiled:
    """The train step; DeviceError if the compiler fails for another reason than memory."""
    return compile_for(where, real.train_step.lower(real.state, real.prepared, real.key))


def compile_tokenizer(real: Step, where: topology.Topology) -> Compiled | None:
    """The program of one microbatch of ids, or None where a run computes none."""
    if not (parts := real.online.microbatches(real.frozen, real.raw)):
        return None
    return compile_for(where, real.online.lower(real.frozen, parts[0]))


def compile_for(where: topology.Topology, lowered: jax.stages.Lowered) -> Compiled:
    """See compile_step."""
    with tempfile.TemporaryDirectory() as folder:
        is_tpu = where.devices[0].platform == "tpu"
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if is_tpu else {}
        try:
            found = lowered.compile(where.options | dump)
        except jax.errors.JaxRuntimeError as error:
            if not (needed := _bytes_needed(str(error))):
                raise DeviceError(f"{where.compiler}, {where.name}: {error}") from error
            return Compiled(None, "", needed)
        # libtpu's own text: jaxlib cannot always read libtpu's program back.
        dumped = list(Path(folder).glob("*train_step*after_codegen.txt"))
        text = dumped[0].read_text(encoding="utf-8") if dumped else found.as_text()
    return Compiled(found.memory_analysis(), text, 0)


def _bytes_needed(message: str) -> int:
    """Of an error that says how much memory is missing; 0 of others."""
    for pattern in OUT_OF_MEMORY:
        if found := re.search(pattern, message):
            return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
    return 0


def tokenizer_memory(real: Step, compiled: Compiled | None) -> dict[str, int]:
    """Bytes of one chip that computing ids takes; all 0 where there are none to compute."""
    if compiled is None:
        return {"weights": 0, "microbatches": 0, "temporaries": 0, "program": 0}
    used, parts = compiled.memory, real.online.microbatches(real.frozen, real.raw)
    return {
        "weights": chip_bytes(real.frozen),
        "microbatches": chip_bytes(parts),
        "temporaries": used.temp_size_in_bytes if used else compiled.needed,
        "program": used.generated_code_size_in_bytes if used else 0,
    }


def memory_of(real: Step, compiled: Compiled, tokenizer: dict[str, int]) -> dict[str, int]:
    """Bytes of one chip by what they are for.

    Ids are computed between two steps: state, batches and both programs stay, and temporaries take
    turns. `tokenizer` has what stays of it and what its turn takes beyond the step's.
    """
    parts = {
        "parameters": chip_bytes(real.state.params),
        "optimizer": chip_bytes((real.state.opt_state, real.state.step)),
        "batch": chip_bytes(real.prepared) + (1 + pipeline.DEVICE_AHEAD) * chip_bytes(real.raw),
        "temporaries": compiled.needed,
        "program": 0,
        "padding": 0,
    }
    if used := compiled.memory:
        arguments = parts["parameters"] + parts["optimizer"] + chip_bytes(real.prepared)
        parts["temporaries"] = used.temp_size_in_bytes
        parts["program"] = used.generated_code_size_in_bytes
        parts["padding"] = max(0, used.argument_size_in_bytes - arguments) + max(
            0, used.output_size_in_bytes - used.alias_size_in_bytes
        )
    turn = tokenizer["microbatches"] + tokenizer["temporaries"]
    beyond = max(0, turn - parts["temporaries"])
    parts["tokenizer"] = tokenizer["weights"] + tokenizer["program"] + beyond
    return parts | {"total": sum(parts.values())}
