"""A trial of a folder, on this machine or in a bucket: whether a run can keep its files there."""

import contextlib
import errno
import secrets
import time
from pathlib import Path

from supmim.errors import BucketError, ConfigError
from supmim.storage import paths
from supmim.storage.schemes import on_bucket


def seconds(folder: Path) -> dict[str, float]:
    """Write, list, read and delete a small file; return how many seconds each took.

    The file, and the folders that are made for it, are gone afterwards. ConfigError if a folder of
    this machine cannot be used, BucketError if a bucket cannot.
    """
    file = folder / f"doctor-{secrets.token_hex(8)}"
    if on_bucket(folder):
        return _in_bucket(file)
    made: list[Path] = []
    try:
        made += (one for one in (folder, *folder.parents) if not one.exists())
        folder.mkdir(parents=True, exist_ok=True)
        return _timed(file)
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be used: {error.strerror}; choose another --workdir"
        ) from error
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # a run has begun in it, or it was not made
                one.rmdir()


def _in_bucket(file: Path) -> dict[str, float]:
    from supmim.storage import buckets  # imports fsspec

    try:
        return _timed(file)
    except OSError as error:
        if _is_away(error):
            raise
        raise buckets.refused(file, error) from error


def _timed(file: Path) -> dict[str, float]:
    text = secrets.token_hex(512)

    def write() -> None:
        with paths.whole(file) as part:
            part.write_text(text, encoding="utf-8")

    def find() -> None:
        if file.name not in {path.name for path in file.parent.iterdir()}:
            raise OSError(errno.EIO, "a file that was just written is not listed")

    def read() -> None:
        if file.read_text(encoding="utf-8") != text:
            raise OSError(errno.EIO, "a file that was just written reads differently")

    took = {}
    try:
        for name, do in {"write": write, "list": find, "read": read, "delete": file.unlink}.items():
            began = time.perf_counter()
            do()
            took[name] = time.perf_counter() - began
    except BaseException as error:
        if not _is_away(error):  # it was waited for already
            with contextlib.suppress(OSError):
                file.unlink()
        raise
    return took


def _is_away(error: BaseException) -> bool:
    return isinstance(error, BucketError) and error.fault == "R26"
