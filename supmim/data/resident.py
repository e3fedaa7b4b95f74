"""Images that lie on the devices: a step's batch is gathered there instead of being sent.

This is for images that are decoded in memory and not cropped at random: they are the same in every
epoch. The batches equal those of the readers, so a run may change from one way to the other.
"""

from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from supmim import sharding
from supmim.config import Config
from supmim.data.images import Bad, Images
from supmim.data.raw import Raw
from supmim.data.sources import joined
from supmim.data.sources.base import InMemory
from supmim.errors import ConfigError
from supmim.runtime import host_memory
from supmim.runtime.progress import doing

FREE_SHARE = 0.1  # largest share of free memory for the images, unless data.resident=on


class Resident:
    """All images of a source, uncropped or cropped at the centre, on every device."""

    def __init__(self, seen: Images, mesh: Mesh) -> None:
        with doing("putting the images on the devices"):
            found = seen.reading(None).read(range(len(seen)))
            self.arrays = jax.device_put(found, sharding.replicated(mesh))
        self._seen = seen
        self._gather = jax.jit(
            lambda arrays, index: {name: x[index] for name, x in arrays.items()},
            out_shardings=sharding.batch_sharding(mesh, stacked=True),
        )

    def without_pixels(self) -> "Numbers":
        """Return what is still to be read on the host."""
        return Numbers(self._seen)

    def fill(self, batches: Raw) -> Raw:
        """Add the images of stacked batches, whose `index` is [slots, B]."""
        return cast(Raw, {**batches, **self._gather(self.arrays, batches["index"])})


class Numbers(Images):
    """Images of which only the target ids are read, if there is a cache of them."""

    def __init__(self, seen: Images) -> None:
        vars(self).update(vars(seen))

    def take(self, index: Any, epoch: Any) -> tuple[dict[str, np.ndarray], dict[int, Bad]]:
        """See Images; no record is bad, since all are arrays."""
        if self.cache is None:
            return {}, {}
        return {"target_ids": self.cache.read(np.asarray(epoch), np.asarray(index))}, {}


def of(config: Config, seen: Images, mesh: Mesh) -> Resident | None:
    """Return the images of a run on the devices, or None if readers must read them.

    ConfigError if config.data.resident asks for them and they cannot lie there.
    """
    asked = config.data.resident
    if asked == "off":
        return None
    reason = why_not(config, seen, mesh, 1.0 if asked == "on" else FREE_SHARE)
    if reason and asked == "on":
        raise ConfigError(
            f"config.data.resident=on is not possible: {reason}; set --config.data.resident=auto"
        )
    return None if reason else Resident(seen, mesh)


def why_not(config: Config, seen: Images, mesh: Mesh, share: float) -> str:
    """Return why the images cannot lie on the devices, "" if they can.

    share: of the free memory that they may take.
    """
    if jax.process_count() > 1:
        return "the run has several processes"
    if not all(isinstance(one, InMemory) for one in joined.parts(seen.source)):
        return f"{seen.name} is not in memory"
    if config.data.crop != "none":
        return f"config.data.crop={config.data.crop} cuts other crops in every epoch"
    pixels = sum(side**2 for side in seen.sizes.values()) * seen.channels
    needed, free = len(seen) * pixels, free_bytes(mesh)
    if needed > share * free:
        return f"the images take {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB is free"
    return ""


def free_bytes(mesh: Mesh) -> float:
    """Return the bytes that every device can still take."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return host_memory.available() * 2**30 / mesh.size
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
