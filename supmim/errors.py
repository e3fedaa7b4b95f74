"""Errors that a user can cause, each with the exit code that a scheduler reads."""

import difflib
from collections.abc import Iterable
from typing import Self


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun, for messages: "1 image", "1,234 images", "2 classes".

    many: the plural, unless it adds s or es. Both may include a verb: "member is", "members are".
    """
    if not many:
        hisses = one.endswith(("s", "x", "ch", "sh")) and not one.endswith("epoch")
        many = one + ("es" if hisses else "s")
    return f"{number:,} {one if number == 1 else many}"


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `; did you mean ...?` with the nearest known word, or an empty string."""
    close = nearest(word, known)
    return f"; did you mean {prefix}{close}?" if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that resembles this one most, or an empty string."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


class SupmimError(Exception):
    """An error whose message says what happened, where, why, and what to do next.

    fault: the row of docs/faults.md that describes it. The message then begins with its name.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, fault: str = "") -> None:
        super().__init__(f"[{fault}] {message}" if fault else message)
        self.message, self.fault = message, fault

    def at(self, where: object) -> Self:
        """Return the same error with its place in front of the message."""
        return type(self)(f"{where}: {self.message}", fault=self.fault)


class ConfigError(SupmimError):
    """The command line or the config is wrong."""

    exit_code = 2


class DataError(SupmimError):
    """A data source, a record or a label is wrong."""

    exit_code = 3


class CheckpointError(SupmimError):
    """A checkpoint, or the workdir that holds it, cannot be used."""

    exit_code = 4


class BucketError(CheckpointError, OSError):
    """A bucket refuses a request, or could not be reached for too long."""


class NumericsError(SupmimError):
    """Training produced NaN or infinity."""

    exit_code = 5


class DeviceError(SupmimError):
    """An accelerator, its driver or its memory failed."""

    exit_code = 6


class StallError(SupmimError):
    """The run made no progress for too long; a watchdog ended the process."""

    exit_code = 7


class Interrupted(SupmimError):
    """A signal stopped the run after a save; the same command continues it."""

    exit_code = 75
