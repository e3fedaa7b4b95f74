"""Known clashes and shortages of a machine, each with its remedy."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from supmim.errors import counted
from supmim.runtime.machine import Machine, numbers

TENSORFLOW = ("tensorflow", "tensorflow-gpu", "tf-nightly")  # those that use a GPU
LOW_DISK, LOW_MEMORY, LOW_FILES = 5, 3, 1024  # GiB, GiB, open files
# JAX's pages "Installation" and "GPU memory allocation", and its generate_pjrt_gpu_plugin_options.
OLDEST_DRIVER = {12: 525, 13: 580}  # by the major version of CUDA
PREALLOCATE, ALLOCATOR = "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR"
FRACTION, OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT_FRACTION = 0.75  # of a GPU's memory
OLDEST_PTXAS, FAULTY_PTXAS = (11, 8, 0), (12, 3, 103)  # FindPtxAsExecutable of XLA
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC's page on its environment variables


class Problem(NamedTuple):
    """What is wrong, and what to do about it, in a line each."""

    problem: str
    fix: str


def find_problems(machine: Machine, hosts: str) -> Iterator[Problem]:
    """Yield each known clash or shortage. hosts: other processes of a run, empty if it is alone."""
    yield from package_problems(machine)
    if machine.plugins or machine.driver:
        yield from allocation_problems(machine.environment)
        yield from driver_problems(machine)
    if machine.plugins and machine.driver:
        yield from ptxas_problems(machine)
    yield from memory_problems(machine)
    if machine.core_quota < machine.allowed_cores:
        yield Problem(
            f"programs see {counted(machine.allowed_cores, 'core')}, but may use only the time of "
            f"{machine.core_quota:g}",
            f"raise the container's limit, or: taskset -c 0-{machine.usable_cores - 1} supmim ...",
        )
    if machine.free_disk_gib < LOW_DISK:
        yield Problem(
            f"less than {LOW_DISK} GiB of disk is free: saving checkpoints may fail",
            "free some, or give --workdir= on another disk",
        )
    if not machine.writable:
        yield Problem(
            "nothing can be written to the current folder",
            "cd to another folder, or give --workdir= and --out= elsewhere",
        )
    if machine.open_files < LOW_FILES:
        yield Problem(
            f"only {counted(machine.open_files, 'file')} may be open at once: reading may fail",
            "ulimit -n 4096",
        )
    if hosts and (names := proxies(machine)):
        yield Problem(
            f"with {names}, {hosts} may not find each other",
            "unset them, or list all hosts in no_proxy (in lower case)",
        )


def package_problems(machine: Machine) -> Iterator[Problem]:
    """Yield packages that do not go together on a GPU."""
    packages, plugins = machine.packages, machine.plugins
    for name in TENSORFLOW if plugins else ():
        if name in packages:
            yield Problem(
                "TensorFlow and JAX both pin nvidia wheels and take the GPU's memory",
                f"pip uninstall {name}, then {install(machine)}",
            )
    for line in machine.misfits:
        yield Problem(line, install(machine))
    jaxlib = packages.get("jaxlib")
    for plugin in plugins:
        if packages[plugin] != jaxlib:
            yield Problem(
                f"{plugin} {packages[plugin]} beside jaxlib {jaxlib}: JAX will not use it",
                install(machine),
            )
    if len(plugins) > 1:
        yield Problem(
            "JAX's plugins for CUDA 12 and 13 are both installed, and may mix",
            "pip uninstall jax-cuda13-plugin jax-cuda13-pjrt",
        )


def install(machine: Machine) -> str:
    """Return the command that installs JAX's plugin, and the CUDA libraries that it takes."""
    return f"pip install 'jax[cuda{min(machine.plugins.values(), default=12)}]'"


