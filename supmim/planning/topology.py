"""Devices that are not installed, and their rates: TPU pods, H200 hosts and pretend CPU devices."""

import contextlib
import importlib.metadata
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from supmim.errors import ConfigError, DeviceError, counted
from supmim.planning import h200

GIB = 2**30


class Chip(NamedTuple):
    """The capacity and the rates of one device; a pretend device has no rates: 0.

    memory: bytes. flops: bfloat16 FLOPs per second. bandwidth: of the memory, bytes per second.
    link: bytes per second that it sends to its neighbours over all links. sides: dimensions of a
    TPU pod's grid; 0 if devices are only counted.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    sides: int = 0


LINK_SHARE = 0.9  # of a link's datasheet rate that collectives reach
MEMORY_SHARE = 0.98  # of a chip's memory that programs can use

# Google's pages "TPU v4", "v5e", "v5p", "v6e", "TPU7x"; a device of TPU7x is half a chip. H200:
# NVIDIA's datasheet, NVLink in one direction; between hosts 400 Gbit/s for each GPU.
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 275e12, 1.2e12, 300e9, 3),
    "v5e": Chip("TPU v5e", 16 * GIB, 197e12, 0.819e12, 200e9, 2),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2.765e12, 600e9, 3),
    "v6e": Chip("TPU v6e", 32 * GIB, 918e12, 1.638e12, 400e9, 2),
    "tpu7x": Chip("TPU7x, half a chip", 96 * GIB, 1153e12, 3.69e12, 300e9, 3),
    "h200": Chip("NVIDIA H200", 141e9, 989e12, 4.8e12, 450e9),
    "cpu": Chip("pretend CPU device", 0, 0, 0, 0),
}
HOST_LINK = 50e9  # bytes per second between hosts of H200s
EXAMPLES = "v5e:4x4, v5p:8x8x8, h200:8, cpu:8"

# The TPU compiler looks for a TPU and for Google's metadata server, and complains if they are
# missing; it also locks the TPU for one process. Any TPU can be named, and nothing needs a lock.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Topology(NamedTuple):
    """Devices to compile for. compiler: its name and version; options: for `Lowered.compile`."""

    name: str
    chip: Chip
    devices: list[Any]
    compiler: str
    options: dict[str, Any]


def load(name: str) -> Topology:
    """Return the devices of `GENERATION:SIZE`, none of which need to be installed.

    ConfigError if there is no such topology, DeviceError if its compiler is not installed.
    """
    kind, _, size = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ConfigError(
            f"--topology={name} is not GENERATION:SIZE, e.g. {EXAMPLES}; generations: "
            + ", ".join(CHIPS)
        )
    chip = CHIPS[kind]
    if size.count("x") + 1 != max(chip.sides, 1):
        expected = "x".join("4" * chip.sides) or "8"
        raise ConfigError(f"--topology={name}: a {kind} has a size like {kind}:{expected}")
    jax.config.update("jax_platforms", "cpu")  # does not occupy an accelerator
    return {"h200": _h200, "cpu": _cpu}.get(kind, _tpu)(name, chip)


def _tpu(name: str, chip: Chip) -> Topology:
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise DeviceError(
            f"--topology={name} needs the TPU compiler, though no TPU; install it with: "
            "pip install -e '.[tpu]'"
        ) from error
    for variable, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = {"chip_config_name": "megacore"} if chip is CHIPS["v4"] else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        told = without_stack(error)
        raise ConfigError(f"--topology={name}: libtpu {version} says: {told}") from error
    return Topology(name, chip, described.devices, f"libtpu {version}", {})


def without_stack(error: Exception) -> str:
    """Return the message of a compiler's error without the C++ stack that libtpu appends to it."""
    return str(error).partition("\n===")[0].strip()


def _h200(name: str, chip: Chip) -> Topology:
    devices = h200.devices(int(name.partition(":")[2]))
    if len(devices) > h200.GPUS_PER_HOST:
        chip = chip._replace(link=HOST_LINK)
    return Topology(name, chip, devices, _jaxlib(), h200.COMPILER_OPTIONS)


def _cpu(name: str, chip: Chip) -> Topology:
    """Return pretend devices, which share the memory of this machine."""
    count = int(name.partition(":")[2])
    with contextlib.suppress(RuntimeError):  # JAX may have started already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise DeviceError(
            f"JAX has already started with {counted(len(devices), 'CPU device')}, but {name} needs "
            f"{count}"
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / count
    return Topology(name, chip._replace(memory=memory), devices[:count], _jaxlib(), {})


def _jaxlib() -> str:
    return f"jaxlib {importlib.metadata.version('jaxlib')}"
