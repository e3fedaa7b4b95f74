"""Where images come from: `find` one source by name, `load` those of a run."""

import difflib
import importlib
from collections.abc import Iterator

from supmim.config import options
from supmim.data.sources.base import (
    HELD_OUT,
    KEPT,
    WHOLE,
    Renumbered,
    Sample,
    Source,
    innermost,
    known,
    printable,
)
from supmim.errors import DataError

# kind -> module with `load(where, part, data) -> Source`
LOADERS = {
    "digits": "supmim.data.sources.digits",
    "folder": "supmim.data.sources.folders",
    "records": "supmim.data.sources.records",
    "tfds": "supmim.data.sources.catalogue",
    "scenes": "supmim.data.sources.scenes",
    "pairs": "supmim.data.sources.pairs",
}
NEAR = 0.75  # a kind that resembles one so much is a slip, not the name of a TFDS dataset


def find(spec: str, part: str, data: options.Data, labelled: bool = True) -> Source:
    """The source of KIND:WHERE, e.g. digits:train, folder:/path, imagenet2012:train[:99%].

    What names no kind names a dataset of TFDS. labelled: a folder must have classes; other kinds
    always do.
    """
    kind, _, where = spec.partition(":")
    if not spec:
        raise DataError("no images are named: --config.data.train=folder:PATH, or NAME:SPLIT")
    if kind not in LOADERS:
        if difflib.get_close_matches(kind, LOADERS, n=1, cutoff=NEAR):
            known(kind, LOADERS, "{} is not a kind of data source")
        if kind.startswith(("/", ".", "~")):
            raise DataError(f"{kind} is no dataset of TFDS; a folder of images is folder:{kind}")
        kind, where = "tfds", spec
    options = {"labelled": labelled} if kind == "folder" else {}
    return importlib.import_module(LOADERS[kind]).load(where, part, data, **options)


def load(data: options.Data, labelled: bool = True, joined: bool = False) -> tuple[Source, Source]:
    """Training and evaluation source of config.data; labelled: with the same classes, or if joined
    with those of both.

    Without data.eval, or with the same as data.train, evaluation gets what that holds out.
    """
    if data.eval not in ("", data.train):
        asked = (data.train, WHOLE), (data.eval, WHOLE)
    else:
        asked = (data.train, KEPT), (data.train, HELD_OUT)
    train, evaluation = (find(spec, part, data, labelled) for spec, part in asked)
    if labelled and joined:
        train, evaluation = with_all_classes(train, evaluation)
    elif labelled:
        check_classes(train, evaluation)
    return tuple(Sample(s, data.limit) if data.limit else s for s in (train, evaluation))


def with_all_classes(train: Source, evaluation: Source) -> tuple[Source, Source]:
    """Both, by the classes of the first and then those that only the other has."""
    known = set(train.class_names)
    names = (*train.class_names, *(n for n in evaluation.class_names if n not in known))
    return tuple(s if s.class_names == names else Renumbered(s, names) for s in (train, evaluation))


def share_classes(train: Source, evaluation: Source) -> bool:
    """Whether any class is of both."""
    one, other = (set(innermost(source).class_names) for source in (train, evaluation))
    return bool(one & other)


def check_classes(train: Source, evaluation: Source) -> None:
    """DataError unless both number the same classes alike."""
    if lines := list(class_differences(train, evaluation)):
        raise DataError(
            f"{train.name} and {evaluation.name} have different classes:\n  " + "\n  ".join(lines)
        )
    if train.class_names != evaluation.class_names:
        raise DataError(
            f"{train.name} and {evaluation.name} number the same classes in another order: a label "
            "would mean two things. Convert both from folders, or take both from one source"
        )


def class_differences(train: Source, evaluation: Source) -> Iterator[str]:
    """Lines that name the classes which only one of them has."""
    for one, other, of in ((train, evaluation, "training"), (evaluation, train, "evaluation")):
        missing = sorted(set(one.class_names) - set(other.class_names))
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            yield f"only in {of}: {', '.join(map(printable, missing[:5]))}{more}"
