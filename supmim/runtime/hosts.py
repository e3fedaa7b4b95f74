"""Many hosts: one start of jax.distributed, and what all processes must agree on.

Started by TPU metadata, by Slurm, or by an explicit address; alone otherwise.
"""

import contextlib
import hashlib
import importlib.metadata
import ipaddress
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from supmim import config as config_lib
from supmim import errors
from supmim.config import Config
from supmim.errors import ConfigError, DataError, DeviceError, SupmimError
from supmim.runtime import devices

TIMEOUT = 1800  # seconds that processes wait for each other at the start
LAST_WORDS = 3  # seconds that the first process leaves the others to end by themselves
SHUTDOWN_TIMEOUT = 60  # and at the end: one that failed does not hang for longer
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def start(coordinator: str, num_processes: str, process_id: str, one_host: bool) -> None:
    """Joins the other processes of this run, if there are any; before JAX looks for devices.

    coordinator: HOST:PORT of process 0, with its num_processes and process_id; empty: Slurm and
    TPU pods are asked. one_host: all processes are on this machine, so loopback is no mistake.
    ConfigError for flags that do not fit, DeviceError if the others do not come.
    """
    if coordinator:
        settings = explicit(coordinator, num_processes, process_id, one_host)
    elif num_processes not in ("", "1") or process_id or one_host:
        raise ConfigError(
            "--num-processes, --process-id and --one-host need --coordinator=HOST:PORT"
        )
    elif num_processes == "1" or not (expected := detected()):
        return
    else:
        settings = {"num_processes": None, "expected": expected}
    expected = settings.pop("expected", None) or f"{settings['num_processes']} processes"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with waiting(f"for {expected} at {coordinator or 'the coordinator'}"):
        try:
            # Its own timeout ends in SIGABRT: ours comes first.
            jax.distributed.initialize(
                **settings,
                initialization_timeout=2 * TIMEOUT,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
            )
        except (ValueError, RuntimeError) as error:
            raise DeviceError(
                f"the processes could not be joined: {str(error).splitlines()[0]}. Give "
                "--coordinator=HOST:PORT --num-processes=N --process-id=I, or --num-processes=1 to "
                "run on this host alone"
            ) from error
    check_names(socket.gethostname(), one_host)


def explicit(
    coordinator: str, num_processes: str, process_id: str, one_host: bool
) -> dict[str, Any]:
    """Keywords of jax.distributed.initialize from flags; ConfigError if they do not fit."""
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(f"--coordinator={coordinator} is not HOST:PORT, e.g. 10.0.0.1:12345")
    if not (num_processes.isdigit() and process_id.isdigit()):
        raise ConfigError("--coordinator needs --num-processes=N and --process-id=I, from 0")
    count, number = int(num_processes), int(process_id)
    if number >= count:
        raise ConfigError(f"--process-id={number} is not below --num-processes={count}")
    if count > 1 and is_loopback(host) and not one_host:
        raise ConfigError(
            f"--coordinator={coordinator} is reached from its own machine only: give the address "
            "by which the other hosts see process 0, or --one-host if all processes are here"
        )
    return {"coordinator_address": coordinator, "num_processes": count, "process_id": number}


