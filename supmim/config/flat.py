"""A config as one dict, `group.option` -> value, in which options are compared and changed."""

import os
from dataclasses import fields, is_dataclass
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from supmim.config.options import Config


def replaced(config: Config, changes: dict[str, Any]) -> Config:
    """Return a config with some options, `group.option` -> value, set to other values."""
    return build(flatten(config) | changes)


def build(flat: dict[str, Any]) -> Config:
    """Return the typed config of `group.option` -> value; values must have been checked.

    `~` becomes the home folder in every option that is a path.
    """
    return _build(Config, flat, "")


def _build(group: type, flat: dict[str, Any], prefix: str) -> Any:
    values: dict[str, Any] = {}
    for field in fields(group):
        if isinstance(field.type, type) and is_dataclass(field.type):
            values[field.name] = _build(field.type, flat, f"{prefix}{field.name}.")
        else:
            value = flat[prefix + field.name]
            if field.metadata["option"].is_path:
                value = os.path.expanduser(value)
            values[field.name] = float(value) if field.type is float else value
    return group(**values)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return `group.option` -> value of a Config, a ConfigDict or a dict, or of one group."""
    flat: dict[str, Any] = {}
    for name, value in (vars(node) if is_dataclass(node) else node).items():
        if isinstance(value, ConfigDict | FrozenConfigDict | dict) or is_dataclass(value):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return `group.option` -> value as a dict of groups."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        group, _, name = path.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = value
    return tree
