"""From a source to batches on the mesh, through Grain.

Sample n = step * batch_size + row of one endless stream of reshuffled epochs. Which record that
is depends on the seed and n alone, so the position of a run is its step, on any number of hosts.
"""

import collections
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from supmim import sharding
from supmim.data.sources import Source

Batch = dict[str, Any]
READ_AHEAD = 4  # host batches
DEVICE_AHEAD = 2  # batches on their way to the devices


class HostBatch:
    """step -> this host's rows of the global batch, as NumPy arrays."""

    def __init__(self, source: Source, seed: int, batch_size: int, rows: np.ndarray) -> None:
        self.source, self.batch_size, self.rows = source, batch_size, rows
        # Grain shuffles epoch e with seed + e: spread the seeds, or they would share epochs.
        spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.order = grain.MapDataset.range(len(source)).shuffle(spread)

    def __call__(self, step: int) -> Batch:
        """image, label, index, epoch, valid: [rows, ...]."""
        position = step * self.batch_size + self.rows
        index = np.array([self.order[int(n)] for n in position], np.int32)
        return {
            **self.source.read(index),
            "index": index,
            "epoch": (position // len(self.source)).astype(np.int32),
            "valid": np.ones(len(index), np.float32),
        }


def local_rows(batch_size: int, mesh: jax.sharding.Mesh) -> np.ndarray:
    """The rows of a global batch that the devices of this host hold, in order."""
    placement = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[i] for i in placement.values()]))


def train_batches(
    source: Source, data: Any, batch_size: int, mesh: jax.sharding.Mesh, start: int, stop: int
) -> Iterator[Batch]:
    """Global batches of steps start..stop-1, prefetched."""
    read = HostBatch(source, data.seed, batch_size, local_rows(batch_size, mesh))
    steps = grain.MapDataset.range(start, stop).map(read)
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    batches = steps.to_iter_dataset(ahead)
    if data.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        workers = grain.MultiprocessingOptions(num_workers=data.workers)
        batches = batches.mp_prefetch(workers, worker_init_fn=_leave_ctrl_c_to_the_run)
    return _to_devices(iter(batches), batch_size, mesh)


def abstract_batch(config: Any, mesh: jax.sharding.Mesh) -> Batch:
    """Shapes of the global batch of a training step, with their shardings."""
    size, channels = config.data.image_size, config.data.channels
    fields = {
        "image": ((size, size, channels), np.uint8), "label": ((), np.int32),
        "index": ((), np.int32), "epoch": ((), np.int32), "valid": ((), np.float32),
    }  # fmt: skip
    placement = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=placement)
        for name, (shape, dtype) in fields.items()
    }


def eval_batches(source: Source, batch_size: int, mesh: jax.sharding.Mesh) -> Iterator[Batch]:
    """Every record once, in order; the last batch is padded with `valid` = 0."""
    rows = local_rows(batch_size, mesh)

    def batches():
        for first in range(0, len(source), batch_size):
            index = first + rows
            valid = index < len(source)
            index = np.where(valid, index, 0).astype(np.int32)
            yield {**source.read(index), "index": index, "epoch": np.zeros_like(index),
                   "valid": valid.astype(np.float32)}  # fmt: skip

    return _to_devices(batches(), batch_size, mesh)


def _leave_ctrl_c_to_the_run(*_: int) -> None:
    """A reader process lives until the run has saved and stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to_devices(
    batches: Iterator[Batch], batch_size: int, mesh: jax.sharding.Mesh
) -> Iterator[Batch]:
    placement = sharding.batch_sharding(mesh)

    def place(batch):
        return {
            name: jax.make_array_from_process_local_data(
                placement, value, (batch_size, *value.shape[1:])
            )
            for name, value in batch.items()
        }

    placed = map(place, batches)
    ahead = collections.deque(itertools.islice(placed, DEVICE_AHEAD))
    while ahead:
        yield ahead.popleft()
        ahead.extend(itertools.islice(placed, 1))


def fingerprint(source: Source, config: Any) -> dict[str, Any]:
    """What fixes the sample stream; stored with a checkpoint, compared on resume."""
    return {
        **source.fingerprint(), "data_seed": config.data.seed, "batch_size": config.batch_size
    }  # fmt: skip
