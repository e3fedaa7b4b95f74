"""What is known about one option, stated once, where the option is declared."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from supmim.storage.schemes import on_bucket

Value = bool | int | float | str
MAX_INT = 2**31 - 1
NO_URL = "{}: a folder or file on this machine is needed; mount the bucket, e.g. with gcsfuse"
NO_BUCKET = "{}: a folder or file on this machine is needed, or one in a bucket, gs:// or s3://"
NO_COPY = (
    "{} is in a bucket: read it through a mount (gcsfuse, mountpoint-s3), or set "
    "--config.data.local_copy=DIR, where it is copied once"
)
MAX_FLOAT = 3.4028234e38  # of float32
T = TypeVar("T", bool, int, float, str)
Group = TypeVar("Group")
Change = Literal["crop", "geometry", "colours", "class view", "parameters", "ids"]


@dataclass(frozen=True)
class Option:
    """One option. Everything else that concerns options by name is derived from these fields.

    default: fixes the type of the value, and is what `get_config` returns.
    meaning, unit: what `--help` prints.
    choices, low, high: the values that are allowed; if not given, all that are finite in JAX's
        int32 and float32.
    is_path: whether it names a file or folder, in which `~` is the home folder.
    in_bucket: whether that may be in a bucket, gs:// or s3://.
    changes: what a different value affects. "crop": which part of a record is shown, and
        how; "geometry": flips and moves on the device; "colours" and "class view": what only the
        class view undergoes; "parameters": the names, shapes or meaning of the encoder's
        parameters; "ids": target ids, beyond what "crop" and "geometry" change.
    may_change: whether a run may continue with a different value ("on resume"), or an evaluation
        may use one ("in evaluation"), or both ("always").
    in_results: whether results depend on it, although a run may continue with a different value.
    augmentation: whether a named kind of augmentation (`config.augmentation`) sets it.
    unused_by: tasks that do not read it; setting it there is an error.
    two_passes: whether another value than the default needs mim.passes=two.
    debug: the value under `--debug`, if it has one.
    common: whether the short help shows it.
    default_is_before: whether the default does what was done before the option existed. Then a
        config.json without it is read with the default; otherwise SCHEMA_VERSION must rise.
    """

    default: Value
    meaning: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    is_path: bool = False
    in_bucket: bool = False
    changes: tuple[Change, ...] = ()
    may_change: Literal["never", "on resume", "in evaluation", "always"] = "never"
    in_results: bool = False
    augmentation: bool = False
    unused_by: tuple[str, ...] = ()
    two_passes: bool = False
    debug: Value | None = None
    common: bool = False
    default_is_before: bool = False

    @property
    def on_resume(self) -> bool:
        """Whether a run may continue with a different value."""
        return self.may_change in ("on resume", "always")

    @property
    def in_evaluation(self) -> bool:
        """Whether `evaluate` may use a different value than the run."""
        return self.may_change in ("in evaluation", "always")

    def problem(self, value: Any) -> str:
        """Return why `value` is not allowed, or an empty string."""
        expected = type(self.default)
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits:
            return f"is {value!r}, of type {type(value).__name__}; it takes {expected.__name__}"
        if self.choices and value not in self.choices:
            return f"is {value!r}; it takes one of {', '.join(self.choices)}"
        if isinstance(value, str):
            local = self.is_path and not (self.in_bucket and on_bucket(value))
            refusal = NO_BUCKET if self.in_bucket else NO_URL
            return f"is {refusal.format(value)}" if local and "://" in value else ""
        largest = MAX_INT if expected is int else MAX_FLOAT
        low, high = max(self.low, -largest), min(self.high, largest)
        if not low <= value <= high:
            return f"is {value}; it takes a value from {low:.10g} to {high:.10g}"
        return ""


def option(default: T, meaning: str, **facts: Any) -> T:
    """Declare a field of an option group; facts: the other fields of Option."""
    return field(default=default, metadata={"option": Option(default, meaning, **facts)})


def group(options: Group, unused_by: tuple[str, ...]) -> Group:
    """Declare a group of options that some tasks do not read; setting one there is an error."""
    return field(default=options, metadata={"unused_by": unused_by})
