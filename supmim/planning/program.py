"""The train step of a config on a mesh, without data: its shapes, FLOPs, memory and program."""

import math
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from supmim import assemble, optimizer, sharding, step
from supmim import config as config_lib
from supmim.config import Config
from supmim.data import calls, pipeline
from supmim.data.raw import Raw
from supmim.errors import DeviceError
from supmim.planning import flops, topology
from supmim.runtime.progress import doing
from supmim.tasks.registry import TASKS
from supmim.tokenizers import online


class PlannedStep(NamedTuple):
    """The jitted programs of training, with the abstract arguments that they take.

    raw, tokenized: stacks of batches.
    """

    config: Config
    mesh: jax.sharding.Mesh
    state: step.State
    raw: Raw
    tokenized: Raw
    frozen: Any
    key: Any
    tokenize: Any
    online: online.Tokenize
    train_steps: Any

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `train_steps` takes, abstract; its FLOPs are those of one step."""
        return self.state, self.tokenized, jax.ShapeDtypeStruct((), jnp.int32), self.key


def build(config: Config, mesh: jax.sharding.Mesh) -> PlannedStep:
    """Return the step that `train` runs, with a shorter schedule; call it in `jax.set_mesh`."""
    total_steps = config.optimizer.warmup_steps + 1
    task = TASKS[config.task].abstract(config)
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, total_steps))
    state = assemble.placed_shapes(
        lambda: step.create_state(jax.random.key(config.seed), task, tx),
        mesh,
        config.mesh.fsdp_splits,
    )
    programs = assemble.programs(config, task, tx, mesh, state)
    replicated, split = sharding.replicated(mesh), sharding.batch_sharding(mesh, stacked=True)
    frozen = placed(task.frozen, jax.tree.map(lambda _: replicated, task.frozen))
    raw = pipeline.abstract_batch(config, mesh, calls.slots_of(config, mesh))
    shapes = jax.eval_shape(programs.tokenize, frozen, raw)
    tokenized = placed(shapes, jax.tree.map(lambda _: split, shapes))
    key = jax.eval_shape(lambda: jax.random.key(config.seed))
    return PlannedStep(config, mesh, state, raw, tokenized, frozen, key, task.tokenize, *programs)


def placed(shapes: Any, shardings: Any) -> Any:
    """Return a tree of shapes with their shardings."""
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
    )


def chip_bytes(tree: Any) -> int:
    """Return the bytes of a tree of placed shapes on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def count_flops(planned: PlannedStep) -> dict[str, float]:
    """Return FLOPs per image, as a mean over the steps of the training.

    train: without remat. analytic: the same by formula, 0 for tasks that have none. executed: with
    what remat recomputes. tokenize: of the tokenizer's program.
    """
    config = planned.config

    def count(one: PlannedStep) -> float:
        return flops.count(one.train_steps, *one.arguments, taken=config.mim.step_share)

    once = executed = count(planned)
    if config.encoder.remat != "none":
        once = count(build(config_lib.replaced(config, {"encoder.remat": "none"}), planned.mesh))
    raw = pipeline.abstract_batch(config, planned.mesh)
    tokenize = flops.count(planned.tokenize, planned.frozen, raw)
    return {
        "train": once / config.step_images,
        "analytic": flops.analytic(config).train if config.task == "supmim" else 0.0,
        "executed": executed / config.step_images,
        "tokenize": tokenize / config.step_images,
    }


OUT_OF_MEMORY = (
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM",
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"allocate ([\d.]+)([KMGT]?)i?B",
)


class Compiled(NamedTuple):
    """A program's HLO and the compiler's memory analysis.

    If the chip's memory is too small, memory is None, text is empty and needed is a size in bytes.
    """

    memory: Any
    text: str
    needed: int


