"""A claim on a folder of a bucket: an object that only one process can create and then renews.

Nothing frees it if its machine dies. A process that finds a claim watches it. If it is renewed, its
owner lives. If it is not renewed for STALE seconds, it is taken over.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from supmim.errors import BucketError, CheckpointError
from supmim.runtime.progress import tell
from supmim.storage import buckets

RENEW_EVERY = 15.0  # seconds
STALE = 60.0  # seconds for which a claim is watched before it is taken over


_held: dict[Any, str] = {}  # path -> token of the claims of this process


class Claimed(Exception):
    """Another process holds the claim. Its argument is the claim's text."""


@contextlib.contextmanager
def hold(path: Any) -> Iterator[None]:
    """Hold the claim of an object; Claimed if another process that lives does.

    If this process stood still and another took the claim over, this process ends at once: what it
    still writes would damage the other's run. BucketError if the bucket is missing or refuses
    access.
    """
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
    claim |= {"since": time.time(), "machine": _machine()}
    try:
        while not _created(path, claim):
            _wait_until_stale(path)
    except (FileNotFoundError, BucketError) as error:
        if isinstance(error, BucketError) and error.fault == "R26":  # it is away
            raise
        raise buckets.refused(path, error) from error
    over = threading.Event()
    renewer = threading.Thread(target=_renew, args=(path, claim, over), daemon=True)
    renewer.start()
    _held[path] = claim["token"]
    try:
        yield
    finally:
        del _held[path]
        over.set()
        renewer.join()
        with contextlib.suppress(OSError):
            if _read(path).get("token") == claim["token"]:
                path.unlink()


def verify() -> None:
    """End this process if another took over a claim of it: to be called before it deletes."""
    for path, token in _held.items():
        found = _read(path)
        if found and found.get("token") != token:
            _lost(path, found)


def held(path: Any) -> bool:
    """Return whether a claim was renewed lately, by the clocks of the machines."""
    renewed = _read(path).get("renewed", 0.0)
    return time.time() - renewed < STALE


def _created(path: Any, claim: dict[str, Any]) -> bool:
    try:
        buckets.create(path, _text(claim))
    except FileExistsError:
        # A request whose answer was lost, and that was repeated, finds its own claim.
        return _read(path).get("token") == claim["token"]
    return True


def _wait_until_stale(path: Any, sleep: Callable[[float], None] = time.sleep) -> None:
    """Delete a claim that is not renewed; Claimed if it is."""
    first = _read(path)
    began = time.monotonic()
    if not _dead_here(first):
        owner = f"process {first.get('pid')} on {first.get('host')}"
        tell(
            f"{path} is held by {owner}; waiting {STALE:.0f} s: if it is not renewed, that process "
            "is gone"
        )
        while first and time.monotonic() - began < STALE:
            sleep(min(RENEW_EVERY, STALE) / 4)
            asked = time.monotonic()
            if (now := _read(path)) != first:
                if not now:
                    return  # it ended
                raise Claimed(json.dumps(now))
            if time.monotonic() - asked > RENEW_EVERY:  # the bucket was away, for its owner too
                began = time.monotonic()
    if first and _read(path) == first:  # else another process has just taken it over
        tell(f"{path} was not renewed; it is taken over")
        path.unlink(missing_ok=True)


def _dead_here(claim: dict[str, Any]) -> bool:
    """Return whether a claim is that of a process of this machine that is no longer there."""
    if not claim.get("machine") or claim["machine"] != _machine():
        return False
    try:
        os.kill(int(claim.get("pid", 0)), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _machine() -> str:
    """Return what distinguishes this start of a machine, and a container of it, from others."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _renew(path: Any, claim: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(RENEW_EVERY):
        with contextlib.suppress(BucketError):  # away: it says so itself
            found = _read(path)
            if not found and _created(path, claim):  # somebody deleted it
                continue
            if found.get("token") == claim["token"]:
                path.files.pipe_file(os.fspath(path), _text(claim).encode())
                continue
            _lost(path, found)


def _lost(path: Any, found: dict[str, Any]) -> None:
    """End this process, whose claim is another's now. found: that claim."""
    by = f"process {found.get('pid')} on {found.get('host')}" if found else "another"
    print(
        f"supmim: [R24] {path} was taken over by {by} while this process stood still. It ends "
        "without a save, which would damage those of the other process",
        file=sys.stderr,
        flush=True,
    )
    os._exit(CheckpointError.exit_code)


def _text(claim: dict[str, Any]) -> str:
    return json.dumps(claim | {"renewed": time.time()})


def _read(path: Any) -> dict[str, Any]:
    """Return the claim at a path, empty if there is no object; what is no claim is `damaged`."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict) and found:
            return found
    return {"damaged": text}
