"""The config: defaults and presets' building blocks, validation, JSON.

Its options are in config_options.py, what cannot stand together in checks.py. Imports
neither jax nor flax, so that a wrong config is told in well under a second.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from supmim.config import checks
from supmim.config.options import (
    BROUGHT,
    CLASS_VIEW,
    FREE_ON_RESUME,
    LATER_GROUPS,
    OF_EVALUATION,
    OPTIONS,
    SCHEMA_VERSION,
    evaluator_names,
    flatten,
    has_labels,
    tokenizer_dtype,
)
from supmim.errors import ConfigError, DataError

# width, depth, mlp_dim, num_heads: mu to L and g as in big_vision and "Scaling Vision
# Transformers" (arXiv 2106.04560), So400m as in SigLIP (arXiv 2303.15343).
VARIANTS = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
}
# What each kind of augmentation has besides inception crop and flip: AugReg's (arXiv 2106.10270)
# as in big_vision's vit_i1k, deit3 as in facebookresearch/deit.
AUGMENTATIONS = {
    "none": {"crop": "none", "flip": False},
    "inception": {},
    "light1": {"randaug_num": 2},
    "light2": {"randaug_num": 2, "randaug_magnitude": 10.0, "mixup": 0.2},
    "medium1": {"randaug_num": 2, "randaug_magnitude": 15.0, "mixup": 0.2},
    "medium2": {"randaug_num": 2, "randaug_magnitude": 15.0, "mixup": 0.5},
    "strong1": {"randaug_num": 2, "randaug_magnitude": 20.0, "mixup": 0.5},
    "strong2": {"randaug_num": 2, "randaug_magnitude": 20.0, "mixup": 0.8},
    "deit3": {"area_min": 0.08, "interpolation": "bicubic", "three_augment": True,
              "colour_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0},
}  # fmt: skip
AUGMENTED = (
    "crop", "area_min", "area_max", "aspect_min", "aspect_max", "interpolation", "flip",
    "randaug_magnitude", *CLASS_VIEW,
)  # fmt: skip


def get_config() -> ConfigDict:
    """The defaults, locked: a preset is a short diff over them."""
    config = ConfigDict()
    for path, option in OPTIONS.items():
        group, _, name = path.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        (config[group] if group else config)[name] = option.default
    return config.lock()


def variant(name: str) -> dict[str, int]:
    """Encoder sizes of a standard name with a patch size, e.g. `B/14`."""
    size, _, patch = name.partition("/")
    if size not in VARIANTS or not patch.isdigit():
        raise ConfigError(
            f"encoder variant {name!r} is not known; write SIZE/PATCH with SIZE one of "
            f"{', '.join(VARIANTS)}, e.g. B/14"
        )
    width, depth, mlp_dim, num_heads = VARIANTS[size]
    return {
        "patch_size": int(patch), "width": width, "depth": depth,
        "mlp_dim": mlp_dim, "num_heads": num_heads,
    }  # fmt: skip


def augmentation(name: str) -> dict[str, bool | int | float | str]:
    """Data options of a known kind of augmentation, e.g. `medium2`; for `config.data.update`."""
    if name not in AUGMENTATIONS:
        raise ConfigError(
            f"augmentation {name!r} is not known; it takes one of {', '.join(AUGMENTATIONS)}"
        )
    off = {option: OPTIONS[f"data.{option}"].default for option in AUGMENTED}
    return off | {"crop": "inception", "flip": True} | AUGMENTATIONS[name]


def arm(config: ConfigDict, name: str) -> ConfigDict:
    """`supmim` leaves a preset as it is; `baseline` trains the same encoder on labels alone."""
    if name not in ("supmim", "baseline"):
        raise ConfigError(f"a preset's arm is supmim or baseline, not {name!r}")
    if name == "baseline":
        config.mim_weight = 0.0
    return config


DEBUG_SIZES = {
    "accumulation_steps": 1, "batch_size": 16, "total_epochs": 5, "log_every": 1, "eval_every": 0,
    "save_every": 10, "data.limit": 64, "encoder.depth": 2, "decoder.depth": 1, "eval.batch_size":
    16, "tokenizer.codebook_size": 64, "tokenizer.fit_images": 64, "optimizer.warmup_steps": 2,
    "tokenizer.adversarial_start": 0,
}  # fmt: skip


def debug(config: Any) -> FrozenConfigDict:
    """The same arrangement at a size that runs in seconds: 2 blocks, 4 x 4 patches, 64 images."""
    small = ConfigDict(config.to_dict())
    small.update_from_flattened_dict(DEBUG_SIZES)
    patch = config.tokenizer if config.task == "tokenizer" else config.encoder
    small.data.image_size = min(config.data.image_size, 4 * patch.patch_size)
    if config.data.targets and not config.tokenizer.path:
        small.tokenizer.path = str(Path(config.data.targets) / "tokenizer")
    if small.tokenizer.path:  # it has the size it has
        small.tokenizer.codebook_size = config.tokenizer.codebook_size
    small.data.targets = small.eval.real_labels = ""  # of other images
    small.init.workdir = ""  # of another size
    if config.task == "segmentation":
        small.data.eval_resize = small.segmentation.window = small.segmentation.stride = 0
    if config.tokenizer.image_size:
        grid = small.data.image_size // config.encoder.patch_size
        small.tokenizer.image_size = grid * config.tokenizer.patch_size
    validate(small)
    return FrozenConfigDict(small)


def settle(config: Any, class_names: Sequence[str], where: str) -> FrozenConfigDict:
    """The config with the number of classes of its source; ConfigError if it promises another.

    DataError if there is but one.
    """
    if not has_labels(config):
        return config
    found = len(class_names)
    if not found:
        raise DataError(
            f"nothing says how many classes the masks of {where} have: write their names into "
            "classes.txt in its folder, a line each, or set --config.data.mask_classes=N"
        )
    if found < 2:
        raise DataError(f"{where} has images of one class, {class_names[0]}; this takes two")
    if config.classifier.num_classes not in (0, found):
        raise ConfigError(
            f"{where} has {found} classes, config.classifier.num_classes is "
            f"{config.classifier.num_classes}; set --config.classifier.num_classes={found}, or 0 "
            "for those of the source"
        )
    if config.classifier.num_classes == found:
        return config
    settled = ConfigDict(config.to_dict())
    settled.classifier.num_classes = found
    return FrozenConfigDict(settled)


def validate(config: Any) -> None:
    """Raises one ConfigError that lists every problem with its nearest valid value."""
    if problems := checks.problems(config, get_config()):
        lines = "".join(f"\n  - {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"the config has {count}:{lines}")


def to_json(config: Any) -> str:
    """The resolved config as JSON text, with the version of its schema."""
    options = FrozenConfigDict(config).to_dict() if not isinstance(config, dict) else config
    return json.dumps({"schema_version": SCHEMA_VERSION, "config": options}, indent=1) + "\n"


def from_json(text: str, where: str) -> FrozenConfigDict:
    """Reads `to_json`'s text back, validated and frozen; `where` is named in errors."""
    try:
        document = json.loads(text)
        version, options = document["schema_version"], dict(document["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is not a supmim config: {error!r}") from error
    if version not in range(1, SCHEMA_VERSION + 1):
        raise ConfigError(
            f"{where} has schema version {version}; this supmim reads 1 to {SCHEMA_VERSION}. "
            "Use the supmim that wrote it"
        )
    config = ConfigDict({group: {} for group in LATER_GROUPS} | options)
    try:
        for newer in range(version + 1, SCHEMA_VERSION + 1):
            config.update_from_flattened_dict(BROUGHT[newer])
    except (KeyError, AttributeError) as error:
        raise ConfigError(f"{where} is not a supmim config: {error!r}") from error
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return FrozenConfigDict(config)


def differences(stored: Any, wanted: Any) -> list[str]:
    """Lines for the options in which a resumed run may not differ from its workdir, but does."""
    stored, wanted = (
        flatten(config) | {"tokenizer.dtype": tokenizer_dtype(config)}
        for config in (stored, wanted)
    )
    return [
        f"config.{path}: the workdir has {stored[path]!r}, you ask for {wanted[path]!r}"
        for path in OPTIONS
        if stored[path] != wanted[path]
        and not path.startswith(FREE_ON_RESUME)
        and (path, wanted[path]) != ("classifier.num_classes", 0)  # not settled yet
    ]


def evaluated(stored: Any, asked: Any, names: str) -> FrozenConfigDict:
    """The config of an evaluation of a run whose config is `stored`, checked.

    names: evaluators in place of the config's; empty: those. ConfigError, naming all of them, for
    options that are of the run and not of an evaluation.
    """
    was, wanted = flatten(stored), flatten(asked)
    lines = [
        f"config.{path}: the run has {was[path]!r}, you ask for {wanted[path]!r}"
        for path in OPTIONS
        if was[path] != wanted[path] and not path.startswith(OF_EVALUATION)
    ]
    if lines:
        raise ConfigError(
            "an evaluation takes the run as it is:\n  " + "\n  ".join(lines) + "\nLeave that out; "
            "what it may set is in eval and mesh, or of data: train, eval, eval_view, eval_resize, "
            "image_size, limit and the like"
        )
    changed = ConfigDict(asked.to_dict())
    changed.eval.evaluators = names or changed.eval.evaluators
    changed.checkpoint.keep_best = 0
    sizes = ConfigDict(changed.to_dict())
    if changed.data.image_size != stored.data.image_size:  # which the encoder alone can see
        sizes.mim_weight, sizes.class_weight = 0.0, 1.0
    validate(sizes)
    if not evaluator_names(changed):
        raise ConfigError(f"--evaluators={names} asks nothing of a run without a decoder")
    return FrozenConfigDict(changed)


def describe() -> str:
    """All options as text of at most 80 columns, for `supmim train --help`."""
    lines, group = [], None
    for path, option in OPTIONS.items():
        if (head := path.rpartition(".")[0]) != group:
            group = head
            lines.append("")
        default = option.default if option.default != "" else "''"
        lines.append(f"  --config.{path}={default}")
        lines.append(f"      {option.meaning}")
        if option.choices:
            lines.append(f"      one of: {', '.join(option.choices)}")
    return "\n".join(lines)
