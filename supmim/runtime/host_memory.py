"""The memory of the host that a program can still take."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30


def available() -> float:
    """Return the GiB that can be taken without swapping, within the limit of a container."""
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        counters = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        cached = int(counters["inactive_file"])  # the kernel gives it back on demand
        free = min(free, int(text) - int(used.read_text()) + cached)
    return max(0, free) / GIB
