"""Times the input of a config: each stage on one core, the whole pipeline per number of readers.

Pillow's decode, crop and resize of the same boxes, and OpenCV's where it is installed, take turns
in the same run.
"""

import contextlib
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
from supmim.data import crop, decode, images, pipeline
from supmim.data.sources import base
from supmim.errors import ConfigError

SAMPLE = 128  # records, evenly taken
PIPELINE_SECONDS = 6.0
BATCHED = "ours, with reading, into a batch"
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Everything that is printed: stages on one core, then pipelines on all."""
    config, source, _ = assemble.load_sources(config)
    if not isinstance(source[0].image, bytes):
        raise ConfigError(
            f"{source.name} holds decoded images: there is no decoding to time. Name a folder, "
            "e.g. --config.data.train=folder:PATH"
        )
    seen = images.training(source, config.data)
    index = base.evenly(len(source), SAMPLE)
    with one_core():
        stages = list(contestants(seen, index, config.data))
        take_turns(stages, rounds)
    pillow = next(one for one in stages if one.name.startswith("Pillow"))
    ours = next(one for one in stages if one.name.startswith("ours"))
    rate = len(index) / next(one for one in stages if one.name == BATCHED).median()
    return {
        "source": source.name,
        "records": len(index),
        "rounds": rounds,
        "stages": [
            {"stage": one.name, "images_per_second": len(index) / one.median(),
             "to_pillow": 1 / one.ratio(pillow), "share_of_ours": one.ratio(ours)}
            for one in stages
        ],
        "pipelines": [whole(config, seen, workers, rate) for workers in worker_counts()],
        "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Within it this process and its threads run on one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def contestants(seen: images.Images, index: np.ndarray, data: options.Data) -> Iterator[Contestant]:
    """The stages, ours as a whole, and the references; each runs over all records."""
    records = seen.source.__getitems__([int(i) for i in index])
    files = [record.image for record in records]
    headers = [decode.read_header(file, data.max_pixels) for file in files]
    boxes = [seen.box_of(h.height, h.width, 0, int(i)) for h, i in zip(headers, index, strict=True)]
    pixels = [decode.decode(*both, data.channels) for both in zip(files, headers, strict=True)]
    size, method = data.image_size, data.interpolation

    def each(function: Callable, *columns: list) -> Callable[[], int]:
        def advance():
            for row in zip(*columns, strict=True):
                function(*row)
            return 0

        return advance

    def read_only():
        seen.source.__getitems__([int(i) for i in index])
        return 0

    yield Contestant("read", read_only)
    if all(file.startswith(decode.JPEG) for file in files):
        yield Contestant("bare simplejpeg decode", each(bare_decode, files))
    resized = each(lambda p, box: crop.resize(p, box, size, method), pixels, boxes)
    yield Contestant("crop and resize", resized)
    view = each(lambda record, i: seen.view(record, 0, int(i)), records, list(index))
    yield Contestant("ours: decode, crop, resize", view)
    zeros = np.zeros_like(index)
    yield Contestant(BATCHED, lambda: seen.take(index, zeros)[1] and 0)
    yield Contestant(
        "Pillow: decode, crop, resize",
        each(lambda file, box: pillow_view(file, box, size, PILLOW[method]), files, boxes),
    )
    if importlib.util.find_spec("cv2"):
        yield Contestant(
            "OpenCV: decode, crop, area resize",
            each(lambda file, box: opencv_view(file, box, size), files, boxes),
        )


def bare_decode(file: bytes) -> np.ndarray:
    """simplejpeg alone, with its fast kernels."""
    return simplejpeg.decode_jpeg(file, fastdct=True, fastupsample=True)


def pillow_view(file: bytes, box: crop.Box, size: int, method: int) -> np.ndarray:
    """What torchvision's loader and RandomResizedCrop do."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.crop(tuple(map(round, box))).resize((size, size), method))


def opencv_view(file: bytes, box: crop.Box, size: int) -> np.ndarray:
    """OpenCV's decoder and its antialiased resize."""
    import cv2

    cv2.setNumThreads(1)
    whole = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    left, top, right, bottom = map(round, box)
    return cv2.resize(whole[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA)


def worker_counts() -> list[int]:
    """A thread, then 1, 2, 4, ... processes up to the processors there are."""
    cores = len(os.sched_getaffinity(0))
    return [0, *sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})]


def whole(config: Config, seen: images.Images, workers: int, rate: float) -> dict[str, Any]:
    """Images per second as the training would get them, once the readers are warm.

    share: of what so many cores would do at the rate of BATCHED on one.
    """
    mesh = assemble.mesh_of(config)
    readers = pipeline.Readers(workers, lambda met: None)
    batches = pipeline.train_batches(
        seen, config.data.seed, config.batch_size, mesh, 0, 2**40, readers
    )
    for _ in range(2 * workers + pipeline.READ_AHEAD + pipeline.DEVICE_AHEAD):
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < PIPELINE_SECONDS:
        jax.block_until_ready(next(batches))
        count += config.batch_size
    per_second = count / (time.perf_counter() - began)
    batches.close()
    peak = [resource.getrusage(who).ru_maxrss / 2**20 for who in
            (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]  # fmt: skip
    return {
        "workers": workers,
        "images_per_second": per_second,
        "share": per_second / rate / max(workers, 1),
        "peak_gib": peak[0],
        "largest_reader_gib": peak[1] if workers else 0.0,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text of at most 80 columns."""
    lines = [
        f"{base.printable(result['source'])[-78:]}",
        f"{result['records']} records, median of {result['rounds']} rounds, on one core",
        "",
        f"{'stage':36}{'img/s':>10}{'x Pillow':>10}{'of ours':>10}",
    ]
    for one in result["stages"]:
        lines.append(
            f"{one['stage']:36}{one['images_per_second']:10,.0f}{one['to_pillow']:10.2f}"
            f"{one['share_of_ours']:10.0%}"
        )
    lines += ["", f"{'pipeline, on ' + str(result['cores']) + ' cores':36}{'img/s':>10}"
              f"{'share':>10}{'GiB':>10}{'a reader':>10}"]  # fmt: skip
    for one in result["pipelines"]:
        name = f"{one['workers']} processes" if one["workers"] else "a thread"
        lines.append(
            f"{name:36}{one['images_per_second']:10,.0f}{one['share']:10.0%}"
            f"{one['peak_gib']:10.2f}{one['largest_reader_gib']:10.2f}"
        )
    return "\n".join([
        *lines, "",
        "x Pillow: rate to its rate. of ours: time, as a share of decode, crop and",
        "resize. share: of so many cores that read into batches at the rate of one.",
        "GiB: peak memory.",
    ])  # fmt: skip
