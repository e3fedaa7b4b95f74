"""Explanation of a device that runs out of memory: what it needed, had, and which options help."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from supmim.config import Config
from supmim.errors import DeviceError

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@contextlib.contextmanager
def explained(config: Config, workdir: Path) -> Iterator[None]:
    """Raise DeviceError if a device runs out of memory inside; writes memory.prof in workdir."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        profile = workdir / "memory.prof"
        with contextlib.suppress(Exception):  # the message must not depend on the profile
            jax.profiler.save_device_memory_profile(str(profile))
        changes = "\n".join(f"  --config.{line}" for line in memory_savers(config)[:3])
        raise DeviceError(
            f"a device ran out of memory: {needed(str(error))}, {_in_use()}.\nA profile of its "
            f"memory is in {profile} (for pprof). Settings that take less memory (in a new "
            f"--workdir if the run has already saved):\n{changes}\n"
            "To see what a change would need before you run it: supmim plan",
            fault="M1",
        ) from error


def needed(message: str) -> str:
    """Describe how much memory XLA's error message says was needed."""
    found = re.search(r"([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", message)
    if found:
        expected, unit, limit, limit_unit = found.groups()
        return f"it needed {_gib(expected, unit)} of {_gib(limit, limit_unit)}"
    found = re.search(r"allocat\w+ ([\d.]+) ?([KMGT]?)(?:i?B|bytes)?", message)
    return f"it asked for {_gib(*found.groups())} more" if found else "it asked for too much"


def _gib(number: str, unit: str) -> str:
    return f"{float(number) * UNITS[unit] / 2**30:.2f} GiB"


def _in_use() -> str:
    """Describe the memory in use on the fullest device of this host."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not stats:
        return "and the device does not report how much was in use"
    fullest = max(stats, key=lambda one: one["bytes_in_use"])
    held, limit = fullest["bytes_in_use"] / 2**30, fullest["bytes_limit"] / 2**30
    return f"and {held:.2f} of {limit:.2f} GiB were in use"


def memory_savers(config: Config) -> list[str]:
    """Return overrides that take less memory, with their effects, the cheapest in time first."""
    encoder, moments = config.encoder, config.optimizer.moment_dtype
    parts, count = 2 * config.accumulation_steps, jax.device_count()
    divides, split = config.batch_size % parts == 0, count > 1 and config.mesh.fsdp == 1
    changes = [
        (encoder.dtype == "float32", "encoder.dtype=bfloat16", "halves the memory of activations"),
        (divides, f"accumulation_steps={parts}", "halves activations, same training"),
        (encoder.remat == "none", "encoder.remat=dots", "keeps only products, a bit slower"),
        (encoder.remat != "full", "encoder.remat=full", "keeps only block inputs, +1/3 FLOPs"),
        (moments == "float32", "optimizer.moment_dtype=bfloat16", "takes 2 bytes less a parameter"),
        (split, f"mesh.fsdp={count}", "splits the state over the devices"),
        (True, f"batch_size={config.batch_size // 2}", "halves activations, changes results"),
    ]
    return [f"{change:<34}{effect}" for applies, change, effect in changes if applies]
