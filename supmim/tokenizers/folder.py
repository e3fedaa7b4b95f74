"""A tokenizer on disk: `tokenizer.json` (kind, sizes, digest, origin) beside its weights."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load, save

from supmim.errors import CheckpointError
from supmim.workdir.files import write_json

NOTE = "tokenizer.json"
WEIGHTS = "tokenizer.safetensors"
MAKE_ONE = (
    "make one with `supmim tokenizer train --config=FILE.py --workdir=DIR`, or from published "
    "weights with `supmim tokenizer import --from=FILE --out=DIR`"
)


def write(folder: Path, kind: str, sizes: dict[str, Any], params: Any, origin: str) -> None:
    """Weights, then the note that holds their digest: without it the folder holds no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTE).unlink(missing_ok=True)
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    weights = save({name: np.ascontiguousarray(value) for name, value in flat.items()})
    part = folder / (WEIGHTS + ".part")
    part.write_bytes(weights)
    os.replace(part, folder / WEIGHTS)
    digest = sha256(weights).hexdigest()
    write_json(folder / NOTE, {"kind": kind, "sizes": sizes, "sha256": digest, "origin": origin})


def note_of(folder: Path) -> dict[str, Any]:
    """What `tokenizer.json` says; CheckpointError if it says nothing of use."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if not isinstance(note["sizes"], dict) or not isinstance(note["kind"], str):
            raise TypeError("kind or sizes are of another type")
        return note
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer (no {NOTE}). If it has moved, name its new place with "
            f"--config.tokenizer.path; else {MAKE_ONE}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder / NOTE, repr(error)) from error


def read(folder: Path) -> tuple[dict[str, Any], Any]:
    """Sizes and parameters of a tokenizer; CheckpointError if it is not what was written."""
    note = note_of(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
        if sha256(weights).hexdigest() != note["sha256"]:
            raise ValueError("its SHA-256 differs from the one noted when it was written")
        flat = load(weights)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise damaged(folder / WEIGHTS, str(error)) from error
    return note["sizes"], traverse_util.unflatten_dict(flat, sep="/")


def damaged(path: Path, why: str) -> CheckpointError:
    """The error of a tokenizer that cannot be used."""
    return CheckpointError(
        f"the tokenizer {path} cannot be used: {why}. What was trained with it needs it: restore "
        f"the folder from a copy, or {MAKE_ONE}"
    )
