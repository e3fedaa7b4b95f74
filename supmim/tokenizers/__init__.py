"""Tokenizers: frozen maps between images and grids of ids; the decoder predicts the ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from supmim.runtime import hosts
from supmim.tokenizers import patch_vq
from supmim.workdir import write_json


class Tokenizer(Protocol):
    """A pytree of frozen arrays. Images are float32 in [0, 1], [B, S, S, C]; ids [B, N], int32."""

    def encode(self, image: jax.Array) -> jax.Array:
        """Images -> ids."""

    def decode(self, ids: jax.Array) -> jax.Array:
        """Ids -> images."""

    def save(self, folder: Path) -> None:
        """Writes the tokenizer into a folder, whole or not at all."""

    def fingerprint(self) -> str:
        """SHA-256 of what its ids depend on."""


TOKENIZERS = {"patch_vq": patch_vq}


def abstract(config: Any) -> Tokenizer:
    """The tokenizer of a config, of shapes only: what is needed to trace and compile."""
    module, sizes = TOKENIZERS[config.tokenizer.name], config.tokenizer
    return module.abstract(sizes.codebook_size, sizes.patch_size, config.data.channels)


def load_or_fit(
    config: Any,
    folder: Path,
    made_from: dict[str, Any],
    images: Callable[[], np.ndarray],
    needed: bool,
) -> Tokenizer:
    """The tokenizer in `folder` if it was made from the same; else one fitted on images(), saved.

    made_from: JSON of all that its codes depend on; written last, so that it marks a whole one.
    needed: a run goes on with it, so it is read as it is; CheckpointError if it is not whole.
    """
    module, note = TOKENIZERS[config.tokenizer.name], folder / "made_from.json"
    if hosts.together(lambda: needed or (note.is_file() and _read(note) == made_from)):
        return module.load(folder)
    tokenizer = module.fit(
        images(),
        codebook_size=config.tokenizer.codebook_size,
        patch_size=config.tokenizer.patch_size,
        steps=config.tokenizer.fit_steps,
        seed=config.data.seed,
    )
    hosts.together(lambda: tokenizer.save(folder))
    hosts.together(lambda: write_json(note, made_from))
    return tokenizer


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        return None
