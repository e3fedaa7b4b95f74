"""Facts about a computer that decide whether, and how fast, JAX runs on it; found without JAX."""

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from supmim.runtime import cgroup, host_memory

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CUDA_PLUGINS = {"jax-cuda12-plugin": 12, "jax-cuda13-plugin": 13}  # -> major version of CUDA
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CUDA = Path("/usr/local/cuda")
SECONDS = 2  # time limit for another program to answer


@dataclass(frozen=True)
class Machine:
    """The facts that were found; inf means no limit.

    packages: name, in lower case with dashes -> version. misfits: CUDA libraries whose version
    JAX's plugin does not take. driver: version of NVIDIA's; driver_fault: what nvidia-smi says if
    it fails. ptxas: path and version of each, in the order in which XLA looks at them. cores: those
    of the machine; allowed_cores: those that this process may run on; core_quota: how much of their
    time it may use, in cores; usable_cores: how many it can use at once. readers: how many reader
    processes fit into the memory.
    """

    packages: Mapping[str, str]
    misfits: tuple[str, ...]
    environment: Mapping[str, str]
    driver: str
    driver_fault: str
    ptxas: tuple[tuple[str, str], ...]
    free_memory_gib: float
    total_memory_gib: float
    memory_limit_gib: float
    readers: int
    cores: int
    allowed_cores: int
    core_quota: float
    usable_cores: int
    folder: str
    free_disk_gib: float
    writable: bool
    open_files: int

    @property
    def plugins(self) -> dict[str, int]:
        """Return JAX's plugins for CUDA that are installed, with the major version of CUDA."""
        return {name: cuda for name, cuda in CUDA_PLUGINS.items() if name in self.packages}


def look() -> Machine:
    """Return what this machine is. It takes about a second, or a few if nvidia-smi hangs."""
    distributions = importlib.metadata.distributions()
    packages = {one.name.lower().replace("_", "-"): one.version for one in distributions}
    driver, fault = nvidia_driver()
    return Machine(
        packages=packages,
        misfits=tuple(line for name in CUDA_PLUGINS if name in packages for line in misfits(name)),
        environment=dict(os.environ),
        driver=driver,
        driver_fault=fault,
        ptxas=tuple(all_ptxas()),
        free_memory_gib=host_memory.available(),
        total_memory_gib=host_memory.total(),
        memory_limit_gib=cgroup.memory_limit() / host_memory.GIB,
        readers=host_memory.affordable_readers(),
        cores=os.cpu_count() or 1,
        allowed_cores=len(os.sched_getaffinity(0)),
        core_quota=cgroup.core_quota(),
        usable_cores=cgroup.usable_cores(),
        folder=str(Path.cwd()),
        free_disk_gib=shutil.disk_usage(Path.cwd()).free / host_memory.GIB,
        writable=os.access(Path.cwd(), os.W_OK),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def misfits(plugin: str) -> Iterator[str]:
    """Yield a line for each CUDA library that is installed in a version that a plugin refuses."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires(plugin) or ():
        needed = Requirement(text)
        extras = ({"extra": "with-cuda"}, {"extra": "with_cuda"})
        if needed.marker and not any(map(needed.marker.evaluate, extras)):
            continue
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # CUDA may have been installed without wheels
        if not needed.specifier.contains(version, prereleases=True):
            yield f"{plugin} needs {needed.name}{needed.specifier}, but {version} is installed"


def nvidia_driver() -> tuple[str, str]:
    """Return the version of NVIDIA's driver, "" if there is none, and nvidia-smi's complaint."""
    fault = ""
    if program := shutil.which("nvidia-smi"):
        query = ("--query-gpu=driver_version", "--format=csv,noheader")
        code, told = _output(program, *query)
        first = told.strip().partition("\n")[0]
        if code == 0 and numbers(first):
            return first.strip(), ""
        fault = first or "it gives no answer"
    kernel = NVIDIA_DRIVER.read_text() if NVIDIA_DRIVER.is_file() else ""
    version = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", kernel)
    return version[0] if version else "", fault


def all_ptxas() -> Iterator[tuple[str, str]]:
    """Yield path and version of each ptxas, in the order in which XLA looks at them.

    JAX passes CUDA_ROOT to XLA, or else NVIDIA's wheel; PATH and /usr/local/cuda come after that.
    """
    root = os.environ.get("CUDA_ROOT")
    folders = [f"{folder}/bin" for folder in ([root] if root else _wheels())]
    folders += [*os.environ.get("PATH", "").split(os.pathsep), f"{CUDA}/bin"]
    for path in dict.fromkeys(f"{folder}/ptxas" for folder in folders):
        if os.path.isfile(path):
            version = re.search(r"\bV(\d+\.\d+\.\d+)\b", _output(path, "--version")[1])
            yield path, version[1] if version else ""


def _wheels() -> Iterator[str]:
    """Yield the folders of NVIDIA's wheels that may hold ptxas."""
    for name in ("nvidia.cu13", "nvidia.cuda_nvcc"):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if spec:
            yield from spec.submodule_search_locations or ()


def _output(*command: str) -> tuple[int, str]:
    """Return the exit code of a program and what it prints; code 1 and "" if it does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout or done.stderr


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: "580.65.06" -> (580, 65, 6); () if there is none."""
    found = re.match(r"\s*(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found[1].split("."))) if found else ()
