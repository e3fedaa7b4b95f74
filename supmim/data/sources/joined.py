"""Training images with labels, and others beside them, of which only the pixels are used."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from supmim.config import options
from supmim.data.sources.base import InMemory, Record, Source, Subset, innermost
from supmim.errors import DataError, counted


class Joined(Source):
    """The images with labels, then those without, whose label is 0; the classes are the former's.

    `labelled` and `unlabelled` are the two sources.
    """

    def __init__(self, labelled: Source, unlabelled: Source) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.name, self.class_names = labelled.name, labelled.class_names

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        first = len(self.labelled)
        of_labelled = iter(self.labelled.__getitems__([i for i in index if i < first]))
        others = self.unlabelled.__getitems__([i - first for i in index if i >= first])
        of_others = (record._replace(label=0) for record in others)
        return [next(of_labelled if i < first else of_others) for i in index]

    def name_of(self, index: int) -> str:
        first = len(self.labelled)
        if index < first:
            return self.labelled.name_of(index)
        return self.unlabelled.name_of(index - first)

    def fingerprint(self) -> dict[str, Any]:
        others = self.unlabelled.fingerprint()
        return self.labelled.fingerprint() | {f"unlabelled {k}": v for k, v in others.items()}

    def identities(self) -> np.ndarray:
        return np.concatenate([self.labelled.identities(), self.unlabelled.identities()])


def labelled(source: Source) -> Source:
    """Return the images of a training source that have labels."""
    return source.labelled if isinstance(source, Joined) else source


def whole(source: Source) -> Source | None:
    """Return a training source as it was before `split`, with all labels; None if not split."""
    kept = labelled(source)
    return kept.source if type(kept) is Subset else None


def parts(source: Source) -> Iterator[Source]:
    """Yield the innermost sources that the images of a source lie in."""
    if isinstance(source, Joined):
        yield from (innermost(source.labelled), innermost(source.unlabelled))
    else:
        yield innermost(source)


def split(source: Source, data: options.Data) -> tuple[Source, Source]:
    """Split off the images that keep their labels, by config.data.labels and labelled_classes.

    The others come second. DataError for more labels than there are, or too few for all classes.
    """
    label = source.labels()
    classes = numbers_of(source, "labelled_classes", data.labelled_classes)
    allowed = np.flatnonzero(np.isin(label, classes))
    found = np.unique(label[allowed])
    count = len(allowed)
    if data.labels:
        count = round(data.labels * len(allowed)) if data.labels < 1 else int(data.labels)
    asked = f"config.data.labels={data.labels:g}"
    if count > len(allowed):
        raise DataError(
            f"{asked} asks for more labels than {source.name} has: "
            f"{counted(len(allowed), 'image')} of these classes; set it to 0 for all"
        )
    if count < len(found):
        raise DataError(
            f"{asked} keeps {counted(count, 'label')}, too few for the "
            f"{counted(len(found), 'class')} of {source.name}; set it to {len(found)} or more"
        )
    kept = stratified(label[allowed], count, data.seed)
    index = allowed[kept]
    return Subset(source, index), Subset(source, np.setdiff1d(np.arange(len(source)), index))


def of_classes(source: Source, numbers: str) -> Source:
    """Return the images of config.data.eval_classes; DataError if none, or for an unknown class."""
    classes = numbers_of(source, "eval_classes", numbers)
    index = np.flatnonzero(np.isin(source.labels(), classes))
    if not len(index):
        raise DataError(f"config.data.eval_classes={numbers}: {source.name} has no image of them")
    return Subset(source, index)


def numbers_of(source: Source, option: str, numbers: str) -> np.ndarray:
    """Return the numbers of the classes in an option, all if it is empty; DataError for others."""
    known = len(source.class_names)
    words = [word.strip() for word in numbers.split(",") if word.strip()]
    wrong = [word for word in words if not re.fullmatch("[0-9]{1,9}", word) or int(word) >= known]
    if wrong:
        raise DataError(
            f"config.data.{option} names {', '.join(wrong)}; {source.name} has classes 0 "
            f"to {known - 1}"
        )
    return np.array(sorted({int(word) for word in words})) if words else np.arange(known)


def stratified(label: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the sorted index [count] of a choice of labels [n]: a share of each class, at least 1.

    Within a class, the first in an order that depends on the seed alone are chosen, so a larger
    count includes a smaller one, except for rounding. count: at least the number of classes.
    """
    numbers, sizes = np.unique(label, return_counts=True)
    exact = sizes * count / len(label)
    share = np.maximum(1, exact.astype(int))
    while share.sum() != count:
        missing = share.sum() < count
        free = share < sizes if missing else share > 1
        gap = np.where(free, exact - share, -np.inf if missing else np.inf)
        share[gap.argmax() if missing else gap.argmin()] += 1 if missing else -1
    chosen = []
    for number, size in zip(numbers.tolist(), share.tolist(), strict=True):
        bits = np.random.MT19937(np.random.SeedSequence([seed, number]))
        chosen.append(
            np.random.RandomState(bits).permutation(np.flatnonzero(label == number))[:size]
        )
    return np.sort(np.concatenate(chosen))


def check(source: Joined, batch_size: int) -> None:
    """Raise DataError if the images without labels cannot be trained on along with the others.

    batch_size: how many of them a step takes.
    """
    ours, theirs = innermost(source.labelled), innermost(source.unlabelled)
    if len(source.unlabelled) < batch_size:
        raise DataError(
            f"{counted(len(source.unlabelled), 'image')} of {source.unlabelled.name} can be used "
            f"without labels, fewer than the {batch_size} that a step takes; set "
            f"--config.data.unlabelled_batch={len(source.unlabelled)} or less"
        )
    if isinstance(ours, InMemory) and isinstance(theirs, InMemory):
        channels = [one.image.shape[-1] for one in (ours, theirs)]
        if channels[0] != channels[1]:
            raise DataError(
                f"{theirs.name} has {counted(channels[1], 'channel')}, {ours.name} has "
                f"{channels[0]}; choose another --config.data.unlabelled"
            )
