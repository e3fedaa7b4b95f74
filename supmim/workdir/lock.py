"""One run per workdir."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from supmim.errors import ConfigError


@contextlib.contextmanager
def hold(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder that `flag` names and locks it; ConfigError if that fails or it is held.

    The operating system frees the lock when its process ends, however it ends: a lock file that
    stays behind means nothing.
    """
    path = workdir / "lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write to the {flag[2:]} {workdir}: {error.strerror}; choose another {flag}"
        ) from error
    with file:
        if not _taken(file):
            file.seek(0)
            raise ConfigError(f"{workdir} is in use by {_holder(file.read(), flag)}")
        file.truncate(0)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        file.write(json.dumps(owner))
        file.flush()
        yield


def _taken(file: TextIO) -> bool:
    """Tries for a second: `held` takes a lock for a moment too."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def held(workdir: Path) -> bool:
    """Whether a run holds the workdir now."""
    path = workdir / "lock"
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _holder(text: str, flag: str) -> str:
    try:
        owner = json.loads(text)
        minutes = max(0.0, time.time() - owner["since"]) / 60
        return (
            f"process {owner['pid']} on {owner['host']}, for {minutes:.0f} minutes; wait for it, "
            f"stop it, or choose another {flag}"
        )
    except (ValueError, KeyError, TypeError):
        return f"another run; wait for it, stop it, or choose another {flag}"
