"""Tokenizers: frozen maps between images and grids of ids; the decoder predicts the ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from supmim.config import Config
from supmim.errors import ConfigError
from supmim.runtime import hosts
from supmim.storage import paths
from supmim.tokenizers import feature_codes, patch_vq, taming, vqgan
from supmim.tokenizers import folder as folder_lib
from supmim.workdir.files import read_json, write_json


class Tokenizer(Protocol):
    """A pytree of frozen arrays. Images are float32 in [0, 1], [B, S, S, C]; ids int32, [B, N]."""

    def encode(self, image: jax.Array) -> jax.Array:
        """Return the ids of images, row by row. DataError for values outside [0, 1]."""
        ...

    def decode(self, ids: jax.Array) -> jax.Array:
        """Return the images of ids."""
        ...

    def save(self, folder: Path, origin: str = "") -> None:
        """Write the tokenizer into a folder, whole or not at all. origin: what made it."""
        ...

    def fingerprint(self) -> str:
        """Return the SHA-256 of everything that the ids depend on."""
        ...

    def options(self) -> dict[str, Any]:
        """Return the values of the config's options, `group.option`, that the tokenizer fixes."""
        ...


TOKENIZERS = {
    "patch_vq": patch_vq,
    "feature_codes": feature_codes,
    "vqgan": vqgan,
    "taming": taming,
}
FITTED = ("patch_vq", "feature_codes")  # a run fits these on its own images if no folder is given


def abstract(config: Config) -> Tokenizer:
    """Return the tokenizer of a config with shapes in place of arrays, to trace and compile."""
    module = TOKENIZERS[config.tokenizer.name]
    return module.abstract(config.tokenizer, config.data.channels, config.tokenizer_dtype)


def load(config: Config) -> Tokenizer:
    """Return the tokenizer in the folder config.tokenizer.path.

    ConfigError if it differs from the config, CheckpointError if it is damaged.
    """
    folder, name = paths.path(config.tokenizer.path), config.tokenizer.name
    if (kind := kind_of(folder)) != name:
        raise ConfigError(
            f"{folder} holds a tokenizer of kind {kind}, not {name}: set "
            f"--config.tokenizer.name={kind}, or choose another --config.tokenizer.path"
        )
    tokenizer = TOKENIZERS[kind].load(folder, config.tokenizer_dtype)
    stored, expected = tokenizer.options(), abstract(config).options()
    if differing := {key: value for key, value in stored.items() if value != expected[key]}:
        lines = "".join(
            f"\n  config.{key}: {value} in the folder, {expected[key]} in the config"
            for key, value in differing.items()
        )
        flags = " ".join(f"--config.{key}={value}" for key, value in differing.items())
        raise ConfigError(
            f"the tokenizer in {folder} differs from the config:{lines}\n"
            f"Set {flags}, or choose another --config.tokenizer.path"
        )
    return tokenizer


def kind_of(folder: Path) -> str:
    """Return the kind of the tokenizer in a folder; CheckpointError if there is none."""
    if patch_vq.is_old(folder):
        return "patch_vq"
    kind = folder_lib.read_note(folder)["kind"]
    if kind not in TOKENIZERS:
        raise folder_lib.damaged(folder / folder_lib.NOTE, f"its kind {kind!r} is not known")
    return kind


def load_or_fit(
    config: Config,
    folder: Path,
    made_from: dict[str, Any],
    fit: Callable[[], Tokenizer],
    needed: bool,
) -> Tokenizer:
    """Return the tokenizer of config.tokenizer.path or, if that is empty, of `folder`.

    If `folder` holds no tokenizer that was made from `made_from`, that of fit() is saved there.
    made_from: JSON of all that its codes depend on; written last, it marks a complete tokenizer.
    needed: whether a run that used `folder` continues. Then it is read whatever it was made from,
    with a CheckpointError if it is damaged. ConfigError if its kind must be trained first.
    """
    if not config.tokenizer.path and config.tokenizer.name not in FITTED:
        raise ConfigError(
            f"config.tokenizer.name={config.tokenizer.name} needs --config.tokenizer.path, the "
            f"folder of a tokenizer: {folder_lib.HOW_TO_MAKE_ONE}"
        )
    note = folder / "made_from.json"
    if config.tokenizer.path or hosts.on_first(lambda: needed or _holds(note, made_from)):
        return stored(config, folder)
    tokenizer = fit()
    hosts.on_first(lambda: tokenizer.save(folder))
    hosts.on_first(lambda: write_json(note, made_from))
    return stored(config, folder)  # all processes read the first one's: rounding may differ


def stored(config: Config, folder: Path) -> Tokenizer:
    """Return the tokenizer of config.tokenizer.path or, if that is empty, the fitted one.

    CheckpointError if it is missing or damaged.
    """
    if config.tokenizer.path:
        return load(config)
    return TOKENIZERS[config.tokenizer.name].load(folder, config.tokenizer_dtype)


def _holds(note: Path, document: dict[str, Any]) -> bool:
    try:
        return note.is_file() and read_json(note) == document
    except ValueError:
        return False
