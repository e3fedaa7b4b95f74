"""Copies of folders of buckets on a disk of this machine: made once, for all processes of a host.

The copy of gs://BUCKET/FOLDER is DIR/NAME, where NAME depends on nothing but that path. NAME.json
notes the size and the digest of what was copied, NAME.lock admits one process, and NAME.part holds
files that are not complete.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from supmim.config.option import NO_COPY
from supmim.errors import BucketError, DataError, counted
from supmim.runtime.progress import doing, tell
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.workdir.files import read_json, write_json

if TYPE_CHECKING:
    from supmim.storage.buckets import Stored

TRIES = 2  # for an object whose content is not what the bucket says
READABLE = 80  # characters of a path that the name of its copy repeats


def local(where: str, local_copy: str) -> str:
    """Return a local path as it is, and a folder of a bucket as its complete copy in `local_copy`.

    DataError if that is empty, the folder is empty, the disk is too small, or the content is not
    what the bucket says; BucketError if the bucket cannot be reached or refuses.
    """
    if not on_bucket(where):
        return where
    if not local_copy:
        raise DataError(NO_COPY.format(where))
    source = where.rstrip("/")
    copy = Path(local_copy).expanduser().absolute() / name_of(source)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _alone(copy.with_name(f"{copy.name}.lock"), source), _answered(source):
            _update(source, copy)
    except BucketError:
        raise
    except OSError as error:
        raise DataError(
            f"{source} cannot be copied to {local_copy}: {error}; choose another folder for "
            "--config.data.local_copy"
        ) from error
    return str(copy)


def name_of(source: str) -> str:
    """Return the name of the copy of a folder: the end of its path, and a digest of all of it."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.partition("://")[2])[-READABLE:]
    return f"{readable.lstrip('.-')}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}"


def folders_with(file: str, where: str) -> list[str]:
    """Return the folders of a bucket, at a path or below it, that hold a file of this name."""
    source = where.rstrip("/")
    with _answered(source):
        names = [f"{source}/{name}" for name in _listed(source)]
    return [os.path.dirname(name) for name in names if os.path.basename(name) == file]


@contextlib.contextmanager
def _alone(lock: Path, source: str) -> Iterator[None]:
    """Hold a lock, which the operating system frees; wait for the process that holds it."""
    with lock.open("a") as file:
        with doing(f"waiting for the process that copies {source}"):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _answered(source: str) -> Iterator[None]:
    """Turn a bucket's refusal into an error that says what to do."""
    from supmim.storage import buckets

    try:
        yield
    except BucketError as error:
        if error.fault != "R27":
            raise
        raise buckets.refused(source, error) from error


def _listed(source: str) -> "dict[str, Stored]":
    from supmim.storage import buckets

    try:
        return buckets.listed(paths.path(source))
    except FileNotFoundError as error:
        raise buckets.refused(source, error) from error


def _update(source: str, copy: Path) -> None:
    """Make a copy equal to its folder, without reading files that are known to be right."""
    found, note = _listed(source), copy.with_name(f"{copy.name}.json")
    if not found:
        raise DataError(f"there is nothing in {source}; check its name")
    for name in found:
        if {"", ".", ".."} & set(name.split("/")):
            raise DataError(f"{source} holds {name!r}, which cannot be a file name; rename it")
    noted = _read_note(note)
    with doing(f"checking the copy of {source}", len(found)) as advance:
        here = {}
        for name, stored in found.items():
            if _is_here(copy / name, stored, noted.get(name)):
                here[name] = stored
            advance(1)
    if here == found == noted:
        return
    for name in noted.keys() - found.keys():
        (copy / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.removedirs((copy / name).parent)  # up to the first that is not empty
    missing = {name: stored for name, stored in found.items() if name not in here}
    for name in missing:  # without a note, an old one of the same size would pass for the new
        (copy / name).unlink(missing_ok=True)
    _write_note(note, source, here)
    try:
        _fetch(source, copy, missing, here)
    finally:
        _write_note(note, source, here)


def _is_here(file: Path, stored: "Stored", noted: "Stored | None") -> bool:
    """Return whether a file equals the object, by its note if there is one, else by its content."""
    if not file.is_file() or file.stat().st_size != stored.size:
        return False
    return noted == stored if noted else stored.agrees(file)


def _fetch(
    source: str, copy: Path, missing: "dict[str, Stored]", here: "dict[str, Stored]"
) -> None:
    """Copy the missing objects, and add each that is complete to those that are here."""
    from supmim.storage.buckets import PARALLEL

    needed = sum(stored.size for stored in missing.values())
    parts = copy.with_name(f"{copy.name}.part")
    shutil.rmtree(parts, ignore_errors=True)
    _check_space(source, copy.parent, needed)
    one_at_a_time, over = threading.Lock(), threading.Event()
    with doing(f"copying {source}, bytes", needed) as advance, ThreadPoolExecutor(PARALLEL) as pool:

        def progress(count: int) -> None:
            if over.is_set():
                raise InterruptedError
            with one_at_a_time:
                advance(count)

        def fetch(number: int, name: str) -> None:
            part = parts / str(number)
            _fetch_one(f"{source}/{name}", part, missing[name], progress)
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, copy / name)
            here[name] = missing[name]

        parts.mkdir()
        try:
            list(pool.map(fetch, range(len(missing)), missing))
        finally:
            over.set()
        parts.rmdir()
        tell(f"copied {counted(len(missing), 'file')}, {_size(needed)}, of {source} to {copy}")


def _fetch_one(name: str, to: Path, stored: "Stored", progress: Callable[[int], None]) -> None:
    """Download one object; DataError if its content is wrong twice."""
    from supmim.storage import buckets

    for _ in range(TRIES):
        buckets.get(paths.path(name), to, stored.size, progress)
        if stored.agrees(to) or not buckets.etag_is_md5(paths.path(name)):
            return
    raise DataError(
        f"{name} does not have the digest that its bucket states ({stored.digest}): it changes "
        "while it is copied, or it is damaged; start again, or upload it again"
    )


def _check_space(source: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{source} takes {_size(needed)} more, and {folder} has {_size(free)} free: make room, "
            "set --config.data.local_copy to a folder of a larger disk, or mount the bucket"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count > 1e8 else f"{count / 1e6:,.2f} MB"


def _read_note(path: Path) -> "dict[str, Stored]":
    """Return what a note says of each file; empty if there is none, or it is damaged."""
    from supmim.storage.buckets import Stored

    try:
        return {name: Stored(*stored) for name, stored in read_json(path)["files"].items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write_note(path: Path, source: str, here: "dict[str, Stored]") -> None:
    write_json(path, {"source": source, "files": here})
