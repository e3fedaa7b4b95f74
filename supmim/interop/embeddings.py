"""Files of embeddings: an npz with `embedding`, `path` and `model`, written without being held.

Shapes: n images, D width, G side of the grid of patches.
"""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.errors import CheckpointError, ConfigError
from supmim.interop import arrays
from supmim.workdir.files import write_json

IDENTITY = "identity.json"


class Embeddings(NamedTuple):
    """embedding: [n, D], or [n, G, G, D] of patches. path: [n]. model: SHA-256 of parameters."""

    embedding: np.ndarray
    path: np.ndarray
    model: str


def read(path: Path) -> Embeddings:
    """Return a file of embeddings; CheckpointError if it is damaged or none."""
    tensors = arrays.read(path, text=True)
    try:
        found = Embeddings(tensors["embedding"], tensors["path"], str(tensors["model"]))
        if len(found.embedding) != len(found.path) or found.path.ndim != 1:
            raise ValueError("it has not one path per embedding")
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no file of embeddings: {error}; write one with supmim embed"
        ) from error
    return found


class Shards:
    """The parts of a file that is being written, in FILE.partial; each is there whole or not.

    identity: JSON of all that the values depend on. ConfigError if the folder holds another's.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out, self.folder = out, out.with_name(out.name + ".partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / IDENTITY
        if path.is_file():
            held = json.loads(path.read_text(encoding="utf-8"))
            if differ := [name for name in identity if held.get(name) != identity[name]]:
                raise ConfigError(
                    f"{self.folder} holds a part of other embeddings ({', '.join(differ)} differ); "
                    "delete it, or name another --out"
                )
        write_json(path, identity)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"

    def holds(self, number: int) -> bool:
        """Return whether a shard is complete."""
        return self._path(number).is_file()

    def write(self, number: int, embedding: np.ndarray, index: np.ndarray, bad: list) -> None:
        """Write a shard: embeddings, their indices, and [name, reason] of unreadable images."""
        part = self._path(number).with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, embedding=embedding, index=index, bad=np.array(bad, str).reshape(-1, 2))
        os.replace(part, self._path(number))

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
        """Return what `write` was given."""
        with np.load(self._path(number)) as shard:
            return shard["embedding"], shard["index"], shard["bad"].tolist()

    def finish(self, count: int, path_of: Callable[[int], str], model: str) -> list[list[str]]:
        """Join `count` shards into the file and delete them; return the unreadable images.

        path_of: index -> path of an image.
        """
        rows, longest, bad, sample = 0, 1, [], np.zeros((0, 0), np.float32)
        for number in range(count):
            sample, index, unreadable = self.read(number)
            rows, bad = rows + len(index), bad + unreadable
            longest = max([longest, *(len(path_of(int(i))) for i in index)])
        part = self.out.with_name(self.out.name + ".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            embeddings = (self.read(number)[0] for number in range(count))
            _add(archive, "embedding", (rows, *sample.shape[1:]), sample.dtype, embeddings)
            kind = np.dtype(f"<U{longest}")
            indices = (self.read(number)[1] for number in range(count))
            paths = (np.array([path_of(int(i)) for i in index], kind) for index in indices)
            _add(archive, "path", (rows,), kind, paths)
            _add(archive, "model", (), np.dtype(f"<U{len(model)}"), iter([np.array(model)]))
        os.replace(part, self.out)
        shutil.rmtree(self.folder)
        return bad


def _add(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    parts: Iterator[np.ndarray],
) -> None:
    """Add an array to an npz, part by part."""
    header = io.BytesIO()
    described = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(
        header, {"descr": described, "fortran_order": False, "shape": shape}
    )
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        file.write(header.getvalue())
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())
