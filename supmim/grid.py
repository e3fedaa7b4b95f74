"""Building blocks of sweep files: axes of named overrides, and their combinations, without JAX."""

import itertools
from typing import Any

from supmim.errors import ConfigError


class Name(str):
    """The name of an entry; arm: the name without the part that stands for a seed."""

    arm: str

    def __new__(cls, text: str, arm: str) -> "Name":
        name = super().__new__(cls, text)
        name.arm = arm
        return name


Axis = dict[str, dict[str, Any]]  # name of an entry -> its overrides, `group.option` -> value


def values(option: str, *choices: Any) -> Axis:
    """Return one entry per value of an option, named `option=value`."""
    return {f"{option}={choice}": {option: choice} for choice in choices}


def seeds(*numbers: int) -> Axis:
    """Return one entry per seed of both model and data; `sweep table` averages over them."""
    return {Name(f"s{n}", arm=""): {"seed": n, "data.seed": n} for n in numbers}


def product(*axes: Axis) -> Axis:
    """Return every combination of one entry of each axis, with names joined by `-`."""
    return dict(_joined(entries) for entries in itertools.product(*(axis.items() for axis in axes)))


def zipped(*axes: Axis) -> Axis:
    """Combine the first entries, the second entries, ...; ConfigError if lengths differ."""
    if len({len(axis) for axis in axes}) > 1:
        lengths = ", ".join(str(len(axis)) for axis in axes)
        raise ConfigError(f"zipped takes axes of equal length, not of {lengths} entries")
    return dict(_joined(entries) for entries in zip(*(axis.items() for axis in axes), strict=True))


def arm_of(name: str) -> str:
    """Return the name of an entry without the part that `seeds` added, if anything is left."""
    return (name.arm or name) if isinstance(name, Name) else name


def _joined(entries: tuple[tuple[str, dict[str, Any]], ...]) -> tuple[str, dict[str, Any]]:
    """Combine entries into one; ConfigError if two set the same option, as one would be lost."""
    names = [name for name, _ in entries]
    arms = [name.arm if isinstance(name, Name) else name for name in names]
    name = Name("-".join(names), arm="-".join(filter(None, arms)))
    joined: dict[str, Any] = {}
    for _, overrides in entries:
        if twice := joined.keys() & overrides.keys():
            raise ConfigError(f"{name}: two axes set {', '.join(sorted(twice))}")
        joined |= overrides
    return name, joined
