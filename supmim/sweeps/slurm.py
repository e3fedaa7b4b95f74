"""Members as jobs of Slurm, through submitit (extra `slurm`), in one array."""

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
    """What a job calls: trains one member; near the time limit it saves and queues itself again.

    With several tasks every task starts the training, which finds the others through Slurm.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.child: subprocess.Popen | None = None

    def __call__(self) -> None:
        """RuntimeError unless it came to its end, so that Slurm shows the job as failed."""
        self.child = local.start(self.workdir, os.environ)
        code = self.wait()
        if os.environ.get("SLURM_PROCID", "0") == "0":
            local.note_end(self.workdir, code)
        if code:
            raise RuntimeError(f"exit {code}, see {self.workdir / 'log.txt'}")

    def wait(self) -> int:
        """The exit code. By polling: `checkpoint` waits within a signal handler meanwhile."""
        while (code := self.child.poll()) is None:
            time.sleep(local.POLL)
        return code

    def checkpoint(self) -> Any:
        """submitit calls it when Slurm is about to stop the job; returns what to queue."""
        from submitit.helpers import DelayedSubmission

        if self.child:
            self.child.terminate()
            local.note_end(self.workdir, self.wait())
        return DelayedSubmission(Job(self.workdir))


def submit(members: Sequence[Member], folder: Path, parameters: str) -> list[str]:
    """Hands the members over; returns their job ids. Slurm's own logs go to folder/slurm.

    parameters: submitit's, NAME=VALUE separated by commas. ConfigError if any is not known.
    """
    executor = make_executor(folder / "slurm")
    try:
        executor.update_parameters(name=f"sweep_{folder.name}", **parsed(parameters))
    except (NameError, AssertionError, TypeError) as error:
        raise ConfigError(f"--slurm={parameters}: {error}") from error
    return [job.job_id for job in executor.map_array(Job, [m.workdir for m in members])]


def make_executor(logs: Path) -> Any:
    """submitit's executor; ConfigError without submitit or without Slurm."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--engine=slurm needs submitit: pip install -e '.[slurm]'") from error
    try:
        return submitit.AutoExecutor(logs, cluster="slurm")
    except RuntimeError as error:
        raise ConfigError(f"--engine=slurm: {error}; is this a login node of Slurm?") from error


def parsed(parameters: str) -> dict[str, int | str]:
    """`nodes=2,slurm_partition=gpu` -> names and values; whole numbers are numbers."""
    pairs = [pair.partition("=") for pair in parameters.split(",") if pair]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"--slurm: {wrong[0]!r} is not NAME=VALUE")
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs}
