"""digests.json of a checkpoint: the SHA-256 of its files, since Orbax misses flipped bits.

It is written last: a step's folder is complete once it has one. Beside the SHA-256 of every file it
holds the results that rank the checkpoint, the fingerprint of its data, and the SHA-256 of all of
that, so that a damaged byte in it is noticed too.
"""

import functools
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from supmim.errors import BucketError, CheckpointError
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.workdir.files import json_text, read_json, write_text

DIGESTS = "digests.json"


def at_hand(path: Path) -> Path:
    """Return a local folder with the files of a complete checkpoint: its own, or a copy.

    A copy from a bucket stays until another checkpoint is requested, or this process ends.
    """
    return _copy(path, (path / DIGESTS).read_bytes()).folder if on_bucket(path) else path


class Copy:
    """A copy on this machine of a folder in a bucket, which is deleted with this object."""

    def __init__(self, path: Path) -> None:
        self.folder = paths.temporary_folder(self)
        try:
            paths.download(path, self.folder)
        except (BucketError, FileNotFoundError):
            raise
        except OSError as error:  # which is no damage of the checkpoint
            raise CheckpointError(
                f"{path} cannot be copied to {self.folder}: {error.strerror or error}. Make room "
                "there, or set TMPDIR to a folder of a larger disk",
                fault="R22",
            ) from error


@functools.lru_cache(maxsize=1)
def _copy(path: Path, digests: bytes) -> Copy:
    """digests: its digests.json, which tells it from a later checkpoint of the same name."""
    return Copy(path)


def file_digests(path: Path) -> dict[str, str]:
    """Return {relative name: SHA-256} of every file below `path` except the digests."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p != path / DIGESTS)

    def sha256(file: Path) -> str:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        names = [str(file.relative_to(path)) for file in files]
        return dict(zip(names, pool.map(sha256, files), strict=True))


def write_note(path: Path, note: dict[str, Any]) -> None:
    write_text(path / DIGESTS, _note_text(note))


def _note_text(note: dict[str, Any]) -> str:
    sha256 = hashlib.sha256(json_text(note).encode()).hexdigest()
    return json_text(note | {"sha256": sha256})


def read_note(path: Path) -> dict[str, Any]:
    """Return what `write_note` was given; ValueError if a byte has changed since."""
    note = read_json(path / DIGESTS)
    if isinstance(note, dict):
        note.pop("sha256", None)
        if (path / DIGESTS).read_bytes() == _note_text(note).encode():
            return note
    raise ValueError("it is not as it was written: its SHA-256 differs")


def digest(note: dict[str, Any]) -> str:
    """Return one SHA-256 for all files of a step. note: its digests.json."""
    return hashlib.sha256(json.dumps(note["files"], sort_keys=True).encode()).hexdigest()


def damage(path: Path) -> str:
    """Return what is wrong with the files of a complete checkpoint, or an empty string."""
    try:
        _copy.cache_clear()
        expected = read_note(path)["files"]
        found = file_digests(at_hand(path))
    except BucketError:  # it says nothing about the checkpoint
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{DIGESTS} cannot be read ({error!r})"
    for name in expected:
        if name not in found:
            return f"{name} is missing"
        if expected[name] != found[name]:
            return f"{name} has changed since it was written (its SHA-256 differs)"
    return ""
