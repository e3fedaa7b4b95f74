"""A device that runs out of memory: what was needed, what there was, and what to change."""

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
    """Turns an out-of-memory within into a DeviceError; leaves memory.prof in the workdir."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        profile = workdir / "memory.prof"
        with contextlib.suppress(Exception):  # the profile is a help, not the message
            jax.profiler.save_device_memory_profile(str(profile))
        changes = "\n".join(f"  --config.{line}" for line in settings(config)[:3])
        raise DeviceError(
            f"a device ran out of memory: {needed(str(error))}, {available()}.\nWhat lay in it is "
            f"in {profile} (pprof). Settings that take less (in a "
            f"new --workdir if the run has saved already):\n{changes}\n"
            "What a change would need, before it is run: supmim plan"
        ) from error


def needed(message: str) -> str:
    """What XLA's message says was asked for."""
    found = re.search(r"([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", message)
    if found:
        expected, unit, limit, limit_unit = found.groups()
        return f"it needed {_gib(expected, unit)} of {_gib(limit, limit_unit)}"
    found = re.search(r"allocat\w+ ([\d.]+) ?([KMGT]?)(?:i?B|bytes)?", message)
    return f"it asked for {_gib(*found.groups())} more" if found else "it asked for too much"


def _gib(number: str, unit: str) -> str:
    return f"{float(number) * UNITS[unit] / 2**30:.2f} GiB"


def available() -> str:
    """What the fullest device of this host holds, where it tells."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not stats:
        return "and the device does not tell what it had"
    fullest = max(stats, key=lambda one: one["bytes_in_use"])
    held, limit = fullest["bytes_in_use"] / 2**30, fullest["bytes_limit"] / 2**30
    return f"and {held:.2f} of {limit:.2f} GiB were in use"


def settings(config: Config) -> list[str]:
    """Overrides that take less memory than this config, the cheapest in time first."""
    encoder, parts = config.encoder, 2 * config.accumulation_steps
    lines = []
    if encoder.dtype == "float32":
        lines.append("encoder.dtype=bfloat16            halves the activations")
    if config.batch_size % parts == 0:
        lines.append(f"accumulation_steps={parts:<14} halves the activations, same training")
    if encoder.remat == "none":
        lines.append("encoder.remat=dots                keeps products only, a little slower")
    if encoder.remat != "full":
        lines.append("encoder.remat=full                keeps blocks' inputs only, + 1/3 FLOPs")
    if config.optimizer.moment_dtype == "float32":
        lines.append("optimizer.moment_dtype=bfloat16   takes 2 bytes per parameter less")
    if jax.device_count() > 1 and config.mesh.fsdp == 1:
        lines.append(f"mesh.fsdp={jax.device_count():<24}splits the state over the devices")
    lines.append(f"batch_size={config.batch_size // 2:<23}halves the activations, other training")
    return lines
