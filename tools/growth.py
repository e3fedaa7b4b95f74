"""Measure how the cost of a training step grows with each size, for docs/whole_runs.md.

    python tools/growth.py [--chips]

Time and FLOPs of a step are ratios to those of the row's smallest size; the programs of a row take
turns. --chips: bytes that collectives move per step and device instead, on pretend devices.
"""

import sys
from pathlib import Path
from typing import Any

if "--chips" in sys.argv:
    import os

    os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np

from supmim import assemble, sharding
from supmim import config as config_lib
from supmim.benchmarks import step, tokenizer
from supmim.benchmarks.turns import take_turns
from supmim.config import Config, pyfile
from supmim.data import images
from supmim.data.sources import base
from supmim.data.stream import Training
from supmim.planning import hlo, program

ROUNDS = 7
BASE = {"classifier.num_classes": 10, "batch_size": 64}
ROWS: dict[str, tuple[str, tuple[int, ...]]] = {
    "batch": ("batch_size", (32, 64, 128)),
    "side in pixels": ("data.image_size", (8, 16, 32)),
    "blocks of the encoder": ("encoder.depth", (3, 6, 12)),
    "classes": ("classifier.num_classes", (10, 1_000, 20_000)),
    "codes": ("tokenizer.codebook_size", (64, 1_024, 16_384)),
}


def config_with(**changes: Any) -> Config:
    """Return the digits preset with changes."""
    flat = config_lib.flatten(pyfile.preset(Path(), "configs/digits.py"))
    return config_lib.validate(flat | BASE | changes)


def steps() -> None:
    """Print a line for each size: time and FLOPs, to those of the smallest."""
    for name, (option, sizes) in ROWS.items():
        configs = [config_with(**{option: size}) for size in sizes]
        mesh = assemble.mesh_of(configs[0])
        with jax.set_mesh(mesh):
            timed = [tokenizer.training_step(name, one, mesh, cached=True) for one in configs]
            take_turns(timed, ROUNDS)
        for size, one in zip(sizes, timed, strict=True):
            work = one.flops / timed[0].flops
            print(f"{name:24}{size:>10,}{one.ratio(timed[0]):>8.2f}{work:>8.2f}", flush=True)


class Counted(base.InMemory):
    """So many images of one pixel, for the order of samples alone."""

    def __init__(self, count: int) -> None:
        super().__init__("noise", np.zeros((count, 1, 1, 1), np.uint8), np.zeros(count, int), "ab")


def sources() -> None:
    """Print the time of a host's part of a batch, to that of the smallest source."""
    data = config_lib.replaced(config_with(), {"data.image_size": 1}).data
    timed, sizes = [], (10_000, 100_000, 1_000_000)
    for count in sizes:
        stream = Training(images.training(Counted(count), data), 0, 64, np.arange(64))
        numbers = iter(np.random.default_rng(0).integers(0, count, 10**6))
        timed.append(step.Contestant("", lambda s=stream, n=numbers: s(int(next(n)))))
    take_turns(timed, ROUNDS)
    for count, one in zip(sizes, timed, strict=True):
        print(f"{'images in the source':24}{count:>10,}{one.ratio(timed[0]):>8.2f}", flush=True)


def chips() -> None:
    """Print what collectives move per step and device, at the same rows on each."""
    for count in (1, 2, 4, 8):
        config = config_with(batch_size=32 * count)
        mesh = sharding.make_mesh(count, 1, 1, jax.devices()[:count])
        with jax.set_mesh(mesh):
            real = program.build(config, mesh)
            text = real.train_steps.lower(*real.arguments).compile().as_text()
        moved = sum(one.bytes * one.times for one in hlo.Program(text or "").collectives())
        parameters = program.chip_bytes(real.state.params)
        print(f"{'devices':24}{count:>10,}{moved / parameters:>8.2f}", flush=True)


if __name__ == "__main__":
    chips() if "--chips" in sys.argv else (steps(), sources())
