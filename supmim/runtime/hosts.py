"""Runs of several processes: how they start, what they agree on and tell each other, how they end.

The processes of a run are found by TPU metadata, by Slurm, or by the address of process 0.
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
from supmim.errors import ConfigError, DataError, DeviceError, SupmimError, counted
from supmim.runtime import accelerator, start_up
from supmim.runtime.life import LIFE
from supmim.runtime.machine import PACKAGES

START_TIMEOUT = 1800  # seconds to wait for all processes at the start
SHUTDOWN_TIMEOUT = 60  # seconds to wait for all processes at the end, so that none hangs for longer
HEARTBEAT_TIMEOUT = 600  # seconds until JAX aborts; the signs of life (life.py) notice it earlier
EXIT_DELAY = 3  # seconds for which the first process lets the others exit before it does


def start(coordinator: str, num_processes: str, process_id: str, one_host: bool) -> None:
    """Join the other processes of this run, if any; call it before JAX looks for devices.

    coordinator: HOST:PORT of process 0; if empty, Slurm and TPU metadata are asked. one_host: all
    processes are on this machine, so a loopback address is correct. ConfigError for flags that do
    not fit, DeviceError if the others do not come.
    """
    settings: dict[str, Any] = {"num_processes": None}
    if coordinator:
        settings = _settings(coordinator, num_processes, process_id, one_host)
        expected = counted(settings["num_processes"], "process")
    elif num_processes not in ("", "1") or process_id or one_host:
        raise ConfigError(
            "--num-processes, --process-id and --one-host need --coordinator=HOST:PORT"
        )
    elif num_processes == "1" or not (expected := detected()):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    whom = f"{expected} at {coordinator or 'the coordinator'}"
    start_up.deadly()
    with waiting(whom):
        try:
            # JAX's own timeout aborts the process with SIGABRT, so ours must come first.
            jax.distributed.initialize(
                **settings,
                initialization_timeout=2 * START_TIMEOUT,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            )
        except (ValueError, RuntimeError) as error:
            raise DeviceError(
                f"the processes could not be joined: {str(error).splitlines()[0]}. Give "
                "--coordinator=HOST:PORT --num-processes=N --process-id=I, or --num-processes=1 to "
                "run on this host alone",
                fault="R8",
            ) from error
    LIFE.start()
    check_names(socket.gethostname(), one_host)


def _settings(
    coordinator: str, num_processes: str, process_id: str, one_host: bool
) -> dict[str, Any]:
    """Return the arguments of jax.distributed.initialize; ConfigError for flags that do not fit."""
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"--coordinator={coordinator} is not HOST:PORT, e.g. 10.0.0.1:12345")
    if not (num_processes.isdecimal() and process_id.isdecimal()):
        raise ConfigError("--coordinator needs --num-processes=N and --process-id=I, from 0")
    count, number = int(num_processes), int(process_id)
    if number >= count:
        raise ConfigError(f"--process-id={number} is not below --num-processes={count}")
    if count > 1 and _is_loopback(host) and not one_host:
        raise ConfigError(
            f"--coordinator={coordinator} can be reached from its own machine only: give the "
            "address at which the other hosts reach process 0, or --one-host if all processes are "
            "on this machine"
        )
    return {"coordinator_address": coordinator, "num_processes": count, "process_id": number}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("localhost.")


def detected() -> str:
    """Describe the processes that the environment announces; empty if this process is alone."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdecimal() and int(tasks) > 1:
        return f"{tasks} Slurm tasks"
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    several = len(workers) > 1 or os.environ.get("MEGASCALE_NUM_SLICES", "") not in ("", "1")
    metadata = "TPU_WORKER_HOSTNAMES" not in os.environ
    cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if not cpu and accelerator.visible() == "tpu" and (several or metadata):
        return "the workers of this TPU pod"
    return ""