def allocation_problems(environment: Mapping[str, str]) -> Iterator[Problem]:
    """Yield variables that make JAX use less of a GPU's memory, or none of it."""
    fractions = {
        name: environment[name] for name in (FRACTION, OLD_FRACTION) if environment.get(name)
    }
    if len(fractions) == 2:
        yield Problem(
            f"{FRACTION} is set by its old name too: JAX finds no GPU",
            f"unset {OLD_FRACTION}",
        )
    elif fractions:
        ((name, text),) = fractions.items()
        share = fraction(text)
        if share is None:
            yield Problem(f"{name}={text} is not a number: JAX finds no GPU", f"unset {name}")
        elif share < DEFAULT_FRACTION:
            yield Problem(
                f"JAX may use {share:.0%} of a GPU's memory, not {DEFAULT_FRACTION:.0%}",
                f"unset {name}, unless others use the GPU",
            )
    choice = environment.get(PREALLOCATE, "")
    if choice in ("false", "False", "0"):
        yield Problem(
            f"{PREALLOCATE}={choice}: GPU memory may fragment",
            f"unset {PREALLOCATE}, unless others use the GPU",
        )
    elif choice not in ("", "true", "True", "1"):
        yield Problem(
            f"{PREALLOCATE}={choice} does not switch preallocation off",
            f"export {PREALLOCATE}=false, or unset it",
        )
    if environment.get(ALLOCATOR, "").lower() == "platform":
        yield Problem(f"{ALLOCATOR}=platform is very slow", f"unset {ALLOCATOR}")


def fraction(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def driver_problems(machine: Machine) -> Iterator[Problem]:
    """Yield an NVIDIA driver that does not work, or is too old for the CUDA of JAX's plugin."""
    if machine.driver_fault:
        yield Problem(
            f"nvidia-smi fails: {machine.driver_fault}",
            "reboot if the driver was updated, or install it again",
        )
    major = numbers(machine.driver)[:1]
    for cuda in machine.plugins.values():
        oldest = OLDEST_DRIVER[cuda]
        if major and major < (oldest,):
            older = "install JAX for CUDA 12: pip install 'jax[cuda12]'"
            takes_older = major >= (OLDEST_DRIVER[12],)
            yield Problem(
                f"NVIDIA's driver {machine.driver} is too old: CUDA {cuda} needs {oldest}",
                f"update it, or {older if takes_older else 'install its package cuda-compat'}",
            )


def used_ptxas(machine: Machine) -> tuple[str, str] | None:
    """Return path and version of the ptxas that XLA takes: the first suitable one."""
    for path, version in machine.ptxas:
        if numbers(version) >= OLDEST_PTXAS and numbers(version) != FAULTY_PTXAS:
            return path, version
    return None


def ptxas_problems(machine: Machine) -> Iterator[Problem]:
    """Yield a problem if XLA finds no suitable ptxas, or one of an older CUDA than JAX's plugin."""
    cuda, used = min(machine.plugins.values()), used_ptxas(machine)
    root = machine.environment.get("CUDA_ROOT")
    if used is None:
        found = ", ".join(version or "?" for _, version in machine.ptxas)
        told = f"only {found}" if found else "none"
        yield Problem(f"XLA needs ptxas 11.8+ (not 12.3.103), found {told}", install(machine))
    elif numbers(used[1])[0] < cuda:
        ours = root and used[0].startswith(f"{root}/")
        yield Problem(
            f"XLA uses ptxas {used[1]}, which is older than CUDA {cuda} of JAX's plugin",
            "unset CUDA_ROOT" if ours else install(machine),
        )


def memory_problems(machine: Machine) -> Iterator[Problem]:
    """Yield too little memory for a run, or for as many reader processes as there are cores."""
    more = "close other programs"
    if limited(machine):
        more = "raise the limit of the container or job (--memory, --mem)"
    if machine.free_memory_gib < LOW_MEMORY:
        yield Problem(f"less than {LOW_MEMORY} GiB of memory is available", more)
    elif machine.readers < machine.usable_cores:
        yield Problem(
            f"memory has room for {counted(machine.readers, 'reader process')} on "
            f"{counted(machine.usable_cores, 'core')}",
            more,
        )


def proxies(machine: Machine) -> str:
    """Return the names of the proxies that gRPC would use, in lower case."""
    given = {name.lower() for name, value in machine.environment.items() if value}
    return ", ".join(name for name in PROXIES if name in given)


def limited(machine: Machine) -> bool:
    """Return whether a container or a job may use less memory than the machine has."""
    return machine.memory_limit_gib < machine.total_memory_gib
