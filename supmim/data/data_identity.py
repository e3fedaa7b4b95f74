"""The identity of a run's data: stored with checkpoints and compared when a run is resumed."""

import hashlib
from typing import Any

from supmim import config as config_lib
from supmim.config import Config, options
from supmim.data.images import second_of
from supmim.data.sources.base import Source
from supmim.errors import DataError
from supmim.runtime import hosts

PIXELS_VERSION = 2  # of decoding, cropping and augmentation: raise it when pixels change
STREAM_VERSION = 3  # of those and the order of samples: raise it when either changes
FIXED_FOR_A_RUN = {"classes", "tokenizer"}  # parts of a fingerprint that parameters depend on


def of(source: Source, eval_source: Source, config: Config) -> dict[str, Any]:
    """Return all that determines the stream of samples and the evaluation images ("evaluated ...").

    It is stored with checkpoints and compared when a run is resumed.
    """
    values, second = config_lib.flatten(config), second_of(config)
    return {
        **source.fingerprint(),
        **{f"evaluated {name}": value for name, value in eval_source.fingerprint().items()},
        **options.identity(values, "crop"),
        **({"classes": classes_of(source)} if config.facts.has_labels else {}),
        "data_seed": config.data.seed,
        "batch_size": config.batch_size,
        "unlabelled_batch": config.unlabelled_rows,
        "transform_version": STREAM_VERSION,
        **({"tokenizer.image_size": second.size} if second.size else {}),
        **({"data.ignore_label": config.data.ignore_label} if config.facts.has_masks else {}),
    }


def classes_of(source: Source) -> str:
    """Return the SHA-256 of the names of the classes, in order."""
    return hashlib.sha256("\0".join(source.class_names).encode()).hexdigest()


def check(stored: dict[str, Any], found: dict[str, Any], allowed: bool = False) -> None:
    """Raise DataError, naming the fields, if a checkpoint was trained on other data.

    stored, found: fingerprints; only the fields of `stored` are compared. allowed: everything but
    classes and tokenizer may differ.
    """
    changed = {
        name: f"  {name}: was {was}, is {found.get(name)}"
        for name, was in sorted(stored.items())
        if was != found.get(name)
    }
    lines = "\n".join(changed.values())
    if changed and (not allowed or changed.keys() & FIXED_FOR_A_RUN):
        raise DataError(
            f"the data is not what this run was trained on:\n{lines}\nRestore the data, start "
            "again in a new --workdir, or continue with supmim train --allow-data-change, which "
            "accepts other images, but no other classes or tokens",
            fault="R19",
        )
    if changed and hosts.is_first():
        print(f"continuing with other data:\n{lines}")
