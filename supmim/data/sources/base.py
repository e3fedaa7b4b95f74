"""Sources of images: random access to labelled records, by name, with a fingerprint."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from supmim.errors import DataError, counted, suggestion
from supmim.runtime.streams import printable

# The parts of a source: all of it (for training), or either side of what it holds out.
WHOLE, KEPT, HELD_OUT = "whole", "kept", "held out"
EVALUATED = "evaluated"  # the held-out part if the source is stored in parts, else all of it


class NothingHeldOut(DataError):
    """The error of a source that holds out nothing for evaluation."""


class Record(NamedTuple):
    """A labelled image; `name` is its name in messages.

    image: encoded bytes, uint8 [H, W, C], or the error that occurred while reading it.
    """

    image: bytes | np.ndarray | OSError
    label: int
    name: str


class MaskedRecord(NamedTuple):
    """An image with a class id for each pixel: label is 0; mask is encoded, [H, W], or an error."""

    image: bytes | np.ndarray | OSError
    label: int
    name: str
    mask: bytes | np.ndarray | OSError


class Source(Protocol):
    """Random access to labelled images; must pickle, since reader processes get a copy."""

    name: str
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Return one record. DataError if the storage, rather than the image, is damaged."""
        ...

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        """Return several records; by default one after the other."""
        return [self[int(i)] for i in index]

    def name_of(self, index: int) -> str:
        """Return the name of one record, reading it unless the source knows it otherwise."""
        return self[index].name

    def labels(self) -> np.ndarray:
        """Return the label of every record, int32 [n], by default by reading them all."""
        count = len(self.class_names)
        return np.array([check_label(self[i], count) for i in range(len(self))], np.int32)

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be the same for a run to continue, without the location of files."""
        ...

    def identities(self) -> np.ndarray:
        """Return int64 [n], the same for records of two sources if they seem to be one image."""
        return numbered(self.fingerprint(), len(self))


class Masked(Source):
    """A source of MaskedRecords; its class_names are the classes of pixels."""


class InMemory(Source):
    """Images held in one array. DataError for labels that name no class."""

    def __init__(
        self, name: str, image: np.ndarray, label: np.ndarray, class_names: Sequence[str]
    ) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self.image, self.label = image, check_labels(name, label, len(class_names))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Record:
        return Record(self.image[index], self.label[index], f"{self.name}, record {index}")

    def labels(self) -> np.ndarray:
        return self.label

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.image.tobytes() + self.label.tobytes()).hexdigest()
        return {"name": self.name, "length": len(self), "sha256": digest}

    def identities(self) -> np.ndarray:
        return np.array([hash(image.tobytes()) for image in self.image])


class Subset(Source):
    """Some images of another source: those of an index [n], in its order."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self.source, self.name, self.class_names = source, source.name, source.class_names
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.index[index])]

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return self.source.__getitems__([int(i) for i in self.index[list(index)]])

    def name_of(self, index: int) -> str:
        return self.source.name_of(int(self.index[index]))

    def labels(self) -> np.ndarray:
        return self.source.labels()[self.index]

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.index.astype(np.int64).tobytes()).hexdigest()
        return self.source.fingerprint() | {"images kept": digest}

    def identities(self) -> np.ndarray:
        return self.source.identities()[self.index]


class Sample(Subset):
    """At most `limit` images of another source, evenly spaced, as folders are sorted by class."""

    def __init__(self, source: Source, limit: int) -> None:
        super().__init__(source, evenly(len(source), limit))

    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint() | {"sample": len(self)}


class Renumbered(Source):
    """Another source with its labels renumbered by `class_names`, which include its own."""

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        self.source, self.name, self.class_names = source, source.name, tuple(class_names)
        place = {name: number for number, name in enumerate(class_names)}
        self.number = [place[name] for name in source.class_names]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self._renumbered(self.source[index])

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return [self._renumbered(record) for record in self.source.__getitems__(index)]

    def _renumbered(self, record: Record) -> Record:
        return record._replace(label=self.number[check_label(record, len(self.number))])

    def labels(self) -> np.ndarray:
        return np.array(self.number, np.int32)[self.source.labels()]

    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint()

    def identities(self) -> np.ndarray:
        return self.source.identities()


def numbered(what: Any, length: int) -> np.ndarray:
    """Return the identities of records that are identified by their places in `what`."""
    return hash(json.dumps(what)) + np.arange(length)


def innermost(source: Source) -> Source:
    """Return the source below Subset and Renumbered, or the source itself."""
    while isinstance(source, Subset | Renumbered):
        source = source.source
    return source


def check_labels(name: str, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Return labels [n] in [0, num_classes) as int32; DataError names the first bad one."""
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise DataError(f"labels of {name} are {label.dtype}; they must be integers", fault="N5")
    bad = np.flatnonzero((label < 0) | (label >= num_classes))
    if bad.size:
        raise DataError(
            f"{name}, record {bad[0]}: label {label[bad[0]]} is outside 0..{num_classes - 1} "
            f"({counted(bad.size, 'such record')}); check the labels or the number of classes",
            fault="N5",
        )
    return label.astype(np.int32)


def check_label(record: Record | MaskedRecord, num_classes: int) -> int:
    """Return the label of a record; DataError, which names the record, if it names no class."""
    label, name = record.label, printable(record.name)
    if not isinstance(label, int | np.integer):
        raise DataError(f"{name}: label {label!r} is not an integer; check the labels", fault="N5")
    if not 0 <= label < num_classes:
        raise DataError(
            f"{name}: label {label} is outside 0..{num_classes - 1}; check the labels or "
            "the number of classes",
            fault="N5",
        )
    return int(label)


def expanded(where: str) -> Path:
    """Return a path with the home folder in place of a leading ~; DataError if it is empty."""
    if not where:
        raise DataError("the path of a source is missing; for the folder you are in, write ./")
    return Path(os.path.expanduser(where))


def unpacked(spec: str) -> DataError:
    """Return the error for a folder of image files in a bucket."""
    return DataError(
        f"{spec}: the files of a folder in a bucket are not read one by one; mount the bucket "
        "(gcsfuse, mountpoint-s3), or pack them with `supmim data convert folder:PATH --out=DIR`, "
        "upload DIR, and set --config.data.local_copy to read records:gs://BUCKET/DIR"
    )


def check_class_names(where: str, names: Collection[str]) -> None:
    """Raise DataError if a name is not UTF-8, or two are one name in two forms of Unicode."""
    forms: dict[str, str] = {}
    for name in names:
        if not is_utf8(name):
            raise DataError(
                f"{where}: the class {printable(name)} is not a name in UTF-8; rename it, or all "
                "of a folder with convmv -r -f ENCODING -t utf8 --notest FOLDER"
            )
        other = forms.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(
                f"{where}: the classes {ascii(other)} and {ascii(name)} are one name in two forms "
                "of Unicode (NFC and NFD); give them one name"
            )


def is_utf8(name: str) -> bool:
    """Return whether a file name was decoded without surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def check_name(name: str, among: Collection[str], message: str) -> None:
    """Raise DataError unless `name` is among these. message: has {} for the name."""
    if name not in among:
        taken = ", ".join(among)
        raise DataError(f"{message.format(name)}: it takes {taken}{suggestion(name, among)}")


def evenly(length: int, count: int) -> np.ndarray:
    """Return int [min(length, count)], indices evenly spaced from 0 to length - 1."""
    return np.linspace(0, length - 1, min(length, count)).astype(int)
