"""Calls of the training program: which steps each takes, and their batches, stacked on the mesh."""

import itertools
import math
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from supmim import sharding
from supmim.config import Config
from supmim.data import pipeline
from supmim.data.images import Images
from supmim.data.raw import Raw
from supmim.data.resident import Resident
from supmim.data.stream import Training
from supmim.runtime import hosts

SECONDS = 0.5  # longest call to aim at, since signals and losses wait for its end
MOST_SLOTS = 32  # most steps of a call, whose own cost is then negligible
STACK_BYTES = 2**26  # of raw images of a call on a chip, unless one step has more


class Call(NamedTuple):
    """The numbers of the steps, from 1, and their batches.

    batches: each field [slots, B, ...]; slots beyond the last step are zero.
    """

    steps: range
    batches: Raw


class Groups:
    """The steps after `start` up to `stop`, in groups: one group for each call.

    A group ends with every multiple of a number in `every` and every step in `ends`. If `timed`, a
    group has one step until the second call has been timed (see `time`), then as many as fit into
    SECONDS. All processes form the same groups.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        slots: int,
        every: tuple[int, ...] = (),
        ends: tuple[int, ...] = (),
        timed: bool = False,
    ) -> None:
        self.start, self.stop, self.slots = start, stop, slots
        self.every, self.ends = [number for number in every if number], ends
        self.most, self._to_time = (1, 2) if timed and slots > 1 else (slots, 0)
        self._began = 0.0

    def __iter__(self) -> Iterator[range]:
        done = self.start
        while done < self.stop:
            multiples = [(done // every + 1) * every for every in self.every]
            later = [end for end in self.ends if end > done]
            end = min(done + self.most, self.stop, *multiples, *later)
            yield range(done + 1, end + 1)
            done = end

    def time(self, result: Any) -> None:
        """Wait for the result of a call, if the call is timed: the second shows how many fit."""
        if not self._to_time:
            return
        jax.block_until_ready(result)
        now, self._to_time = time.monotonic(), self._to_time - 1
        seconds, self._began = now - self._began, now
        if not self._to_time:
            fit = hosts.on_first(lambda: int(SECONDS / max(seconds, 1e-6)))
            self.most = min(max(fit, 1), self.slots)


def slots_of(config: Config, mesh: Mesh) -> int:
    """Return how many steps a call takes at most."""
    if config.steps_per_call:
        return config.steps_per_call
    fields = pipeline.abstract_batch(config, mesh).values()
    step_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in cast(Any, fields))
    fit = STACK_BYTES * sharding.batch_shards(mesh) // step_bytes
    return max(1, min(fit, MOST_SLOTS, config.log_every))


def training(
    seen: Images,
    config: Config,
    mesh: Mesh,
    groups: Groups,
    readers: pipeline.Readers,
    resident: Resident | None = None,
) -> Generator[Call]:
    """Yield the calls, whose batches are read ahead. Errors: see pipeline.train_batches.

    resident: the images, if they lie on the devices; the readers then read the rest.
    """
    read = seen if resident is None else resident.without_pixels()
    rows = pipeline.local_rows(config.step_images, mesh)
    stream = Training(read, config.data.seed, config.batch_size, rows, config.unlabelled_rows)
    steps = pipeline.read_steps(stream, groups.start, groups.stop, readers)

    def place(group: range) -> Call:
        stacked = stack(itertools.islice(steps, len(group)), groups.slots)
        batches = pipeline.placed(stacked, config.step_images, mesh)
        return Call(group, batches if resident is None else resident.fill(batches))

    try:
        yield from pipeline.ahead(map(place, groups))
    finally:
        steps.close()


def stack(batches: Iterator[Raw], slots: int) -> Raw:
    """Return host batches as fields [slots, ...], the last of which may be zero."""
    stacked: dict[str, np.ndarray] = {}
    for number, batch in enumerate(batches):
        for name, value in batch.items():
            value = cast(np.ndarray, value)
            if not number:
                stacked[name] = np.zeros((slots, *value.shape), value.dtype)
            stacked[name][number] = value
    return cast(Raw, stacked)
