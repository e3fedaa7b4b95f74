"""Conversion of a typed Config from and to the ConfigDicts of presets and flags, and JSON."""

import importlib.metadata
import json
from typing import Any

from ml_collections import ConfigDict

from supmim.config import checks
from supmim.config.flat import build, flatten, nested
from supmim.config.options import OPTIONS, Config
from supmim.errors import ConfigError, counted

SCHEMA_VERSION = 6  # of config.json; older ones are refused


def get_config() -> ConfigDict:
    """Return the defaults, locked: a preset is a short list of changes to them."""
    return to_dict(Config())


def to_dict(config: Config) -> ConfigDict:
    """Return a config as the locked ConfigDict that flags can override."""
    return ConfigDict(nested(flatten(config))).lock()


def validate(node: ConfigDict | dict[str, Any]) -> Config:
    """Check a config, in groups or as `group.option` -> value, and return it typed.

    ConfigError lists every problem with the nearest valid value.
    """
    flat = flatten(node)
    if problems := checks.problems(flat):
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ConfigError(f"the config has {counted(len(problems), 'problem')}:{lines}", fault="C2")
    return build(flat)


def to_json(config: Config) -> str:
    """Return a config as JSON text, with the version of its schema and of supmim."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "supmim_version": importlib.metadata.version("supmim"),
        "config": nested(flatten(config)),
    }
    return json.dumps(document, indent=1) + "\n"


def from_json(text: str, where: str) -> Config:
    """Read the text of `to_json` back and check it; `where` is named in errors.

    A missing option gets its default if that is what runs did before the option existed.
    """
    try:
        document = json.loads(text)
        version, stored = document["schema_version"], flatten(dict(document["config"]))
        if nested(stored) != document["config"]:
            raise ValueError("an option is named with a dot, or is an empty group")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not a supmim config: {error!r}. Restore it from a copy, or start again "
            "in a new --workdir"
        ) from error
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        written_by = document.get("supmim_version")
        writer = f"supmim {written_by}" if written_by else "a supmim before 0.2.0"
        raise ConfigError(
            f"{where} has schema version {version}, written by {writer}; this supmim reads "
            f"version {SCHEMA_VERSION}. "
            + (
                "Update supmim to continue this run"
                if newer
                else "Continue this run with the supmim that wrote it, or start it again in a new "
                "--workdir"
            ),
            fault="C3",
        )
    filled = {path: option.default for path, option in OPTIONS.items() if option.default_is_before}
    try:
        return validate(filled | stored)
    except ConfigError as error:
        raise error.at(where) from error


def resume_differences(stored: Config, asked: Config) -> list[str]:
    """Return a line for each difference in an option that a continued run may not change."""
    before, after = (
        flatten(config) | {"tokenizer.dtype": config.tokenizer_dtype} for config in (stored, asked)
    )
    return [
        f"config.{path}: the workdir has {before[path]!r}, but you ask for {after[path]!r}"
        for path, option in OPTIONS.items()
        if before[path] != after[path]
        and not option.on_resume
        and (path, after[path]) != ("classifier.num_classes", 0)  # not known yet
    ]


def result_differences(stored: Config, asked: Config) -> list[str]:
    """Return a line for each difference that makes the results of a finished run other ones."""
    before, after = flatten(stored), flatten(asked)
    return [
        f"config.{path}: its results have {before[path]!r}, but you ask for {after[path]!r}"
        for path, option in OPTIONS.items()
        if option.in_results and before[path] != after[path]
    ]


def for_evaluation(stored: Config, node: ConfigDict | dict[str, Any], names: str) -> Config:
    """Return the checked config of an evaluation of a run whose config is `stored`.

    names: evaluators in place of the config's; empty: the config's. ConfigError names every option
    that was changed although it belongs to the run.
    """
    before, asked = flatten(stored), flatten(node)
    lines = [
        f"config.{path}: the run has {before[path]!r}, but you ask for {asked[path]!r}"
        for path, option in OPTIONS.items()
        if before[path] != asked[path] and not option.in_evaluation
    ]
    if lines:
        raise ConfigError(
            "an evaluation cannot change the run:\n  " + "\n  ".join(lines) + "\nLeave that out. "
            "The options that an evaluation may change: supmim evaluate --help=all"
        )
    asked |= {"eval.evaluators": names or asked["eval.evaluators"], "checkpoint.keep_best": 0}
    checked = dict(asked)
    if asked["data.image_size"] != before["data.image_size"] and stored.task == "supmim":
        # Only the encoder is used: the decoder's sizes are not checked.
        checked |= {"mim_weight": 0.0, "class_weight": 1.0}
        checked |= {"data.unlabelled": "", "data.unlabelled_batch": 0}
    validate(checked)
    config = build(asked)
    if not config.evaluator_names:
        missing = [
            f"no {part}"
            for part, there in (("decoder", config.has_decoder), ("classifier", config.classifies))
            if not there
        ]
        raise ConfigError(
            f"--evaluators={names} leaves nothing to evaluate: this run trained "
            f"{' and '.join(missing)}"
        )
    return config
