"""Where images come from: random access to records, with class names and a fingerprint."""

import difflib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from supmim.errors import DataError


class Source(Protocol):
    """Random access to labelled images; must pickle, since reader processes get a copy."""

    name: str
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: Sequence[int]) -> dict[str, np.ndarray]:
        """`image` uint8 [n, H, W, C] and `label` int32 [n] of the records in `index`."""

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a run to go on: a change of it changes the samples."""


class InMemory:
    """Images held as one array. Raises DataError for labels that name no class."""

    def __init__(
        self, name: str, image: np.ndarray, label: np.ndarray, class_names: Sequence[str]
    ) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self.image, self.label = image, check_labels(name, label, len(class_names))

    def __len__(self) -> int:
        return len(self.image)

    def read(self, index: Sequence[int]) -> dict[str, np.ndarray]:
        """See Source."""
        index = np.asarray(index)
        return {"image": self.image[index], "label": self.label[index]}

    def fingerprint(self) -> dict[str, Any]:
        """See Source."""
        digest = hashlib.sha256(self.image.tobytes() + self.label.tobytes()).hexdigest()
        return {"name": self.name, "length": len(self), "sha256": digest}


class First:
    """The first `limit` images of another source."""

    def __init__(self, source: Source, limit: int) -> None:
        self.source, self.limit = source, min(limit, len(source))
        self.name, self.class_names = source.name, source.class_names

    def __len__(self) -> int:
        return self.limit

    def read(self, index: Sequence[int]) -> dict[str, np.ndarray]:
        """See Source."""
        return self.source.read(index)

    def fingerprint(self) -> dict[str, Any]:
        """See Source."""
        return self.source.fingerprint() | {"length": self.limit}


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


def digits(split: str) -> InMemory:
    """scikit-learn's bundled 1,797 handwritten digits, 8 x 8, stratified splits.

    train (1,500) and test (297); for tuning, train again as tune (1,200) and validation (300).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    image = (bunch.images * 15).astype(np.uint8)[..., None]  # 0..16: exact, so are distances
    label = bunch.target

    def halves(index, first, second):
        return train_test_split(
            index, train_size=first, test_size=second, stratify=label[index], random_state=0
        )

    splits = dict(zip(("train", "test"), halves(np.arange(len(label)), 1500, 297), strict=True))
    tuning = halves(splits["train"], 1200, 300)
    splits |= dict(zip(("tune", "validation"), tuning, strict=True))
    index = splits[_known(split, splits, "digits:{} is not a split of the digits")]
    return InMemory(f"digits:{split}", image[index], label[index], "0123456789")


LOADERS: dict[str, Callable[[str], Source]] = {"digits": digits}


def _known(name: str, among: Sequence[str], message: str) -> str:
    if name not in among:
        close = difflib.get_close_matches(name, list(among), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"{message.format(name)}: it takes {', '.join(among)}{hint}")
    return name


def load(spec: str, data: Any, num_classes: int) -> Source:
    """The source of `NAME:SPLIT`, checked against the sizes that the config promises."""
    name, _, split = spec.partition(":")
    source = LOADERS[_known(name, LOADERS, "{} is not a data source")](split)
    shape = source.read([0])["image"].shape[1:]
    wanted = (data.image_size, data.image_size, data.channels)
    if shape != wanted:
        raise DataError(
            f"images of {spec} are {shape[0]} x {shape[1]} x {shape[2]}, the config says "
            f"{wanted[0]} x {wanted[1]} x {wanted[2]}; set --config.data.image_size={shape[0]} "
            f"--config.data.channels={shape[2]}"
        )
    if len(source.class_names) != num_classes:
        raise DataError(
            f"{spec} has {len(source.class_names)} classes, the config says {num_classes}; "
            f"set --config.classifier.num_classes={len(source.class_names)}"
        )
    return First(source, data.limit) if data.limit else source
