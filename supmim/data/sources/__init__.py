"""Sources of images: `find` returns one by name, `load` returns those of a run."""

import contextlib
import difflib
import importlib
import os
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from supmim.config import options
from supmim.data.sources import base, folders, joined
from supmim.data.sources.base import Renumbered, Sample, Source
from supmim.errors import BucketError, DataError
from supmim.runtime.progress import doing
from supmim.storage.schemes import on_bucket

# kind -> module with `load(where, part, data) -> Source`
LOADERS = {
    "digits": "supmim.data.sources.digits",
    "folder": "supmim.data.sources.folders",
    "records": "supmim.data.sources.records",
    "tfds": "supmim.data.sources.catalogue",
    "scenes": "supmim.data.sources.scenes",
    "pairs": "supmim.data.sources.pairs",
}
COMPARED = 8  # images that are read to find out whether two sources share images
TYPO_SIMILARITY = 0.75  # a name that is more similar to a kind is a mistyped kind


def find(spec: str, part: str, data: options.Data, labelled: bool = True) -> Source:
    """Return the source KIND:WHERE, e.g. digits:train, folder:/path, imagenet2012:train[:99%].

    Any other kind is the name of a TFDS dataset. labelled: whether a folder must have classes;
    other kinds always do.
    """
    kind, _, where = spec.partition(":")
    if not spec:
        raise DataError("no images are given; set --config.data.train=folder:PATH, or NAME:SPLIT")
    if not base.is_utf8(spec):
        raise DataError(f"{base.printable(spec)} is not a name in UTF-8; rename the folder")
    if on_bucket(spec):
        raise base.unpacked(spec)
    if kind not in LOADERS:
        if os.path.isdir(kind):
            raise DataError(f"{base.printable(kind)} is a folder; to read it, use folder:{kind}")
        if difflib.get_close_matches(kind, LOADERS, n=1, cutoff=TYPO_SIMILARITY):
            base.check_name(kind, LOADERS, "{} is not a kind of data source")
        if kind.startswith(("/", ".", "~")):
            raise DataError(
                f"{kind} is not a dataset of TFDS; to read a folder of images, use folder:{kind}"
            )
        kind, where = "tfds", spec
    extra = {"labelled": labelled} if kind == "folder" else {}
    with scanning(spec):
        return importlib.import_module(LOADERS[kind]).load(where, part, data, **extra)


def find_both(spec: str, data: options.Data, labelled: bool = True) -> tuple[Source, Source]:
    """Return the training part and the held-out part of a source; a folder is walked once."""
    kind, _, where = spec.partition(":")
    if kind == "folder" and base.is_utf8(spec):
        with scanning(spec):
            return folders.load_both(where, data, labelled)
    return find(spec, base.KEPT, data, labelled), find(spec, base.HELD_OUT, data, labelled)


@contextlib.contextmanager
def scanning(spec: str) -> Iterator[None]:
    """Show that a source is read; DataError if its folder or name cannot be."""
    try:
        with doing(f"scanning {spec}"):
            yield
    except BucketError:
        raise
    except OSError as error:
        raise DataError(f"{base.printable(spec)} cannot be read: {error}") from error


def load(
    data: options.Data, labelled: bool = True, all_classes: bool = False
) -> tuple[Source, Source]:
    """Return the training and the evaluation source of config.data.

    labelled: both must have the same classes or, with all_classes, both get those of either one. If
    data.eval is empty, evaluation uses what data.train holds out. The training source is a
    joined.Joined if there are images without labels.
    """
    if data.eval:
        train = find(data.train, base.WHOLE, data, labelled)
        evaluation = find(data.eval, base.EVALUATED, data, labelled)
    else:
        train, evaluation = find_both(data.train, data, labelled)
    if labelled and all_classes:
        train, evaluation = with_all_classes(train, evaluation)
    elif labelled:
        check_classes(train, evaluation)
    if data.limit:
        train, evaluation = Sample(train, data.limit), Sample(evaluation, data.limit)
    if data.eval_classes:
        with doing("reading the labels"):
            evaluation = joined.of_classes(evaluation, data.eval_classes)
    return with_unlabelled(train, data) if labelled else train, evaluation


def with_unlabelled(train: Source, data: options.Data) -> Source:
    """Return the images that keep their labels and, if any are asked for, those without labels."""
    kept, rest = train, None
    if data.labels or data.labelled_classes:
        with doing("reading the labels"):
            kept, rest = joined.split(train, data)
    if not data.unlabelled:
        return kept
    if data.unlabelled != options.REST:
        rest = find(data.unlabelled, base.WHOLE, data, labelled=False)
        rest = Sample(rest, data.limit) if data.limit else rest
    elif rest is None or not len(rest):
        raise DataError(
            f"config.data.unlabelled={options.REST} means the images whose labels are not used, "
            "and there are none: set --config.data.labels=N"
        )
    return joined.Joined(kept, rest)


def with_all_classes(train: Source, evaluation: Source) -> tuple[Source, Source]:
    """Return both sources with the classes of the first, then those that only the second has."""
    known = set(train.class_names)
    names = (*train.class_names, *(n for n in evaluation.class_names if n not in known))
    base.check_class_names(f"{train.name} and {evaluation.name}", names)
    one, other = (
        s if s.class_names == names else Renumbered(s, names) for s in (train, evaluation)
    )
    return one, other


def share_classes(train: Source, evaluation: Source) -> bool:
    """Return whether the two sources have any class in common."""
    both = joined.labelled(train), evaluation
    one, other = (set(base.innermost(source).class_names) for source in both)
    return bool(one & other)


def num_shared(train: Source, evaluation: Source) -> int:
    """Return how many images of `evaluation` are in `train` too.

    It is the number of equal identities, times the share of equal images in a few of them.
    """
    theirs, ours = train.identities(), evaluation.identities()
    found = np.flatnonzero(np.isin(ours, theirs))
    some = found[base.evenly(len(found), COMPARED)]
    equal = [is_same(train[int(np.argmax(theirs == ours[i]))], evaluation[int(i)]) for i in some]
    return round(len(found) * sum(equal) / max(1, len(equal)))


def is_same(one: Any, other: Any) -> bool:
    """Return whether two records have one name, with its folder, or equal images."""
    return one.name == other.name or np.array_equal(one.image, other.image)


def check_classes(train: Source, evaluation: Source) -> None:
    """Raise DataError unless both sources have the same classes in the same order."""
    if lines := list(class_differences(train, evaluation)):
        raise DataError(
            f"{train.name} and {evaluation.name} have different classes:\n  " + "\n  ".join(lines),
            fault="I4",
        )
    if train.class_names != evaluation.class_names:
        raise DataError(
            f"{train.name} and {evaluation.name} number the same classes in another order, so a "
            "label would mean two things. Convert both from folders, or take both from one source"
        )


def class_differences(train: Source, evaluation: Source) -> Iterator[str]:
    """Yield lines that name the classes which only one of the sources has."""
    for one, other, part in ((train, evaluation, "training"), (evaluation, train, "evaluation")):
        missing = sorted(set(one.class_names) - set(other.class_names))
        if missing:
            alike = set(map(look, other.class_names))
            shown = [ascii(n) if look(n) in alike else base.printable(n) for n in missing[:5]]
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            yield f"only in {part}: {', '.join(shown)}{more}"


def look(name: str) -> str:
    """Return a form of a name that is the same for names that look alike in print."""
    return unicodedata.normalize("NFKC", name).strip()
