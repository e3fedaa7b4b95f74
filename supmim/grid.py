"""What sweep files are made of: names -> overrides, combined. Imports no JAX.

An axis is a dict: the name of an entry -> its overrides, `group.option` -> value.
"""

import itertools
from typing import Any

from supmim.errors import ConfigError

Axis = dict[str, dict[str, Any]]


def values(option: str, *choices: Any) -> Axis:
    """One entry per value of an option, named `option=value`."""
    return {f"{option}={choice}": {option: choice} for choice in choices}


def seeds(*numbers: int) -> Axis:
    """One entry per seed, of model and data alike; `sweep table` averages over them."""
    return {f"s{number}": {"seed": number, "data.seed": number} for number in numbers}


def product(*axes: Axis) -> Axis:
    """Every combination of one entry of each axis, names joined by `-`."""
    return dict(_joined(entries) for entries in itertools.product(*(axis.items() for axis in axes)))


def zipped(*axes: Axis) -> Axis:
    """First entries together, second entries together, ...; ConfigError if lengths differ."""
    if len({len(axis) for axis in axes}) > 1:
        lengths = ", ".join(str(len(axis)) for axis in axes)
        raise ConfigError(f"zipped takes axes of one length, not of {lengths} entries")
    return dict(_joined(entries) for entries in zip(*(axis.items() for axis in axes), strict=True))


def _joined(entries: tuple[tuple[str, dict[str, Any]], ...]) -> tuple[str, dict[str, Any]]:
    """ConfigError if two entries set the same option: one of them would be lost."""
    name = "-".join(name for name, _ in entries)
    joined: dict[str, Any] = {}
    for _, overrides in entries:
        if twice := joined.keys() & overrides.keys():
            raise ConfigError(f"{name}: two axes set {', '.join(sorted(twice))}")
        joined |= overrides
    return name, joined
