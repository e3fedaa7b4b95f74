"""`supmim doctor`: print what this machine offers, and one line for each problem it has."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

from absl.flags import FlagValues

from supmim.config import Config
from supmim.errors import DeviceError
from supmim.runtime import devices, host_memory, hosts

LOW_DISK = 5  # GiB
LOW_MEMORY = 3  # GiB


def run(config: Config | None, flags: FlagValues | None) -> int:
    """Print the report; return exit code 6 if no device can be used."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in hosts.PACKAGES]
    print(f"python      {platform.python_version()} on {platform.machine()}")
    print("packages    " + "\n            ".join(versions))
    code = 0
    try:
        found = devices.check()
        print(f"devices     {len(found)} x {found[0].device_kind} ({found[0].platform})")
        for device in found:
            if stats := device.memory_stats() if device.platform != "cpu" else None:
                gib = stats.get("bytes_limit", 0) / 2**30
                print(f"            {device}: JAX may use {gib:.1f} GiB of its memory")
    except DeviceError as error:
        print(f"devices     none that should be used: {error}")
        code = error.exit_code
    print(f"memory      {host_memory.available():.1f} GiB available, {os.cpu_count()} CPU cores")
    print(f"disk        {free_disk():.1f} GiB free in {Path.cwd()}")
    print("problems    " + ("\n            ".join(problems()) or "none found"))
    return code


def free_disk() -> float:
    """Return the GiB that are free in the current folder."""
    return shutil.disk_usage(Path.cwd()).free / 2**30


def problems() -> list[str]:
    """Return a line for each known clash or shortage, with its remedy."""
    found = []
    installed = {dist.name.lower() for dist in importlib.metadata.distributions()}
    if "tensorflow" in installed and {"jax-cuda12-plugin", "jax-cuda13-plugin"} & installed:
        found.append(
            "TensorFlow beside JAX for CUDA may load another cuBLAS: pip uninstall tensorflow"
        )
    if importlib.metadata.version("jax") != importlib.metadata.version("jaxlib"):
        found.append("jax and jaxlib differ in version: pip install -e . --upgrade")
    if free_disk() < LOW_DISK:
        found.append(f"less than {LOW_DISK} GiB of disk: checkpoints may fail; free some")
    if host_memory.available() < LOW_MEMORY:
        found.append(f"less than {LOW_MEMORY} GiB of memory: close other programs")
    if "XLA_PYTHON_CLIENT_PREALLOCATE" in os.environ:
        found.append(
            "XLA_PYTHON_CLIENT_PREALLOCATE is set: memory of the GPU may fragment; unset it"
        )
    return found