@contextlib.contextmanager
def waiting(whom: str, timeout: float = START_TIMEOUT, every: float = 60) -> Iterator[None]:
    """Log every minute whom this process waits for; exit with code 6 at the timeout."""
    began, arrived = time.monotonic(), threading.Event()

    def log(message: str) -> None:
        print(f"supmim: {message}", file=sys.stderr, flush=True)

    def watch() -> None:
        while not arrived.wait(every):
            waited = time.monotonic() - began
            log(f"waiting for {whom}, {waited:.0f} s")
            if waited >= timeout:
                log(
                    f"waited {waited:.0f} s in vain for {whom}: check that each of them was "
                    "started and can reach this address, then start all of them again"
                )
                os._exit(DeviceError.exit_code)  # an exception cannot interrupt the wait in C++

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        arrived.set()
        watcher.join()


def check_names(name: str, one_host: bool) -> None:
    """Raise ConfigError if --one-host was given and the processes have different host names."""
    names = sorted(set(gather(name)))
    if one_host and len(names) > 1:
        raise ConfigError(
            f"--one-host was given, but the processes are on {', '.join(names)}; start "
            "them without it"
        )


def leave(code: int) -> None:
    """End one of several processes with its own exit code.

    An ordinary exit would wait for the others, which may wait for this process, and then abort.
    The first process exits last, since the others are aborted once it is gone.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    LIFE.end(code)
    if is_first():
        time.sleep(EXIT_DELAY)
    os._exit(code)


# Exchange of text between processes.


def is_first() -> bool:
    """Return whether this is the process that writes."""
    return jax.process_index() == 0


def own_file(name: str) -> str:
    """Return the file name for this process: NAME.txt for the first, then NAME.1.txt, ..."""
    stem, dot, ending = name.rpartition(".")
    return name if is_first() else f"{stem}.{jax.process_index()}{dot}{ending}"


def _exchange(text: str, collective: Callable[[np.ndarray], Any]) -> list[str]:
    """Send text of any length through a collective that takes arrays of equal shapes."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(collective(np.array([len(data)], np.int32))).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data[: sizes.max()]
    rows = np.asarray(collective(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def gather(text: str) -> list[str]:
    """Return the text of every process, in order."""
    if jax.process_count() == 1:
        return [text]
    return _exchange(text, multihost_utils.process_allgather)


def on_first(action: Callable[[], Any]) -> Any:
    """Run an action on the first process; its result (JSON) or its error reaches all processes.

    It begins once all processes are here, so that it may change what they have read before.
    """
    if jax.process_count() == 1:
        return action()
    multihost_utils.sync_global_devices("before the action")
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome["result"] = action()
        except SupmimError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            outcome = {"error": "CheckpointError", "message": f"a file operation failed: {error}"}
    outcome = json.loads(_exchange(json.dumps(outcome), multihost_utils.broadcast_one_to_all)[0])
    if "error" in outcome:
        raise vars(errors)[outcome["error"]](outcome["message"])
    return outcome["result"]


@contextlib.contextmanager
def first_holds(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Hold a context, such as a lock, on the first process for all of them."""
    with contextlib.ExitStack() as stack:
        on_first(lambda: bool(stack.enter_context(context)))
        yield


def agree(config: Config, flags: dict[str, Any]) -> None:
    """Raise ConfigError unless all processes have the same flags, config, code and libraries."""
    own = {f"config.{path}": value for path, value in config_lib.flatten(config).items()}
    own |= {f"--{flag}": value for flag, value in flags.items()}
    own |= {name: importlib.metadata.version(name) for name in PACKAGES}
    own["supmim's code"] = _code_digest()
    if lines := _differences(own):
        raise ConfigError(
            f"the processes of this run differ:\n{lines}\n"
            "Bring the same code, libraries and flags to every host, then start all of them again",
            fault="R9",
        )


def agree_on_data(own: dict[str, Any]) -> None:
    """Raise DataError unless all processes have the same fingerprints of what they read."""
    if lines := _differences(own):
        raise DataError(
            f"the processes of this run do not read the same images:\n{lines}\n"
            "Bring the same files to every host, then start all of them again"
        )


def _differences(own: dict[str, Any]) -> str:
    """Return a line per difference between process 0 and the others; empty if there is none."""
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


def _code_digest() -> str:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
