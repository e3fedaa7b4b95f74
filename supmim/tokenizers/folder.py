"""Tokenizer folders: `tokenizer.json` (kind, sizes, digest, origin) beside the weights."""

import contextlib
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load, save

from supmim.errors import CheckpointError, ConfigError
from supmim.storage.paths import whole
from supmim.workdir.files import read_json, write_json

NOTE = "tokenizer.json"
WEIGHTS = "tokenizer.safetensors"
HOW_TO_MAKE_ONE = (
    "make one with `supmim tokenizer fit --config=FILE.py --out=DIR`, with `supmim tokenizer train "
    "--config=FILE.py --workdir=DIR`, or from published weights with `supmim tokenizer import "
    "--from=FILE --out=DIR`"
)


def write(folder: Path, kind: str, sizes: dict[str, Any], params: Any, origin: str) -> None:
    """Write the weights, then the note with their digest that makes the folder a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTE).unlink(missing_ok=True)
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    weights = save({name: np.ascontiguousarray(value) for name, value in flat.items()})
    with whole(folder / WEIGHTS) as part:
        part.write_bytes(weights)
    digest = sha256(weights).hexdigest()
    write_json(folder / NOTE, {"kind": kind, "sizes": sizes, "sha256": digest, "origin": origin})


def read_note(folder: Path) -> dict[str, Any]:
    """Return the content of `tokenizer.json`; CheckpointError if it is missing or damaged."""
    try:
        note = read_json(folder / NOTE)
        if not isinstance(note["sizes"], dict) or not isinstance(note["kind"], str):
            raise TypeError("kind or sizes are of another type")
        return note
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer (it has no {NOTE}). If the folder has moved, set "
            f"--config.tokenizer.path to its new place; otherwise {HOW_TO_MAKE_ONE}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder / NOTE, repr(error)) from error


def read(folder: Path) -> tuple[dict[str, Any], Any]:
    """Return the sizes and parameters of a tokenizer; CheckpointError if it is damaged."""
    note = read_note(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
        if sha256(weights).hexdigest() != note["sha256"]:
            raise ValueError("its SHA-256 differs from the one noted when it was written")
        flat = load(weights)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise damaged(folder / WEIGHTS, str(error)) from error
    return note["sizes"], traverse_util.unflatten_dict(flat, sep="/")


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn the errors that wrong sizes raise into a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise damaged(folder / NOTE, repr(error)) from error


def fingerprint(kind: str, sizes: dict[str, Any], dtype: str, params: Any) -> str:
    """Return the SHA-256 of all that the ids of a network depend on."""
    found = sha256(json.dumps([kind, sizes, dtype]).encode())
    for name, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        found.update(name.encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def damaged(path: Path, why: str) -> CheckpointError:
    """Return the error for a tokenizer that cannot be used."""
    return CheckpointError(
        f"the tokenizer {path} cannot be used: {why}. Runs that were trained with it need it: "
        f"restore the folder from a copy, or {HOW_TO_MAKE_ONE}"
    )
