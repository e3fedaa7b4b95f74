"""Where images come from: random access to labelled records, by name, with a fingerprint."""

import difflib
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from supmim.errors import DataError

# What a spec's part of a source may be: all of it, or one side of what it holds out for evaluation.
WHOLE, KEPT, HELD_OUT = "whole", "kept", "held out"


class NothingHeldOut(DataError):
    """A source that leaves nothing to evaluate on."""


class Record(NamedTuple):
    """One labelled image; `name` is what messages call it.

    image: encoded bytes, uint8 [H, W, C], or the error that came instead of them.
    """

    image: bytes | np.ndarray | OSError
    label: int
    name: str


class MaskedRecord(NamedTuple):
    """An image with a class id for each pixel: label is 0, mask encoded, [H, W], or an error."""

    image: bytes | np.ndarray | OSError
    label: int
    name: str
    mask: bytes | np.ndarray | OSError


class Source(Protocol):
    """Random access to labelled images; must pickle, since reader processes get a copy."""

    name: str
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, index: int) -> Record:
        """One record. DataError if the storage is damaged; a damaged image is not its business."""

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        """Several records, read together where the storage can."""

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a run to go on: a change of it changes the samples."""


class Masked:
    """What sources of MaskedRecords have in common; their class_names are those of pixels."""


class InMemory:
    """Images held as one array. Raises DataError for labels that name no class."""

    def __init__(
        self, name: str, image: np.ndarray, label: np.ndarray, class_names: Sequence[str]
    ) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self.image, self.label = image, check_labels(name, label, len(class_names))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Record:
        return Record(self.image[index], self.label[index], f"{self.name}, record {index}")

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return [self[int(i)] for i in index]

    def fingerprint(self) -> dict[str, Any]:
        """See Source."""
        digest = hashlib.sha256(self.image.tobytes() + self.label.tobytes()).hexdigest()
        return {"name": self.name, "length": len(self), "sha256": digest}


class Sample:
    """So many images of another source, evenly taken: folders are sorted by class."""

    def __init__(self, source: Source, limit: int) -> None:
        self.source, self.name, self.class_names = source, source.name, source.class_names
        self.index = evenly(len(source), limit)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.index[index])]

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return self.source.__getitems__([int(i) for i in self.index[list(index)]])

    def fingerprint(self) -> dict[str, Any]:
        """See Source."""
        return self.source.fingerprint() | {"sample": len(self)}


class Renumbered:
    """Another source whose classes are some of `class_names`, by which its labels count."""

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        self.source, self.name, self.class_names = source, source.name, tuple(class_names)
        place = {name: number for number, name in enumerate(class_names)}
        self.number = [place[name] for name in source.class_names]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self.renumbered(self.source[index])

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return [self.renumbered(record) for record in self.source.__getitems__(index)]

    def renumbered(self, record: Record) -> Record:
        """A record of the source with the label that it has here."""
        return record._replace(label=self.number[check_label(record, len(self.number))])

    def fingerprint(self) -> dict[str, Any]:
        """See Source."""
        return self.source.fingerprint()


def innermost(source: Source) -> Source:
    """What a sample is taken of or labels are renumbered of, or the source itself."""
    while isinstance(source, Sample | Renumbered):
        source = source.source
    return source


def check_labels(name: str, label: np.ndarray, num_classes: int) -> np.ndarray:
    """int32 labels [n] in [0, num_classes); DataError names the first that is not."""
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise DataError(f"labels of {name} are {label.dtype}; they must be integers")
    bad = np.flatnonzero((label < 0) | (label >= num_classes))
    if bad.size:
        raise DataError(
            f"{name}, record {bad[0]}: label {label[bad[0]]} is outside 0..{num_classes - 1} "
            f"({bad.size} such records); check the labels or the number of classes"
        )
    return label.astype(np.int32)


def check_label(record: Record, num_classes: int) -> int:
    """The label of a record; DataError, naming the record, if it names no class."""
    label = record.label
    if not isinstance(label, int | np.integer):
        raise DataError(f"{record.name}: label {label!r} is no integer; check the labels")
    if not 0 <= label < num_classes:
        raise DataError(
            f"{record.name}: label {label} is outside 0..{num_classes - 1}; check the labels or "
            "the number of classes"
        )
    return int(label)


def known(name: str, among: Sequence[str], message: str) -> str:
    """`name`, if it is among these; else DataError with the message and the nearest."""
    if name not in among:
        close = difflib.get_close_matches(name, list(among), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"{message.format(name)}: it takes {', '.join(among)}{hint}")
    return name


def evenly(length: int, count: int) -> np.ndarray:
    """int [min(length, count)]: places from the first to the last of so many."""
    return np.linspace(0, length - 1, min(length, count)).astype(int)


def printable(name: str) -> str:
    """A file name on one line, free of control codes."""
    return name.encode("unicode_escape").decode() if not name.isprintable() else name
