"""Time what docs/whole_runs.md leaves open, on one accelerator, in order of importance.

    python tools/h200.py OUT.jsonl [--small]

Each part runs in a process of its own, so that one that fails or takes too long stops no other,
and adds its lines of JSON as soon as they are known. --small: sizes for a CPU, to try the script.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import assemble
from supmim import config as config_lib
from supmim.benchmarks import step, tokenizer
from supmim.benchmarks.turns import Contestant, take_turns
from supmim.config import Config
from supmim.data import calls, images, pipeline, resident
from supmim.data.sources import base
from supmim.errors import SupmimError
from supmim.planning import flops

SECONDS, ROUNDS = 140, 5  # of a part; of its programs' turns
CIFAR_IMAGES = 50_000
SMALL = {
    "batch_size": 8, "encoder.depth": 1, "encoder.width": 64, "encoder.num_heads": 2,
    "encoder.mlp_dim": 128, "decoder.depth": 1, "decoder.width": 64, "decoder.num_heads": 2,
    "decoder.mlp_dim": 128, "tokenizer.codebook_size": 64,
    "tokenizer.microbatch": 4, "encoder.dtype": "float32",
}  # fmt: skip
Row = dict[str, Any]


def sized(preset: str, batch_size: int, small: bool, **changes: Any) -> Config:
    """Return a preset's config for one device, as the benchmarks time it, without its data."""
    config = config_lib.validate(config_lib.preset(preset))
    classes = {"classifier.num_classes": config.classifier.num_classes or 1000}
    changes = {"batch_size": batch_size, "data.targets": "", **classes, **changes}
    return step.simplified(config, **(changes | (SMALL if small else {})))


def rows_of(contestants: list[Contestant], dtype: str, batch_size: int) -> Iterator[Row]:
    """Yield rates and MFU, relative to a matrix product that takes turns in the same run."""
    ceiling = step.matmul(dtype, jax.sharding.get_mesh())
    take_turns([ceiling, *contestants], ROUNDS)
    for one in contestants:
        yield {
            "program": one.name,
            "images_per_second": batch_size / one.median(),
            "matmul_tflops": ceiling.rate() / 1e12,
            "mfu": one.rate() / ceiling.rate(),
        }


def training(preset: str, batch_size: int, attention: str, small: bool) -> Iterator[Row]:
    """Yield the supervised step and the joint one with cached ids."""
    config = sized(preset, batch_size, small, **{"encoder.attention": attention})
    mesh = assemble.mesh_of(config)
    with jax.set_mesh(mesh):
        without = tokenizer.training_step("supervised", step.simplified(config, mim_weight=0), mesh)
        joint = tokenizer.training_step("joint, ids cached", config, mesh, cached=True)
        yield from rows_of([without, joint], config.encoder.dtype, config.batch_size)


def cifar(small: bool) -> Iterator[Row]:
    """Yield epochs a second of training on images that lie on the device, and on those sent."""
    config = sized("cifar10", 1024, small)
    mesh, count = assemble.mesh_of(config), 2_000 if small else CIFAR_IMAGES
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    source = base.InMemory("noise", pixels, np.arange(count) % 10, tuple("0123456789"))
    seen = images.training(source, config.data, images.second_of(config))
    with jax.set_mesh(mesh):
        both = [
            whole_loop("resident", config, mesh, seen, resident.Resident(seen, mesh)),
            whole_loop("streamed", config, mesh, seen, None),
        ]
        steps = calls.slots_of(config, mesh)
        for row in rows_of(both, config.encoder.dtype, config.batch_size * steps):
            yield row | {"epochs_per_second": row["images_per_second"] / count}


def whole_loop(
    name: str,
    config: Config,
    mesh: jax.sharding.Mesh,
    seen: images.Images,
    on_device: resident.Resident | None,
) -> Contestant:
    """Return a call of the training program, with all that fills its batches."""
    task, rng = tokenizer.task_with_tokenizer(config, mesh), jax.random.key(config.seed)
    state, tx = step.initial_state(config, task, mesh)
    programs, slots = assemble.programs(config, task, tx, mesh, state), calls.slots_of(config, mesh)
    readers = pipeline.Readers(0, lambda met: None)
    groups = calls.Groups(0, 10**6, slots)
    coming = calls.training(seen, config, mesh, groups, readers, on_device)
    number = np.int32(slots)
    first = programs.tokenize(task.frozen, next(coming).batches, slots)
    count = slots * flops.count(programs.train_steps, state, first, number, rng)

    def advance():
        nonlocal state
        batches = programs.tokenize(task.frozen, next(coming).batches, slots)
        state, totals = programs.train_steps(state, batches, number, rng)
        return totals

    return Contestant(name, advance, count)


def encoder(small: bool) -> Iterator[Row]:
    """Yield the encoder of a VQGAN of random weights, at 256 pixels."""
    vqgan = {"tokenizer.name": "vqgan", "tokenizer.patch_size": 16, "tokenizer.image_size": 256}
    vqgan |= {"tokenizer.filters": 32} if small else {}
    config = sized("imagenet_b14", 64, small, **vqgan)
    mesh = assemble.mesh_of(config)
    with jax.set_mesh(mesh):
        for dtype in tokenizer.DTYPES:
            alone = tokenizer.tokenizer_alone(config, dtype, mesh)
            yield from rows_of([alone], dtype, config.batch_size)


def knn(small: bool) -> Iterator[Row]:
    """Yield `supmim benchmark knn` at the size of ImageNet."""
    command = [sys.executable, "-m", "supmim", "benchmark", "knn", "--config=imagenet_b14"]
    command += ["--rounds=3", "--json", *(["--queries=64", "--bank=2000"] if small else [])]
    yield json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "B/14, xla": lambda small: training("imagenet_b14", 256, "xla", small),
    "B/14, cudnn": lambda small: training("imagenet_b14", 256, "cudnn", small),
    "CIFAR, ViT-Ti": cifar,
    "S/16": lambda small: training("imagenet_s16", 512, "xla", small),
    "tokenizer encoder": encoder,
    "kNN": knn,
}


def main(out: Path, *flags: str) -> None:
    """Run each part in turn; with a part's name as the last flag, run that one here."""
    small = "--small" in flags
    for part in flags[-1:] if flags and flags[-1] in PARTS else ():
        for row in PARTS[part](small):
            write(out, {"part": part, **row})
        return
    for part in PARTS:
        began = time.time()
        command = [sys.executable, __file__, str(out), *flags, part]
        try:
            done = subprocess.run(command, timeout=SECONDS, stderr=subprocess.PIPE, text=True)
            problem = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except subprocess.TimeoutExpired:
            problem = [f"took longer than {SECONDS} seconds"]
        ended: Row = {"part": part, "seconds": round(time.time() - began, 1)}
        write(out, ended | ({"failed": problem[0] if problem else "?"} if problem else {}))


def write(out: Path, row: Row) -> None:
    """Add a line to the file and print it."""
    line = json.dumps(row)
    print(line, flush=True)
    with out.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except SupmimError as error:
        sys.exit(str(error))
