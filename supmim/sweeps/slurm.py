"""Training of members as one array of Slurm jobs, through submitit (extra `slurm`)."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supmim.errors import ConfigError
from supmim.sweeps import local
from supmim.sweeps.members import Member


class Job:
    """The function of a job: train one member; near the time limit, save and queue the job again.

    With several tasks, every task starts the training, which finds the others through Slurm.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.child: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Train; RuntimeError if that fails, so that Slurm shows the job as failed."""
        self.child = local.start(self.workdir, self.workdir / local.LOG, os.environ)
        code = wait(self.child)
        if os.environ.get("SLURM_PROCID", "0") == "0":
            local.write_exit_code(self.workdir, code)
        if code:
            raise RuntimeError(f"exit {code}, see {self.workdir / 'log.txt'}")

    def checkpoint(self) -> Any:
        """Stop the training and return the job to queue; called when Slurm is about to stop it."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        if self.child:
            self.child.terminate()
            local.write_exit_code(self.workdir, wait(self.child))
        return DelayedSubmission(Job(self.workdir))


def wait(child: subprocess.Popen) -> int:
    """Return the exit code by polling, since `checkpoint` waits too, within a signal handler."""
    while (code := child.poll()) is None:
        time.sleep(local.POLL_SECONDS)
    return code


def submit(members: Sequence[Member], folder: Path, parameters: str) -> list[str]:
    """Submit the members and return their job ids; Slurm's own logs go to folder/slurm.

    parameters: submitit's, NAME=VALUE separated by commas. ConfigError if any is not known.
    """
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--engine=slurm needs submitit: pip install -e '.[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm")
    except RuntimeError as error:
        raise ConfigError(f"--engine=slurm: {error}; is this a login node of Slurm?") from error
    try:
        executor.update_parameters(name=f"sweep_{folder.name}", **parse_parameters(parameters))
    except (NameError, AssertionError, TypeError) as error:
        raise ConfigError(f"--slurm={parameters}: {error}") from error
    return [job.job_id for job in executor.map_array(Job, [m.workdir for m in members])]


def parse_parameters(parameters: str) -> dict[str, int | str]:
    """Return `nodes=2,slurm_partition=gpu` as a dict, with whole numbers as int."""
    pairs = [pair.partition("=") for pair in parameters.split(",") if pair]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"--slurm: {wrong[0]!r} is not NAME=VALUE")
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}
