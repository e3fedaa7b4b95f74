"""Time how the cost of a training grows with its sizes: the table of docs/performance.md.

    python tools/growth.py [batch_size | ... | "chips, fsdp" | images]

Sizes of the config, such as batch_size: time of a joint step with cached ids, against its FLOPs, on
one device; the rows of a block take turns and are relative to the first. chips: what a chip holds,
computes and sends in a step, on pretend devices, with as many images on each. images: the start of
a run on a folder, and the place of a sample in an epoch.
"""

import functools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import assemble, sharding
from supmim import config as config_lib
from supmim.benchmarks import step, tokenizer
from supmim.benchmarks.turns import take_turns
from supmim.config import Config
from supmim.data import run_sources
from supmim.data.order import Order
from supmim.planning import hlo, program, topology

ROUNDS, CHIPS = 7, (1, 2, 4, 8)
SIZES: dict[str, tuple[int, ...]] = {
    "batch_size": (8, 32, 128),
    "data.image_size": (48, 96, 192),
    "encoder.depth": (3, 6, 12),
    "classifier.num_classes": (10, 1_000, 10_000),
    "tokenizer.codebook_size": (256, 1_024, 4_096, 16_384),
}
IMAGES = (10_000, 100_000, 1_000_000)


def sized(**changes: Any) -> Config:
    """Return the config of `pictures:cpu` with changes, as the benchmarks time it."""
    config = config_lib.validate(config_lib.preset("pictures:cpu"))
    return step.simplified(
        config, **{"classifier.num_classes": 100, "data.eval_resize": 0, **changes}
    )


def steps(path: str) -> None:
    """Print a block of the joint step for one size."""
    mesh = assemble.mesh_of(sized())
    with jax.set_mesh(mesh):
        made = [
            tokenizer.training_step(str(size), sized(**{path: size}), mesh, cached=True)
            for size in SIZES[path]
        ]
        take_turns(made, ROUNDS)
    rows = []
    for one in made:
        time_ratio, flop_ratio = one.ratio(made[0]), one.flops / made[0].flops
        rows.append((one.name, time_ratio, flop_ratio, time_ratio / flop_ratio))
    print_block(path, ("time / first", "FLOPs / first", "time / FLOPs"), rows)


def chips(axis: str) -> None:
    """Print, for each number of chips along an axis of the mesh, what one of them has to do."""
    where = topology.load(f"cpu:{max(CHIPS)}")
    rows = []
    for count in CHIPS:
        config = sized(batch_size=16 * count)
        sizes = {"data": 1, "fsdp": 1, "tensor": 1} | {axis: count}
        mesh = sharding.make_mesh(**sizes, devices=where.devices[:count])
        with jax.set_mesh(mesh):
            planned = program.build(config, mesh)
            made = program.compile_step(planned, where)
            sent = sum(one.bytes * one.times for one in hlo.Program(made.text).collectives())
            state = program.chip_bytes((planned.state.params, planned.state.opt_state))
            flops = program.count_flops(planned)["train"] * config.batch_size / count
            temporaries = made.memory.temp_size_in_bytes
            rows.append((str(count), flops / 1e9, state / 1e6, temporaries / 1e6, sent / 1e6))
    names = ("GFLOP a chip", "state, MB", "temporaries, MB", "exchanged, MB")
    print_block(f"chips along {axis}", names, rows)


def folders() -> None:
    """Print what a folder's number of images costs: its start, memory and order of samples."""
    with tempfile.TemporaryDirectory() as folder:
        rows, made = [], 0
        for count in IMAGES:
            for number in range(made, count):
                path = Path(folder, f"class{number % 100:02}", f"{number:07}.jpg")
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"x")
            made = count
            command = [sys.executable, __file__, "load", folder]
            seconds, gigabytes, index = map(
                float, subprocess.run(command, check=True, capture_output=True).stdout.split()
            )
            rows.append((f"{count:,}", seconds, 1e6 * seconds / count, gigabytes, 1e6 * index))
    names = ("start, CPU s", "µs an image", "peak GB", "µs a sample's place")
    print_block("images", names, rows)


def load(folder: str) -> None:
    """Print CPU seconds of opening a folder, the peak of memory in GB, and seconds of a place."""
    config = sized(**{"data.train": f"folder:{folder}"})
    began = time.process_time()
    _, source, _ = run_sources.load(config)
    seconds = time.process_time() - began
    order, began = Order(len(source), 0), time.process_time()
    for first in range(0, 20_000, 1_000):
        order(np.arange(first, first + 1_000))
    index = (time.process_time() - began) / 20_000
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, index)


def print_block(what: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Print rows of Markdown, numbers with three digits."""
    print(f"\n| {what} | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for size, *values in rows:
        print(f"| {size} | {' | '.join(f'{value:.3g}' for value in values)} |", flush=True)


PARTS: dict[str, Callable[[], None]] = {
    **{path: functools.partial(steps, path) for path in SIZES},
    "chips, data": functools.partial(chips, "data"),
    "chips, fsdp": functools.partial(chips, "fsdp"),
    "images": folders,
}
if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        load(sys.argv[2])
    else:
        for part in sys.argv[1:] or PARTS:
            PARTS[part]()
