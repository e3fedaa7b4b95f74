"""Tokenizers: frozen maps between images and grids of ids; the decoder predicts the ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from supmim.tokenizers import patch_vq


class Tokenizer(Protocol):
    """A pytree of frozen arrays. Images are float32 in [0, 1], [B, S, S, C]; ids [B, N], int32."""

    def encode(self, image: jax.Array) -> jax.Array:
        """Images -> ids."""

    def decode(self, ids: jax.Array) -> jax.Array:
        """Ids -> images."""

    def save(self, folder: Path) -> None:
        """Writes the tokenizer into a folder, whole or not at all."""


TOKENIZERS = {"patch_vq": patch_vq}


def load_or_fit(config: Any, folder: Path, images: Callable[[], np.ndarray]) -> Tokenizer:
    """The tokenizer of a run: read from its folder, else fitted on images() and saved there."""
    module = TOKENIZERS[config.tokenizer.name]
    if (folder / module.FILE).exists():
        return module.load(folder)
    tokenizer = module.fit(
        images(),
        codebook_size=config.tokenizer.codebook_size,
        patch_size=config.tokenizer.patch_size,
        steps=config.tokenizer.fit_steps,
        seed=config.data.seed,
    )
    tokenizer.save(folder)
    return tokenizer
