"""Timing of a config's input: each stage on one core, the whole pipeline by number of readers.

Pillow's decode, crop and resize of the same boxes, and OpenCV's if it is installed, take turns with
the stages in the same run.
"""

import contextlib
import functools
import importlib.util
import io
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import simplejpeg
from PIL import Image

from supmim import assemble
from supmim.benchmarks.turns import Contestant, take_turns
from supmim.config import Config, options
from supmim.data import crop, decode, images, jpeg, pipeline, run_sources
from supmim.data.sources import base
from supmim.errors import ConfigError, counted

SAMPLE = 128  # evenly spaced records
PIPELINE_SECONDS = 6.0
OURS, BATCHED = "ours: decode, crop, resize", "ours, with reading, into a batch"
BY_PILLOW = "Pillow: decode, crop, resize"
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
STAGE_ROW = "{stage:36}{images_per_second:10,.0f}{to_pillow:10.2f}{share_of_ours:10.0%}"
PIPELINE_ROW = (
    "{name:36}{images_per_second:10,.0f}{share:10.0%}{peak_gib:10.2f}{largest_reader_gib:10.2f}"
)
LEGEND = """
x Pillow: rate divided by Pillow's. of ours: time divided by that of our decode,
crop and resize. share: rate divided by that of as many cores that each read
into batches. GiB: peak memory of this process and of its largest reader."""


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Return what `table` prints: the stages on one core, then the pipelines on all cores."""
    config, source = source_of_files(config)
    cropped = images.training(source, config.data)
    index = base.evenly(len(source), SAMPLE)
    with one_core():
        timed = list(stages(cropped, index, config.data))
        take_turns(timed, rounds)
    named = {one.name: one for one in timed}
    rate = len(index) / named[BATCHED].median()
    return {
        "source": source.name,
        "records": len(index),
        "rounds": rounds,
        "stages": [
            {
                "stage": one.name,
                "images_per_second": len(index) / one.median(),
                "to_pillow": 1 / one.ratio(named[BY_PILLOW]),
                "share_of_ours": one.ratio(named[OURS]),
            }
            for one in timed
        ],
        "pipelines": [pipeline_row(config, cropped, n, rate) for n in worker_counts()],
        "cores": len(os.sched_getaffinity(0)),
    }


def source_of_files(config: Config) -> tuple[Config, base.Source]:
    """Return the config with its classes, and config.data.train; ConfigError if not encoded."""
    config, source, _ = run_sources.load(config)
    if not isinstance(source[0].image, bytes):
        raise ConfigError(
            f"{source.name} holds decoded images: there is no decoding to time. Name a folder, "
            "e.g. --config.data.train=folder:PATH"
        )
    return config, source


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process and its threads on one processor."""
    previous = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(previous)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, previous)


def stages(cropped: images.Images, index: np.ndarray, data: options.Data) -> Iterator[Contestant]:
    """Yield our stages, alone and together, and the references; each processes all records."""
    indices = [int(i) for i in index]
    records = cropped.source.__getitems__(indices)
    files: list[Any] = [record.image for record in records]
    headers = [decode.read_header(file, data.max_pixels) for file in files]
    boxes = [
        cropped.box_of(header.height, header.width, 0, i)
        for header, i in zip(headers, indices, strict=True)
    ]
    pixels = [decode.decode(*both, data.channels) for both in zip(files, headers, strict=True)]
    size, method, zeros = data.image_size, data.interpolation, np.zeros_like(index)

    def stage(name: str, function: Callable, *columns: list) -> Contestant:
        def advance():
            for row in zip(*columns, strict=True):
                function(*row)
            return 0

        return Contestant(name, advance)

    yield stage("read", cropped.source.__getitems__, [indices])
    if all(file.startswith(jpeg.START) for file in files):
        yield stage("bare simplejpeg decode", bare_decode, files)
    resize = functools.partial(crop.resize, size=size, method=method)
    yield stage("crop and resize", resize, pixels, boxes)
    yield stage(OURS, cropped.crop, records, [0] * len(indices), indices)
    yield stage(BATCHED, cropped.take, [index], [zeros])
    by_pillow = functools.partial(pillow_crop, size=size, method=PILLOW[method])
    yield stage(BY_PILLOW, by_pillow, files, boxes)
    if importlib.util.find_spec("cv2"):
        by_opencv = functools.partial(opencv_crop, size=size)
        yield stage("OpenCV: decode, crop, area resize", by_opencv, files, boxes)


def bare_decode(file: bytes) -> np.ndarray:
    """Decode with simplejpeg's fast kernels and nothing else."""
    return simplejpeg.decode_jpeg(file, fastdct=True, fastupsample=True)


def pillow_crop(file: bytes, box: crop.Box, size: int, method: Image.Resampling) -> np.ndarray:
    """Decode, crop and resize like torchvision's loader and RandomResizedCrop."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    left, top, right, bottom = map(round, box)
    return np.asarray(image.crop((left, top, right, bottom)).resize((size, size), method))


def opencv_crop(file: bytes, box: crop.Box, size: int) -> np.ndarray:
    """Decode, crop and resize with OpenCV; its area resize is antialiased."""
    cv2 = importlib.import_module("cv2")  # an optional dependency
    cv2.setNumThreads(1)
    whole = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    left, top, right, bottom = map(round, box)
    return cv2.resize(whole[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA)


def worker_counts() -> list[int]:
    """Return 0 for a thread, then 1, 2, 4, ... processes up to the number of processors."""
    cores = len(os.sched_getaffinity(0))
    return [0, *sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})]


def pipeline_row(
    config: Config, cropped: images.Images, workers: int, rate: float
) -> dict[str, Any]:
    """Return the images per second that a training run would get once its readers are warm.

    rate: of BATCHED on one core; `share` is relative to it, times the workers.
    """
    mesh = assemble.mesh_of(config)
    readers = pipeline.Readers(workers, lambda met: None)
    batches = pipeline.train_batches(
        cropped, config.data.seed, config.batch_size, mesh, 0, 2**40, readers
    )
    for _ in range(2 * workers + pipeline.READ_AHEAD + pipeline.DEVICE_AHEAD):
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < PIPELINE_SECONDS:
        jax.block_until_ready(next(batches))
        count += config.batch_size
    per_second = count / (time.perf_counter() - began)
    batches.close()
    own, reader = (
        resource.getrusage(who).ru_maxrss / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "workers": workers,
        "images_per_second": per_second,
        "share": per_second / rate / max(workers, 1),
        "peak_gib": own,
        "largest_reader_gib": reader if workers else 0.0,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as text of at most 80 columns."""
    lines = [
        base.printable(result["source"])[-78:],
        f"{counted(result['records'], 'record')}, median of {counted(result['rounds'], 'round')}, "
        "on one core",
        "",
        f"{'stage':36}{'img/s':>10}{'x Pillow':>10}{'of ours':>10}",
    ]
    lines += [STAGE_ROW.format(**one) for one in result["stages"]]
    title = f"pipeline, on {counted(result['cores'], 'core')}"
    lines += ["", f"{title:36}{'img/s':>10}{'share':>10}{'GiB':>10}{'a reader':>10}"]
    for one in result["pipelines"]:
        name = counted(one["workers"], "process") if one["workers"] else "a thread"
        lines.append(PIPELINE_ROW.format(name=name, **one))
    return "\n".join([*lines, LEGEND])
