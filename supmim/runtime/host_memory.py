"""The memory of the host: what a program can still take, and what it keeps of what it frees."""

import contextlib
import ctypes
from pathlib import Path

from supmim.runtime import cgroup

MEMINFO = Path("/proc/meminfo")
GIB = 2**30
READER_GIB = 1.0  # memory that a reader process may need
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt, malloc.h of glibc
LARGEST = 2**31 - 1  # bytes that mallopt can name


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


def keep_freed() -> None:
    """Let glibc keep freed buffers of up to 2 GiB, for steps on the CPU.

    Otherwise XLA's buffers go back to the system in every step, and come again as pages that have
    to be cleared: a third of the time. Threads share one heap, as heaps of their own are too small
    for them. Call it before threads start; other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
