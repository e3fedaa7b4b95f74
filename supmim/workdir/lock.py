"""A lock that admits one run to a workdir."""

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
    """Create and lock the folder that `flag` names; ConfigError if that fails or it is in use.

    The operating system frees the lock however its process ends: a lock file that stays behind
    means nothing.
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
        if not _try_lock(file):
            file.seek(0)
            raise ConfigError(
                f"{workdir} is in use by {_holder(file.read())}; wait for it, stop it, or choose "
                f"another {flag}"
            )
        file.truncate(0)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        file.write(json.dumps(owner))
        file.flush()
        yield


def _try_lock(file: TextIO) -> bool:
    for _ in range(20):  # for a second, since `held` takes a lock for a moment too
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def held(workdir: Path) -> bool:
    """Return whether a run is using the workdir now."""
    if not (workdir / "lock").is_file():
        return False
    with (workdir / "lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _holder(text: str) -> str:
    try:
        owner = json.loads(text)
        minutes = max(0.0, time.time() - owner["since"]) / 60
        return f"process {owner['pid']} on {owner['host']}, for {minutes:.0f} minutes"
    except (ValueError, KeyError, TypeError):
        return "another run"
