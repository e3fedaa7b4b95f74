"""`supmim doctor`: print what this machine offers, and for each problem a line with its remedy."""

import contextlib
import json
import math
import os
import platform
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl.flags import FlagValues

from supmim.commands.machine_problems import (
    PREALLOCATE,
    Problem,
    find_problems,
    limited,
    proxies,
    used_ptxas,
)
from supmim.config import Config
from supmim.errors import DeviceError, counted
from supmim.runtime.host_memory import GIB, READER_GIB
from supmim.runtime.machine import PACKAGES, Machine, look
from supmim.storage import paths, trial

WIDTH, LABEL = 80, 12  # columns
WRAPPER = textwrap.TextWrapper(WIDTH - LABEL, break_long_words=False, break_on_hyphens=False)


class Devices(NamedTuple):
    """Devices that JAX uses. fault: why it uses none; hosts: whom a run would wait for."""

    found: list[dict[str, Any]]
    fault: str = ""
    hosts: str = ""


def run(_: Config | None, flags: FlagValues) -> int:
    """Print the report; return exit code 6 if no device can be used.

    With --workdir, that folder is tried; ConfigError or BucketError if it cannot be used.
    """
    workdir = paths.path(flags.workdir) if flags.workdir else None
    machine = look()
    devices = jax_devices()
    problems = list(find_problems(machine, devices.hosts))
    if flags.json:
        tried = {"workdir": trial.seconds(workdir)} if workdir else {}
        print(json.dumps(as_json(machine, devices, problems) | tried, indent=1))
    else:
        print("\n".join(report(machine, devices, problems)))
        if workdir:
            print("\n".join(workdir_lines(workdir)))
    return DeviceError.exit_code if devices.fault else 0


def jax_devices() -> Devices:
    """Return the devices that JAX finds, without taking memory of a GPU that is in use."""
    with _set(PREALLOCATE, "false"):
        try:
            from supmim.runtime import devices, hosts  # import JAX, which refuses a wrong jaxlib
        except (ImportError, RuntimeError) as error:
            again = "install it again: pip install --upgrade -e ."
            return Devices([], f"JAX cannot be imported: {error}; {again}")
        try:
            found = devices.check()
        except DeviceError as error:
            return Devices([], str(error), hosts.detected())
        return Devices([*map(describe, found)], "", hosts.detected())


def describe(device: Any) -> dict[str, Any]:
    """Return name, kind and platform of a device, and the GiB of its memory that JAX may use."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return {
        "name": str(device),
        "kind": device.device_kind,
        "platform": device.platform,
        "memory_gib": stats.get("bytes_limit", 0) / GIB if stats else None,
    }


@contextlib.contextmanager
def _set(variable: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    previous = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]
        os.environ.update({variable: previous} if previous is not None else {})


def report(machine: Machine, devices: Devices, problems: list[Problem]) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from labelled("python", f"{platform.python_version()} on {platform.machine()}")
    yield from labelled("packages", *versions(machine))
    yield from labelled("devices", *device_lines(devices))
    if machine.driver:
        yield from labelled("driver", f"NVIDIA {machine.driver}")
    if machine.plugins and (ptxas := used_ptxas(machine)):
        yield from labelled("ptxas", f"{ptxas[1]} in {ptxas[0]}")
    yield from labelled("memory", *memory_lines(machine))
    yield from labelled("disk", f"{machine.free_disk_gib:.1f} GiB free in {machine.folder}")
    if (names := proxies(machine)) and not devices.hosts:
        yield from labelled("proxies", f"{names}; unset them for runs of several hosts")
    if not problems:
        yield from labelled("problems", "none found")
    for one in problems:
        yield from labelled("problem", one.problem)
        yield from labelled("  fix", one.fix)


def workdir_lines(workdir: Path) -> Iterator[str]:
    """Try a workdir and yield how long each operation took."""
    took = trial.seconds(workdir)
    yield from labelled("workdir", str(workdir))
    for operation, seconds in took.items():
        yield from labelled(f"  {operation}", f"{1000 * seconds:8,.1f} ms")


def labelled(label: str, *paragraphs: str) -> Iterator[str]:
    """Yield paragraphs in lines of 80 columns, with a label before the first."""
    for line in "\n".join(paragraphs).splitlines():
        for part in WRAPPER.wrap(line):
            yield f"{label:<{LABEL}}{part}"
            label = ""


def versions(machine: Machine) -> list[str]:
    names = (*PACKAGES, *machine.plugins)
    return [f"{name} {machine.packages[name]}" for name in names if name in machine.packages]


def device_lines(devices: Devices) -> Iterator[str]:
    if not devices.found:
        yield f"none usable: {devices.fault}"
        return
    first = devices.found[0]
    yield f"{len(devices.found)} x {first['kind']} ({first['platform']})"
    for one in devices.found:
        if one["memory_gib"]:
            yield f"{one['name']}: JAX may use {one['memory_gib']:.1f} GiB of its memory"


def memory_lines(machine: Machine) -> Iterator[str]:
    """Yield the memory and the cores that a run can have, and the reader processes they allow."""
    limit = f", limited to {machine.memory_limit_gib:.1f}" if limited(machine) else ""
    yield f"{machine.free_memory_gib:.1f} of {machine.total_memory_gib:.1f} GiB available{limit}"
    readers = counted(machine.readers, "reader process")
    yield f"half of it has room for {readers} of {READER_GIB:g} GiB"
    quota = "" if machine.core_quota == math.inf else f", with the time of {machine.core_quota:g}"
    yield f"{machine.allowed_cores} of {counted(machine.cores, 'CPU core')}{quota}"


def as_json(machine: Machine, devices: Devices, problems: list[Problem]) -> dict[str, Any]:
    """Return the report as JSON: sizes in GiB, null for no limit, variables by name only."""
    facts = {
        name: None if value == math.inf else value
        for name, value in vars(machine).items()
        if name not in ("packages", "environment", "misfits")
    }
    return {
        "python": platform.python_version(),
        "packages": dict(line.split(" ") for line in versions(machine)),
        "devices": devices.found,
        "fault": devices.fault,
        **facts,
        "proxies": proxies(machine),
        "problems": [one._asdict() for one in problems],
    }