def is_loopback(host: str) -> bool:
    """Whether the name or address means the machine itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("localhost.")


def detected() -> str:
    """Who else is expected, as the environment tells it; empty if this process is alone."""
    tasks, slices = (
        os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "MEGASCALE_NUM_SLICES")
    )
    if tasks.isdigit() and int(tasks) > 1:
        return f"{tasks} Slurm tasks"
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    several = len(workers) > 1 or slices not in ("", "1")
    metadata = "TPU_WORKER_HOSTNAMES" not in os.environ
    cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if not cpu and devices.visible_accelerator() == "tpu" and (several or metadata):
        return "the workers of this TPU pod"
    return ""


@contextlib.contextmanager
def waiting(for_whom: str, timeout: float = TIMEOUT, every: float = 60) -> Iterator[None]:
    """Tells each minute who is waited for; ends the process with exit code 6 at the timeout."""
    began, arrived = time.monotonic(), threading.Event()

    def log() -> None:
        while not arrived.wait(every):
            waited = time.monotonic() - began
            print(f"supmim: waiting {for_whom}, {waited:.0f} s", file=sys.stderr, flush=True)
            if waited >= timeout:
                print(
                    f"supmim: waited {for_whom}, {waited:.0f} s, in vain: see whether each of them "
                    "was started and can reach it, then start all of them again",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(DeviceError.exit_code)  # the wait is in C++: no exception reaches it

    teller = threading.Thread(target=log, daemon=True)
    teller.start()
    try:
        yield
    finally:
        arrived.set()
        teller.join()


def check_names(name: str, one_host: bool) -> None:
    """ConfigError if processes that are said to share a host do not."""
    names = sorted(set(gather(name)))
    if one_host and len(names) > 1:
        raise ConfigError(f"--one-host was given, but the processes are on {', '.join(names)}")


def leave(code: int) -> None:
    """Ends one of several processes with its own exit code.

    An ordinary exit would wait for the others, which may wait for this one, and then abort. The
    first process goes last: the others are aborted when it is gone.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(LAST_WORDS)
    os._exit(code)


# What processes tell each other.


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def own_file(name: str) -> str:
    """The file name of this process, where each writes one: NAME.txt, NAME.1.txt, ..."""
    stem, dot, ending = name.rpartition(".")
    return name if is_first() else f"{stem}.{jax.process_index()}{dot}{ending}"


def _exchange(text: str, how: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Sends text of any length through a collective of equal shapes."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(how(np.array([len(data)], np.int32))).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data[: sizes.max()]
    rows = np.asarray(how(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def gather(text: str) -> list[str]:
    """The text of every process, in order."""
    if jax.process_count() == 1:
        return [text]
    return _exchange(text, multihost_utils.process_allgather)


def together(action: Callable[[], Any]) -> Any:
    """Runs the action on the first process; its result (JSON), or its error, is everyone's."""
    if jax.process_count() == 1:
        return action()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome["result"] = action()
        except SupmimError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            outcome = {"error": "CheckpointError", "message": f"the disk refused: {error}"}
    outcome = json.loads(_exchange(json.dumps(outcome), multihost_utils.broadcast_one_to_all)[0])
    if "error" in outcome:
        raise vars(errors)[outcome["error"]](outcome["message"])
    return outcome["result"]


@contextlib.contextmanager
def first_holds(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters the context on the first process, for all."""
    with contextlib.ExitStack() as stack:
        together(lambda: bool(stack.enter_context(context)))
        yield


def agree(config: Config, flags: dict[str, Any]) -> None:
    """ConfigError, naming the keys, if processes have other flags, config, code or libraries."""
    own = {f"config.{path}": value for path, value in config_lib.flatten(config).items()}
    own |= {f"--{flag}": value for flag, value in flags.items()}
    own |= {name: importlib.metadata.version(name) for name in PACKAGES}
    own["supmim's code"] = code_digest()
    if told := differences(own):
        raise ConfigError(
            f"the processes of this run are not alike:\n{told}\n"
            "Bring the same code, libraries and flags to every host, then start all of them again"
        )


def agree_on_data(own: dict[str, Any]) -> None:
    """DataError, naming what differs, if processes have other fingerprints of what they read."""
    if told := differences(own):
        raise DataError(
            f"the processes of this run do not read the same images:\n{told}\n"
            "Bring the same files to every host, then start all of them again"
        )


def differences(own: dict[str, Any]) -> str:
    """Lines for what other processes have otherwise than process 0; empty if they are alike."""
    documents = [json.loads(text) for text in gather(json.dumps(own))]
    first = documents[0]
    rows = [
        f"  {key}: process 0 has {first.get(key)!r}, process {number} has {other.get(key)!r}"
        for number, other in enumerate(documents)
        for key in sorted(first.keys() | other.keys())
        if first.get(key) != other.get(key)
    ]
    more = [f"  ... and {len(rows) - 12} more"] if len(rows) > 12 else []
    return "\n".join(rows[:12] + more)


def code_digest() -> str:
    """SHA-256 over the package's source files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
