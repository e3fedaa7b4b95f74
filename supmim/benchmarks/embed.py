"""Timing of embeddings from files: the forward pass alone, reading alone, both as in `embed`.

They take turns in one run, each with warm readers. Weights are random, which costs the same.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim.benchmarks.input import source_of_files
from supmim.config import Config, options
from supmim.data import pipeline
from supmim.data.augment import views
from supmim.data.sources.base import Record, Source
from supmim.data.stream import Evaluation
from supmim.errors import counted
from supmim.interop import load
from supmim.model import BATCH_SIZE, Model

SECONDS, BATCHES = 8.0, 4  # the least that a turn lasts
ROW = "{name:36}{images_per_second:10,.1f}"


class Endless(Source):
    """The images of another source, again and again."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.class_names = source, source.name, source.class_names

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, index: int) -> Record:
        return self.source[index % len(self.source)]

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return self.source.__getitems__([i % len(self.source) for i in index])

    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint()


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Return what `table` prints; the images are those of config.data.train."""
    config, source = source_of_files(config)
    model = with_random_weights(config)
    size = model.padded(BATCH_SIZE)
    seen = model.images(Endless(source))
    workers = pipeline.num_workers(source, -1)
    device = jax.local_devices()[0]

    def reading() -> Generator[Any]:
        readers = pipeline.Readers(workers, lambda met: None)
        stream = Evaluation(seen, size, np.arange(size))
        return pipeline.read_steps(stream, 0, len(seen) // size, readers)

    def embed() -> Generator[Any]:
        return model.outputs(
            "embedding", seen, batch_size=size, workers=workers, note=lambda met: None
        )

    parts = {"forward": lambda: forward(model, size), "reading": reading, "embed": embed}
    ahead = {"forward": 1, "reading": 2 * workers, "embed": 2 * workers + pipeline.DEVICE_AHEAD + 1}
    rates: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, start in parts.items():
            rates[name].append(rate(start, ahead[name], size))
    expected = [
        1 / (1 / f + 1 / d) if device.platform == "cpu" else min(f, d)
        for f, d in zip(rates["forward"], rates["reading"], strict=True)
    ]
    shares = [e / x for e, x in zip(rates["embed"], expected, strict=True)]
    return {
        "source": source.name,
        "device": f"{jax.local_device_count()} x {device.device_kind}",
        "batch_size": size,
        "readers": workers,
        "rounds": rounds,
        **{name: statistics.median(found) for name, found in rates.items()},
        "expected": statistics.median(expected),
        "expected_is": "1 / (1/f + 1/d)" if device.platform == "cpu" else "min(f, d)",
        "share": statistics.median(shares),
    }


def with_random_weights(config: Config) -> Model:
    """Return a model of a config without training."""
    rng = np.random.default_rng(0)
    plain = options.changed(config.encoder, scan=False)
    shapes = load.shapes(dataclasses.replace(config, encoder=plain))
    params = {name: 0.02 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return load.made(config, params, (), "random weights")


def forward(model: Model, size: int) -> Generator[jax.Array]:
    """Yield embeddings of the same images, which lie on the devices."""
    side, channels = model.config.data.image_size, model.config.data.channels
    image = jnp.zeros((size, side, side, channels), jnp.uint8)
    program = jax.jit(
        lambda params, x: model.apply(params, views.to_input(views.to_float(x))).embedding
    )
    while True:
        yield jax.block_until_ready(program(model.params, image))


def rate(start: Callable[[], Generator[Any]], warm: int, size: int) -> float:
    """Return the images per second of an endless iterator, after some batches."""
    with contextlib.closing(start()) as batches:
        for _ in range(warm):
            next(batches)
        began, count = time.perf_counter(), 0
        while count < BATCHES or time.perf_counter() - began < SECONDS:
            next(batches)
            count += 1
        return count * size / (time.perf_counter() - began)


def table(result: dict[str, Any]) -> str:
    """Return the result as text of at most 80 columns."""
    rows = {
        "f: forward pass alone": result["forward"],
        f"d: reading alone, {counted(result['readers'], 'process')}": result["reading"],
        f"expected: {result['expected_is']}": result["expected"],
        "embed": result["embed"],
    }
    rounds = counted(result["rounds"], "round")
    lines = [
        result["source"][-78:],
        f"{result['device']}, batch {result['batch_size']}, median of {rounds}",
        "",
        f"{'':36}{'images/s':>10}",
    ]
    lines += [ROW.format(name=name, images_per_second=value) for name, value in rows.items()]
    return "\n".join([*lines, "", f"embed reaches {result['share']:.0%} of the expected rate"])
