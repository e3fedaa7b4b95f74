"""The memory of the host that a program can still take."""

from pathlib import Path

from supmim.runtime import cgroup

MEMINFO = Path("/proc/meminfo")
GIB = 2**30
READER_GIB = 1.0  # memory that a reader process may need


def available() -> float:
    """Return the GiB that can be taken without swapping, within the limit of a container."""
    return max(0.0, min(_meminfo("MemAvailable"), cgroup.memory_left())) / GIB


def total() -> float:
    """Return the GiB of the machine, whatever a container allows."""
    return _meminfo("MemTotal") / GIB


def _meminfo(field: str) -> float:
    """Return a field of Linux's list, in bytes."""
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    return int(fields[field].split()[0]) * 1024.0


def affordable_readers() -> int:
    """Return how many reader processes fit into half of the memory."""
    return int(available() / 2 / READER_GIB)
