"""Paths of local files and of objects in buckets, with the methods of pathlib.Path.

Only this folder knows what a bucket is. A bucket has no folders, cannot append and cannot rename:
what it cannot do is done locally first, then uploaded whole.
"""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from supmim.errors import BucketError
from supmim.storage.schemes import on_bucket


def path(name: str | os.PathLike) -> Path:
    """Return a path of this machine or of a bucket; ConfigError if packages for that are missing.

    The latter is no pathlib.Path, but has its methods: its folders exist as soon as they hold
    something, and deleting or reading a missing object raises what pathlib raises.
    """
    if not on_bucket(name):
        return Path(os.path.expanduser(name))
    from supmim.storage import buckets  # imports fsspec

    return buckets.path(name)


def absolute(path: Path) -> Path:
    """Return the absolute form of a path; a path in a bucket is absolute."""
    return path if on_bucket(path) else path.absolute()


def delete(folder: Path) -> None:
    """Delete a folder with everything in it, if there is one."""
    if not on_bucket(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    of_bucket: Any = folder
    of_bucket.rmtree(missing_ok=True)


def rename(path: Path, new: Path) -> None:
    """Rename a file or a folder; in a bucket, copy it, then delete it."""
    if on_bucket(path):
        path.rename(new)
    else:
        os.replace(path, new)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the name of a local file to write. It becomes `path`, or is deleted if that fails."""
    if on_bucket(path):
        with tempfile.TemporaryDirectory(prefix="supmim-") as folder:
            part = Path(folder) / path.name
            yield part
            upload(part, path)
        return
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno:
            error.filename = error.filename or str(path)  # which a failed write does not know
        raise


def upload(source: Path, to: Path) -> None:
    """Copy a local file, or a folder with its files, to a bucket."""
    from supmim.storage import buckets

    files = [source] if source.is_file() else files_below(source)
    targets = [to] if source.is_file() else [to / file.relative_to(source) for file in files]
    with ThreadPoolExecutor(buckets.PARALLEL) as pool:
        list(pool.map(buckets.put, files, targets))


def download(source: Path, to: Path) -> None:
    """Copy an object, or everything below a path, from a bucket to a local file or folder."""
    from supmim.storage import buckets

    found = buckets.sizes(source)
    names = [name.removeprefix(f"{source}/") for name in found]
    for name in names if list(found) != [str(source)] else ():
        if {"", ".", ".."} & set(name.split("/")):
            raise BucketError(f"{source} holds {name!r}, which cannot be a file name; rename it")
    targets = [to] if list(found) == [str(source)] else [to / name for name in names]
    for folder in {target.parent for target in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(buckets.PARALLEL) as pool:
        list(pool.map(buckets.get, map(path, found), targets, found.values()))


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a local file or folder with what is at `path`: itself or a copy that is then deleted.

    The copy of what does not exist is a path that does not exist either.
    """
    if not on_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="supmim-") as folder:
        copy = Path(folder) / path.name
        download(path, copy)
        yield copy


def temporary_folder(owner: object) -> Path:
    """Return a new folder of this machine, which is deleted with its owner."""
    folder = tempfile.mkdtemp(prefix="supmim-")
    weakref.finalize(owner, shutil.rmtree, folder, True)
    return Path(folder)


def files_below(folder: Path) -> list[Path]:
    """Return all files in a local folder and its folders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
