"""Tokenizers: frozen maps between images and grids of ids; the decoder predicts the ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from supmim.config import Config
from supmim.errors import ConfigError
from supmim.runtime import hosts
from supmim.tokenizers import folder as folder_lib
from supmim.tokenizers import patch_vq, taming, vqgan
from supmim.workdir.files import write_json


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

    def options(self) -> dict[str, Any]:
        """The options of a config, `group.option`, that it fixes, with their values."""


TOKENIZERS = {"patch_vq": patch_vq, "vqgan": vqgan, "taming": taming}


def abstract(config: Config) -> Tokenizer:
    """The tokenizer of a config, of shapes only: what is needed to trace and compile."""
    module = TOKENIZERS[config.tokenizer.name]
    dtype = config.tokenizer_dtype
    return module.abstract(config.tokenizer, config.data.channels, dtype)


def load(config: Config) -> Tokenizer:
    """The tokenizer in the folder config.tokenizer.path.

    ConfigError if it is not what the config says, CheckpointError if it is not whole.
    """
    folder, sizes = Path(config.tokenizer.path), config.tokenizer
    if (kind := kind_of(folder)) != sizes.name:
        raise ConfigError(
            f"{folder} holds a tokenizer of kind {kind}, not {sizes.name}: set "
            f"--config.tokenizer.name={kind}, or choose another --config.tokenizer.path"
        )
    tokenizer = TOKENIZERS[kind].load(folder, config.tokenizer_dtype)
    held, expected = tokenizer.options(), abstract(config).options()
    if differ := [name for name in held if held[name] != expected[name]]:
        lines = [
            f"config.{name}: {held[name]} there, {expected[name]} asked for" for name in differ
        ]
        flags = " ".join(f"--config.{name}={held[name]}" for name in differ)
        raise ConfigError(
            f"the tokenizer in {folder} has other sizes than the config:\n  "
            + "\n  ".join(lines) + f"\nSet {flags}, or choose another --config.tokenizer.path"
        )  # fmt: skip
    return tokenizer


def kind_of(folder: Path) -> str:
    """The name of the tokenizer in a folder; CheckpointError if there is none."""
    if patch_vq.is_old(folder):
        return "patch_vq"
    kind = folder_lib.note_of(folder)["kind"]
    if kind not in TOKENIZERS:
        raise folder_lib.damaged(folder / folder_lib.NOTE, f"its kind {kind!r} is not known")
    return kind


def load_or_fit(
    config: Config,
    folder: Path,
    made_from: dict[str, Any],
    images: Callable[[], np.ndarray],
    needed: bool,
) -> Tokenizer:
    """The tokenizer of config.tokenizer.path. Without one, that in `folder` if it was made from the
    same; else one fitted on images(), saved.

    made_from: JSON of all that its codes depend on; written last, so that it marks a whole one.
    needed: a run goes on with it, so it is read as it is; CheckpointError if it is not whole.
    ConfigError if it is of a kind that must be trained first.
    """
    if config.tokenizer.path:
        return load(config)
    if config.tokenizer.name != "patch_vq":
        raise ConfigError(
            f"config.tokenizer.name={config.tokenizer.name} needs --config.tokenizer.path, the "
            f"folder of a tokenizer: {folder_lib.MAKE_ONE}"
        )
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