def compile_step(planned: PlannedStep, where: topology.Topology) -> Compiled:
    """Compile the train step. DeviceError if that fails for another reason than memory."""
    with doing(f"compiling the train step for {where.name}"):
        lowered = planned.train_steps.lower(*planned.arguments)
        return _compile(lowered, where)


def compile_tokenizer(planned: PlannedStep, where: topology.Topology) -> Compiled | None:
    """Compile the tokenizer for one microbatch; None if the run computes no target ids."""
    if not (parts := planned.online.microbatches(planned.frozen, planned.raw)):
        return None
    with doing(f"compiling the tokenizer for {where.name}"):
        return _compile(planned.online.lower(planned.frozen, parts[0]), where)


def _compile(lowered: jax.stages.Lowered, where: topology.Topology) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        is_tpu = where.devices[0].platform == "tpu"
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if is_tpu else {}
        try:
            compiled = lowered.compile({**where.options, **dump})
        except jax.errors.JaxRuntimeError as error:
            if not (needed := _bytes_needed(str(error))):
                raise DeviceError(
                    f"{where.compiler} could not compile a program for {where.name}: "
                    f"{topology.without_stack(error)}"
                ) from error
            return Compiled(None, "", needed)
        # jaxlib cannot read every program of libtpu back, so take the text that libtpu dumps.
        dumped = list(Path(folder).glob("*train_steps*after_codegen.txt"))
        text = dumped[0].read_text(encoding="utf-8") if dumped else compiled.as_text() or ""
    return Compiled(compiled.memory_analysis(), text, 0)


def _bytes_needed(message: str) -> int:
    """Return the bytes that an out-of-memory error asks for; 0 for other errors."""
    for pattern in OUT_OF_MEMORY:
        if found := re.search(pattern, message):
            return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
    return 0


def tokenizer_memory(planned: PlannedStep, compiled: Compiled | None) -> dict[str, int]:
    """Return the bytes on one chip that computing target ids takes; all 0 if the run computes none.

    compiled: from `compile_tokenizer`.
    """
    if compiled is None:
        return {"weights": 0, "microbatches": 0, "temporaries": 0, "program": 0}
    used, parts = compiled.memory, planned.online.microbatches(planned.frozen, planned.raw)
    return {
        "weights": chip_bytes(planned.frozen),
        "microbatches": chip_bytes(parts),
        "temporaries": used.temp_size_in_bytes if used else compiled.needed,
        "program": used.generated_code_size_in_bytes if used else 0,
    }


def memory_of(
    planned: PlannedStep, compiled: Compiled, tokenizer: dict[str, int]
) -> dict[str, int]:
    """Return the bytes on one chip by purpose, and their total; tokenizer: its `tokenizer_memory`.

    Target ids are computed between two steps: the state, the batches and both programs stay in
    memory, while the temporaries of step and tokenizer take turns. `tokenizer` in the result
    counts what stays, and the bytes by which its temporaries exceed those of the step.
    """
    batches = chip_bytes(planned.tokenized)
    parts = {
        "parameters": chip_bytes(planned.state.params),
        "optimizer": chip_bytes((planned.state.opt_state, planned.state.step)),
        "batch": batches + (1 + pipeline.DEVICE_AHEAD) * chip_bytes(planned.raw),
        "temporaries": compiled.needed,
        "program": 0,
        "padding": 0,
    }
    if used := compiled.memory:
        arguments = parts["parameters"] + parts["optimizer"] + batches
        parts["temporaries"] = used.temp_size_in_bytes
        parts["program"] = used.generated_code_size_in_bytes
        parts["padding"] = max(0, used.argument_size_in_bytes - arguments) + max(
            0, used.output_size_in_bytes - used.alias_size_in_bytes
        )
    turn = tokenizer["microbatches"] + tokenizer["temporaries"]
    excess = max(0, turn - parts["temporaries"])
    parts["tokenizer"] = tokenizer["weights"] + tokenizer["program"] + excess
    return parts | {"total": sum(parts.values())}
