"""The limits of a container, a Slurm job or a service: those of the process's control groups.

Source: "Control Group v2" and "Memory Resource Controller" of the Linux kernel's documentation.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
# Files of version 2, then of version 1: the limit, the use, and the reclaimable part of the use.
MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups and of the groups that contain them."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = ROOT / "sys/fs/cgroup" / (controller if controllers else "")
        # In a container the path may be that of the host; then only the root exists.
        own = PurePosixPath("/" if ".." in path else path)
        yield from (mount / group.relative_to("/") for group in (own, *own.parents))


def memory_limit() -> float:
    """Return the lowest memory limit of the groups in bytes; inf without a limit."""
    return min((limit for limit, _ in _memory()), default=math.inf)


def memory_left() -> float:
    """Return the bytes left below the limit of the groups; inf without a limit."""
    return min((max(0.0, limit - used) for limit, used in _memory()), default=math.inf)


def _memory() -> Iterator[tuple[float, float]]:
    """Yield the limit of each group that has one, and its use, in bytes."""
    for group in groups("memory"):
        for limit, used, given_back in MEMORY:
            text = _read(group / limit)
            if text.isdecimal() and int(text) < 2**60:  # more is the first version's "no limit"
                counters = dict(line.split() for line in _read(group / "memory.stat").splitlines())
                held = int(_read(group / used) or 0) - int(counters.get(given_back, 0))
                yield float(text), float(held)


def core_quota() -> float:
    """Return how many cores' time the groups may use, such as 2.5; inf without a limit."""
    quotas = [math.inf]
    for group in groups("cpu"):
        first = f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        for text in (_read(group / "cpu.max"), first):
            quota, _, period = text.partition(" ")
            if quota.isdecimal() and period.isdecimal():  # not "max", nor -1
                quotas.append(int(quota) / int(period))
    return min(quotas)


def usable_cores() -> int:
    """Return how many cores this process may use at once, by its affinity and its groups."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, core_quota())))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
