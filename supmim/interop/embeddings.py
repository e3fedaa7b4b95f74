"""Files of embeddings: an npz with `embedding`, `path` and `model`, written and read in parts.

Shapes: n images, D width, G side of the grid of patches.
"""

import contextlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.errors import CheckpointError, ConfigError, SupmimError
from supmim.interop import arrays
from supmim.storage import paths
from supmim.storage.paths import whole
from supmim.workdir.files import read_json, write_json

IDENTITY = "identity.json"
SHARDS = f"{'[0-9]' * 12}-{'[0-9]' * 12}.npz"  # names of parts: first image, first of the next
BLOCK_BYTES = 2**26  # of embeddings that are in memory at once


class Embeddings(NamedTuple):
    """A file of embeddings. shape: [n, D], or [n, G, G, D] of patches. path: [n].

    model: SHA-256 of the parameters.
    """

    file: Path
    shape: tuple[int, ...]
    path: np.ndarray
    model: str

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 [m, ...], all embeddings in order; CheckpointError for damaged ones."""
        with (
            told(self.file),
            zipfile.ZipFile(self.file) as archive,
            archive.open("embedding.npy") as member,
        ):
            shape, dtype = _header(member)
            row = dtype.itemsize * math.prod(shape[1:])
            rows = max(1, BLOCK_BYTES // max(1, row))
            for first in range(0, shape[0], rows):
                count = min(rows, shape[0] - first)
                values = np.frombuffer(member.read(count * row), dtype)
                yield values.reshape(count, *shape[1:]).astype(np.float32)


def read(file: Path) -> Embeddings:
    """Return a file of embeddings, whose values are read later, by `blocks`.

    CheckpointError if it is damaged, or no such file.
    """
    with told(file):
        if file.is_file() and not zipfile.is_zipfile(file):
            raise ValueError("it is not an npz file")
        stored = arrays.read_npz(file, ("path", "model"))
        with zipfile.ZipFile(file) as archive, archive.open("embedding.npy") as member:
            shape, _ = _header(member)
        path, model = stored["path"], stored["model"]
        if not len(path):
            raise ValueError("it holds none")
        if path.shape != shape[:1] or path.dtype.kind != "U" or model.dtype.kind != "U":
            raise ValueError("it does not have one path per embedding and the digest of a model")
        return Embeddings(file, shape, path, str(model))


@contextlib.contextmanager
def told(file: Path) -> Iterator[None]:
    """Turn the errors of reading into a CheckpointError that names the file."""
    try:
        yield
    except SupmimError:
        raise
    except Exception as error:  # what is raised depends on the damage
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(
            f"{file} cannot be read as a file of embeddings: {why}. Write one with supmim embed "
            "--model=PATH --images=SOURCE --out=FILE.npz"
        ) from error


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of an npy; ValueError unless numbers follow, row by row."""
    version = np.lib.format.read_magic(member)
    of_1, of_2 = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = (of_1 if version == (1, 0) else of_2)(member)
    if by_columns or dtype.kind != "f" or len(shape) not in (2, 4):
        raise ValueError(f"its embeddings are {dtype}{list(shape)}")
    return shape, dtype


class Shard(NamedTuple):
    """The embeddings of the images start..stop-1 of a source, in a file."""

    start: int
    stop: int
    file: Path


class Partial:
    """The shards of a file that is not finished yet, in the folder FILE.partial.

    identity: JSON of all that the values depend on. ConfigError if the folder holds shards of
    another identity.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out, self.folder = out, folder_of(out)
        path = self.folder / IDENTITY
        identity = json.loads(json.dumps(identity))
        if path.is_file():
            with told(path):
                held = dict(read_json(path))
            if differ := [name for name in identity if held.get(name) != identity[name]]:
                raise ConfigError(
                    f"{self.folder} holds a part of other embeddings, with another "
                    f"{', '.join(differ)}. Delete it, or name another --out"
                )
        write_json(path, identity)
        used = [shard.file for shard in self.shards()]
        for file in self.folder.glob(SHARDS):
            if file not in used:  # after a gap: new shards may end elsewhere
                file.unlink()

    def shards(self) -> list[Shard]:
        """Return the complete shards, in order, up to the first gap."""
        found = []
        for file in sorted(self.folder.glob(SHARDS)):
            start, stop = map(int, file.stem.split("-"))
            if start == (found[-1].stop if found else 0):
                found.append(Shard(start, stop, file))
        return found

    def write(
        self,
        start: int,
        stop: int,
        embedding: np.ndarray,
        path: Sequence[str],
        bad: Sequence[tuple[str, str]],
    ) -> None:
        """Write a shard: embeddings, their paths, and (path, reason) of unreadable images."""
        with whole(self.folder / f"{start:012}-{stop:012}.npz") as part, part.open("wb") as file:
            texts = {"path": np.array(path, str), "bad": np.array(bad, str).reshape(-1, 2)}
            np.savez(file, embedding=embedding, **texts)

    def read(self, shard: Shard, name: str) -> np.ndarray:
        """Return the array embedding, path or bad of a shard; CheckpointError if damaged."""
        try:
            with shard.file.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return stored[name]
        except Exception as error:  # what is raised depends on the damage
            raise CheckpointError(
                f"{shard.file} is damaged: {error}. Delete it and give the same command again"
            ) from error

    def join(self, model: str) -> tuple[int, list[list[str]]]:
        """Write the file and delete the folder; return the number of rows, and the unreadable.

        Without any rows no file is written.
        """
        shards, rows, longest = self.shards(), 0, 1
        bad: list[list[str]] = []
        for shard in shards:
            path = self.read(shard, "path")
            rows, longest = rows + len(path), max(longest, path.dtype.itemsize // 4)
            bad += self.read(shard, "bad").tolist()
        if rows:
            sample = self.read(shards[0], "embedding")
            shape, kind = (rows, *sample.shape[1:]), np.dtype(f"<U{longest}")
            with whole(self.out) as part, zipfile.ZipFile(part, "w") as archive:
                _add(archive, "embedding", shape, sample.dtype, self._all(shards, "embedding"))
                _add(archive, "path", (rows,), kind, self._all(shards, "path"))
                digest = np.array(model)
                _add(archive, "model", (), digest.dtype, iter([digest]))
        paths.delete(self.folder)
        return rows, bad

    def _all(self, shards: Sequence[Shard], name: str) -> Iterator[np.ndarray]:
        return (self.read(shard, name) for shard in shards)


def folder_of(out: Path) -> Path:
    """Return the folder of the parts of a file."""
    return out.with_name(out.name + ".partial")


def _add(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    parts: Iterator[np.ndarray],
) -> None:
    """Add an array to an npz, part by part; the same arrays make the same bytes."""
    header = io.BytesIO()
    described = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(
        header, {"descr": described, "fortran_order": False, "shape": shape}
    )
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:  # dated 1980
        file.write(header.getvalue())
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())
