"""What the compiled step of the presets may cost on H200s; needs their compiler, but no GPU.

The figures are the compiler's of jax 0.10.2 with 3 % of room; docs/performance.md has them exact.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from supmim import assemble, cli, optimizer, sharding, step
from supmim.data import pipeline
from supmim.errors import DeviceError
from supmim.planning import h200, hlo
from supmim.tasks.registry import TASKS

CONFIGS = Path(__file__).parents[1] / "configs"
PER_GPU = 256
# The presets as they are timed on GPUs: unrolled, with cuDNN's attention.
UNROLLED = [
    f"--config.encoder.{option}"
    for option in ("attention=cudnn", "scan=False", "remat=none", "stochastic_depth=0")
]


@dataclasses.dataclass
class Budget:
    """kernels, GB at kernel boundaries per image, GB of temporaries."""

    kernels: int
    traffic: float
    temporaries: float


BUDGETS = {  # of one step of the loop, with the making of its views: some 60 kernels
    "s16:baseline": Budget(1458, 0.239, 8.0),
    "s16": Budget(2320, 0.460, 13.4),
    "b14:baseline": Budget(1445, 0.574, 20.8),
    "b14": Budget(2306, 0.945, 33.0),
    "l14:baseline": Budget(2711, 1.518, 54.7),
    "l14": Budget(4004, 2.366, 83.5),
}


def gpus(count):
    try:
        return h200.devices(count)
    except DeviceError as error:
        pytest.skip(str(error))


def compiled_step(preset, devices, *overrides, slots=1):
    """The program that `train` runs, compiled for these devices at 256 images on each."""
    flags = [f"--config={CONFIGS}/imagenet_{preset.partition(':')[0]}.py", *UNROLLED, *overrides]
    flags[0] += f":{preset.partition(':')[2] or 'supmim'}"
    flags += [f"--config.batch_size={PER_GPU * len(devices)}", "--workdir=unused"]
    config = cli.config_of(cli.VERBS["train"], cli.parse("train", flags))
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    where = sharding.batch_sharding(mesh, stacked=True)
    with jax.set_mesh(mesh):
        task = TASKS[config.task].abstract(config)
        tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, 10**6))
        state = assemble.placed_shapes(
            lambda: step.create_state(jax.random.key(0), task, tx), mesh, config.mesh.fsdp_splits
        )
        programs = assemble.programs(config, task, tx, mesh, state)
        raw = pipeline.abstract_batch(config, mesh, slots)
        batches = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            jax.eval_shape(programs.tokenize, task.frozen, raw),
        )
        rng, count = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(1)))
        lowered = programs.train_steps.lower(state, batches, count, rng)
        program = lowered.compile(h200.COMPILER_OPTIONS)
    return program, state.params


def cost(program):
    """What a Budget holds, of a compiled program, and the program that was read."""
    read = hlo.Program(program.as_text())
    return read, Budget(
        kernels=sum(kernel.times for kernel in read.kernels()),
        traffic=sum(read.traffic().values()) / PER_GPU / 1e9,
        temporaries=program.memory_analysis().temp_size_in_bytes / 1e9,
    )


@pytest.mark.parametrize(
    "preset",
    [name if name == "b14:baseline" else pytest.param(name, marks=pytest.mark.slow)
     for name in BUDGETS],
)  # fmt: skip
def test_the_step_stays_within_its_budget(preset):
    program, _ = compiled_step(preset, gpus(1))
    read, found = cost(program)
    for name, limit in dataclasses.asdict(BUDGETS[preset]).items():
        assert dataclasses.asdict(found)[name] <= limit, f"{preset}: {name} of {found}"
    assert read.float32_share() <= 0.01
    assert not read.collectives()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["s16:baseline", "b14"])
def test_data_parallel_gpus_exchange_gradients_and_one_image(preset):
    """Between 8 GPUs go the gradients, once, and the image that mixup takes from the next one."""
    program, params = compiled_step(preset, gpus(8))
    found = hlo.Program(program.as_text()).collectives()
    gradients = [one for one in found if one.kind == "all-reduce"]
    others = [one for one in found if one not in gradients]
    assert {one.devices for one in gradients} == {8}
    elements = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 2 * elements <= sum(one.bytes * one.times for one in gradients) <= 4 * elements
    assert {one.kind for one in others} <= {"collective-permute"}
    assert sum(one.bytes for one in others) < 1.01 * 224 * 224 * 3 * 4
