"""From the stream to batches on the mesh: Grain's readers, ahead of the step, onto the devices."""

import collections
import dataclasses
import hashlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import grain
import jax
import numpy as np
from absl import flags

from supmim import config as config_lib
from supmim import sharding
from supmim.config import Config, options
from supmim.data import raw
from supmim.data.images import Bad, Images, second_of
from supmim.data.raw import Raw
from supmim.data.sources.base import InMemory, Source, innermost
from supmim.data.sources.scenes import Scenes
from supmim.data.stream import Evaluation, Rows, Training
from supmim.errors import DeviceError
from supmim.runtime import host_memory

READ_AHEAD = 4  # host batches of a reader thread; one in a process reads while another is sent
DEVICE_AHEAD = 2  # batches on their way to the devices
EVALUATED = "evaluated "
LETTING_GO = 0.2  # seconds in which Grain's thread, for which no exit waits, frees shared memory
READER_GIB = 1.0  # what a reader process may need
TRANSFORM_VERSION = 1  # of decoding, cropping and augmentation: raise it when pixels change


def local_rows(batch_size: int, mesh: jax.sharding.Mesh) -> np.ndarray:
    """The rows of a global batch that the devices of this host hold, in order."""
    placement = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[i] for i in placement.values()]))


def num_workers(source: Source, asked: int) -> int:
    """Reader processes: those asked for or, at -1, as many as processors and memory allow.

    Images that lie decoded in memory, or are put together of such, need none.
    """
    if asked >= 0:
        return asked
    if isinstance(innermost(source), InMemory | Scenes):
        return 0
    affordable = int(host_memory.available() / 2 / READER_GIB)
    return max(1, min(len(os.sched_getaffinity(0)), affordable))


@dataclasses.dataclass(frozen=True)
class Readers:
    """How many processes read (see num_workers), and who is told of theirs and of bad records."""

    workers: int
    note: Callable[[Iterable[Bad]], None]
    log: Callable[[str], None] = print


def train_batches(
    images: Images,
    seed: int,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    start: int,
    stop: int,
    readers: Readers,
) -> Iterator[Raw]:
    """Global batches of steps start..stop-1, prefetched.

    DataError for damaged storage or wrong labels; DeviceError if a reader process dies twice.
    """
    stream = Training(images, seed, batch_size, local_rows(batch_size, mesh))
    return _to_devices(read(stream, start, stop, readers), batch_size, mesh)


def eval_batches(
    images: Images, batch_size: int, mesh: jax.sharding.Mesh, readers: Readers
) -> Iterator[Raw]:
    """Every record once, in order; `valid` = 0 for padding and for bad records."""
    stream = Evaluation(images, batch_size, local_rows(batch_size, mesh))
    num_batches = -(-len(images) // batch_size)
    return _to_devices(read(stream, 0, num_batches, readers), batch_size, mesh)


def read(
    stream: Training | Evaluation | Rows, start: int, stop: int, readers: Readers
) -> Iterator[Raw]:
    """The stream's steps start..stop-1 in order, read ahead by a thread or by processes.

    Processes that die are restarted once, where they were.
    """
    done, deaths = start, 0
    while done < stop:
        batches = _started(stream, done, stop, readers.workers)
        try:
            for batch, met in batches:
                readers.note(met)
                yield batch
                done += 1
        except RuntimeError as error:
            told = _death(error, readers.workers)
            deaths += 1
            if deaths > 1:
                raise DeviceError(f"{told} They were restarted once before") from error
            readers.log(f"{told} Restarting them at step {done + 1}")
        finally:
            batch = None
            batches.close()
            time.sleep(LETTING_GO if readers.workers else 0)


def _started(
    stream: Training | Evaluation | Rows, start: int, stop: int, workers: int
) -> grain.DatasetIterator:
    steps = grain.MapDataset.range(start, stop).map(stream)
    batches = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1 if workers else READ_AHEAD)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(options, worker_init_fn=_follow_the_run)
    return iter(batches)


def _death(error: RuntimeError, workers: int) -> str:
    """What to say of a reader process that died; other errors are raised again."""
    if "terminated unexpectedly" not in str(error):
        raise error
    code = str(error).partition("exit code ")[2].partition(".")[0]
    killed = " (killed, most likely because memory ran out)" if code == "-9" else ""
    return (
        f"one of {workers} reader processes ended with exit code {code}{killed}: "
        f"{host_memory.available():.1f} GiB of memory are free; fewer readers take less: "
        f"--config.data.workers={max(1, workers // 2)}."
    )


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> Raw:
    """Shapes of the global batch of a training step, with their shardings."""
    second, placement = second_of(config), sharding.batch_sharding(mesh)
    fields = raw.field_shapes(config, second.size if second.made else 0)
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=placement)
        for name, (shape, dtype) in fields.items()
    }
    return cast(Raw, shapes)


def _follow_the_run(*_: int) -> None:
    """A reader process lives until the run has saved and stops it, or is no more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    run = os.getppid()

    def watch():
        while os.getppid() == run:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _to_devices(batches: Iterator[Raw], batch_size: int, mesh: jax.sharding.Mesh) -> Iterator[Raw]:
    placement = sharding.batch_sharding(mesh)
    # On a CPU, JAX would take a reader's shared memory for its own and outlive the reader with it.
    own = np.array if mesh.devices.flat[0].platform == "cpu" else np.asarray

    def place(batch):
        return {
            name: jax.make_array_from_process_local_data(
                placement, own(value), (batch_size, *value.shape[1:])
            )
            for name, value in batch.items()
        }

    placed = map(place, batches)
    ahead = collections.deque(itertools.islice(placed, DEVICE_AHEAD))
    while ahead:
        yield ahead.popleft()
        ahead.extend(itertools.islice(placed, 1))


def fingerprint(source: Source, eval_source: Source, config: Config) -> dict[str, Any]:
    """What fixes the sample stream and, as EVALUATED ..., the evaluation images.

    Stored with a checkpoint, compared on resume.
    """
    values, second = config_lib.flatten(config), second_of(config)
    return {
        **source.fingerprint(),
        **{EVALUATED + name: value for name, value in eval_source.fingerprint().items()},
        **{path: values[path] for path in options.that_change("crop")},
        **({"classes": classes_of(source)} if config.facts.has_labels else {}),
        "data_seed": config.data.seed,
        "batch_size": config.batch_size,
        "transform_version": TRANSFORM_VERSION,
        **({"tokenizer.image_size": second.size} if second.size else {}),
        **({"data.ignore_label": config.data.ignore_label} if config.facts.has_masks else {}),
    }


def classes_of(source: Source) -> str:
    """SHA-256 of the names of its classes, in order."""
    return hashlib.sha256("\0".join(source.class_names).encode()).hexdigest()
