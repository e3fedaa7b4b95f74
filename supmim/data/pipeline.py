"""Batches on the mesh: Grain's readers work ahead of the step and batches move to the devices."""

import collections
import dataclasses
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from supmim import sharding
from supmim.config import Config
from supmim.data import raw
from supmim.data.images import Bad, Images, second_of
from supmim.data.raw import Raw
from supmim.data.sources import joined
from supmim.data.sources.base import InMemory, Source
from supmim.data.sources.scenes import Scenes
from supmim.data.stream import Evaluation, Rows, Training
from supmim.errors import DeviceError, counted
from supmim.runtime import cgroup, faults, host_memory

READ_AHEAD = 4  # host batches of a reader thread; a process reads one while it sends another
DEVICE_AHEAD = 2  # batches on their way to the devices
RELEASE_SECONDS = 0.2  # for Grain's thread to free shared memory: the exit doesn't wait for it
T = TypeVar("T")


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return the rows of a global batch that the devices of this host hold, in order."""
    placement = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[i] for i in placement.values()]))


def num_workers(source: Source, requested: int) -> int:
    """Return the number of reader processes; -1 requests what processors and memory allow.

    Images that are decoded in memory, or composed of such images, need none.
    """
    if requested >= 0:
        return requested
    if all(isinstance(one, InMemory | Scenes) for one in joined.parts(source)):
        return 0
    return max(1, min(cgroup.usable_cores(), host_memory.affordable_readers()))


@dataclasses.dataclass(frozen=True)
class Readers:
    """Number of reader processes (see num_workers), and callbacks for bad records and messages."""

    workers: int
    note: Callable[[Iterable[Bad]], None]
    log: Callable[[str], None] = print


def train_batches(
    images: Images, seed: int, batch_size: int, mesh: Mesh, start: int, stop: int, readers: Readers
) -> Generator[Raw]:
    """Yield the global batches of steps start..stop-1, all of images with labels, prefetched.

    DataError for damaged storage or wrong labels; DeviceError if a reader process dies twice.
    """
    stream = Training(images, seed, batch_size, local_rows(batch_size, mesh))
    return to_devices(read_steps(stream, start, stop, readers), batch_size, mesh)


def eval_batches(
    images: Images, batch_size: int, mesh: Mesh, readers: Readers, start: int = 0
) -> Generator[Raw]:
    """Yield every record from batch `start` on once, in order.

    `valid` is 0 for padding and for bad records.
    """
    stream = Evaluation(images, batch_size, local_rows(batch_size, mesh))
    num_batches = -(-len(images) // batch_size)
    return to_devices(read_steps(stream, start, num_batches, readers), batch_size, mesh)


def read_steps(
    stream: Training | Evaluation | Rows, start: int, stop: int, readers: Readers
) -> Generator[Raw]:
    """Yield the stream's steps start..stop-1 in order, read ahead by a thread or by processes.

    Reader processes that die are restarted once, at the step that they had reached.
    """
    done, deaths = start, 0
    while done < stop:
        batches = _start_readers(stream, done, stop, readers.workers)
        try:
            for batch, met in batches:
                readers.note(met)
                yield batch
                done += 1
        except RuntimeError as error:
            message = _death_message(error, readers.workers)
            deaths += 1
            faults.over()
            if deaths > 1:
                raise DeviceError(
                    f"{message} They were already restarted once", fault="I6"
                ) from error
            readers.log(f"{message} Restarting them at step {done + 1}")
        finally:
            batch = None  # it may hold shared memory
            batches.close()
            if readers.workers:
                del batches
                gc.collect()  # Grain's iterator holds its last batches in a circle
                time.sleep(RELEASE_SECONDS)


def _start_readers(
    stream: Training | Evaluation | Rows, start: int, stop: int, workers: int
) -> Any:
    """Return Grain's iterator of the batches start..stop-1; Grain's import takes half a second."""
    import grain

    steps = grain.MapDataset.range(start, stop).map(stream)
    batches = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1 if workers else READ_AHEAD)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(options, worker_init_fn=_init_reader)
    return iter(batches)


def _death_message(error: RuntimeError, workers: int) -> str:
    """Describe the death of a reader process; raise any other error again."""
    if "terminated unexpectedly" not in str(error):
        raise error
    code = str(error).partition("exit code ")[2].partition(".")[0]
    killed = " (killed, most likely because memory ran out)" if code == "-9" else ""
    who = "The reader process" if workers == 1 else f"One of {counted(workers, 'reader process')}"
    return (
        f"{who} ended with exit code {code}{killed}. "
        f"{host_memory.available():.1f} GiB of memory is free; fewer readers need less: "
        f"--config.data.workers={max(1, workers // 2)}."
    )


def abstract_batch(config: Config, mesh: Mesh, slots: int = 0) -> Raw:
    """Return the shapes of all images of a training step, with their shardings.

    slots: length of a stack of batches; 0: one batch.
    """
    second, placement = second_of(config), sharding.batch_sharding(mesh, stacked=slots > 0)
    lead = (slots, config.step_images) if slots else (config.step_images,)
    fields = raw.field_shapes(config, second.size if second.made else 0)
    shapes = {
        name: jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=placement)
        for name, (shape, dtype) in fields.items()
    }
    return cast(Raw, shapes)


def _init_reader(*_: int) -> None:
    """Keep a reader process alive until the run, which may have to save first, stops it or ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run = os.getppid()

    def watch():
        while os.getppid() == run:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def to_devices(batches: Iterator[Raw], batch_size: int, mesh: Mesh) -> Generator[Raw]:
    """Yield the batches on the mesh, some of them ahead."""
    # On a CPU, JAX would use a reader's shared memory without a copy, and outlive the reader.
    copied = np.array if mesh.devices.flat[0].platform == "cpu" else np.asarray
    return ahead(
        placed(cast(Raw, {name: copied(x) for name, x in batch.items()}), batch_size, mesh)
        for batch in batches
    )


def placed(batch: Raw, batch_size: int, mesh: Mesh) -> Raw:
    """Return this host's rows [B, ...] of a batch, or of a stack [S, B, ...], on the mesh."""
    stacked = np.ndim(batch["index"]) == 2
    where = sharding.batch_sharding(mesh, stacked)

    def place(rows: np.ndarray) -> jax.Array:
        lead = (len(rows), batch_size) if stacked else (batch_size,)
        shape = (*lead, *rows.shape[len(lead) :])
        return jax.make_array_from_process_local_data(where, rows, shape)

    return cast(Raw, {name: place(cast(np.ndarray, rows)) for name, rows in batch.items()})


def ahead(placed: Iterable[T]) -> Generator[T]:
    """Yield what is put on the devices; DEVICE_AHEAD items are always put there in advance."""
    coming = iter(placed)
    waiting = collections.deque(itertools.islice(coming, DEVICE_AHEAD))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(coming, 1))
