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

from supmim.errors import ConfigError, counted
from supmim.storage.schemes import on_bucket


@contextlib.contextmanager
def hold(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Create and lock the folder that `flag` names; ConfigError if that fails or it is in use.

    The operating system frees the lock however its process ends: a lock file that stays behind
    means nothing. If nothing else was written, the lock is deleted, with the folders made for it.
    """
    if on_bucket(workdir):
        with _claimed(workdir, flag):
            yield
        return
    path = workdir / "lock"
    try:
        made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        file, locked = _lock(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the {flag[2:]} {workdir}: {error.strerror}; choose another {flag}"
        ) from error
    with file:
        if not locked:
            raise _in_use(workdir, file.read(), flag)
        file.truncate(0)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        file.write(json.dumps(owner))
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if os.listdir(workdir) == [path.name]:
                    path.unlink()
                for folder in made:
                    folder.rmdir()  # OSError unless it is empty


@contextlib.contextmanager
def _claimed(workdir: Path, flag: str) -> Iterator[None]:
    """Hold the lock of a folder in a bucket; ConfigError if it is in use."""
    from supmim.storage import claim

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(claim.hold(workdir / "lock"))
        except claim.Claimed as error:
            raise _in_use(workdir, str(error), flag) from error
        yield


def _in_use(workdir: Path, owner: str, flag: str) -> ConfigError:
    return ConfigError(
        f"{workdir} is in use by {_holder(owner)}; wait for it, stop it, or choose another {flag}",
        fault="R24",
    )


def _lock(path: Path) -> tuple[TextIO, bool]:
    """Open a lock file, at its start, and return whether it could be locked."""
    for _ in range(20):  # for a second, since `held` takes a lock for a moment too
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else it was just deleted
                return file, True
        file.close()
        time.sleep(0.05)
    return path.open("r", encoding="utf-8"), False


def held(workdir: Path) -> bool:
    """Return whether a run is using the workdir now."""
    if on_bucket(workdir):
        from supmim.storage import claim

        return claim.held(workdir / "lock")
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
        return f"process {owner['pid']} on {owner['host']}, for {counted(round(minutes), 'minute')}"
    except (ValueError, KeyError, TypeError):
        return "another run"
