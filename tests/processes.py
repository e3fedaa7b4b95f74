"""Several processes of one run on this machine, two pretend devices each."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

DEVICES_EACH = 2


def start(*commands: list[str], env=None) -> list[subprocess.Popen]:
    """One process for each command line, which is told how to find the others."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    children = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES_EACH)} | (env or {})
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command, f"--coordinator={coordinator}", "--one_host",
             f"--num_processes={len(commands)}", f"--process_id={number}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=children,
        )
        for number, command in enumerate(commands)
    ]  # fmt: skip


def finished(processes: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        output = [process.communicate(timeout=timeout) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        output = [process.communicate() for process in processes]
    return [(p.returncode, *text) for p, text in zip(processes, output, strict=True)]


def main(shape: str, out: str, coordinator: str, num_processes: str, process_id: str) -> None:
    """Writes the first gradients and the losses of test_mesh, as one of several processes."""
    from supmim.runtime import hosts
    from tests import test_mesh

    jax.config.update("jax_num_cpu_devices", DEVICES_EACH)  # not the eight of conftest.py
    hosts.start(coordinator, num_processes, process_id, one_host=True)
    if shape == "read":
        time.sleep(2 * int(process_id))  # the second one reads late
        assert Path(out).read_text() == "before"
        hosts.on_first(lambda: Path(out).write_text("after"))
        return
    if shape == "leave":
        hosts.gather("all are here")
        if process_id == "1":
            hosts.leave(3)
        hosts.gather("this waits for the one that left")
    grads, losses = test_mesh.first_gradients_and_losses(tuple(map(int, shape.split(","))))
    if hosts.is_first():
        np.savez(out, *jax.tree.leaves(grads), losses=losses)


if __name__ == "__main__":
    flags = dict(arg.lstrip("-").split("=") for arg in sys.argv[3:] if "=" in arg)
    main(*sys.argv[1:3], **flags)
