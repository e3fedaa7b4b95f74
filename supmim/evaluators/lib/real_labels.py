"""All the labels that fit an image: of ReaL (arXiv 2006.07159), or of anyone's own."""

import json
import os
import re
from pathlib import Path
from typing import Any

from supmim.data.sources.base import Sample, Source
from supmim.data.sources.folders import Folder
from supmim.errors import DataError

NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
LEAST = 0.5  # share of the images' own labels among these; of ReaL's it is about nine tenths


def read(path: Path, source: Source) -> list[list[int]]:
    """One list of labels per image of a source, in its order; empty where none was agreed on.

    The file is google-research/reassessed-imagenet's real.json, a list in order of the number in
    ILSVRC2012_val_NUMBER, or an object from file names to labels. DataError if it is damaged, or of
    other images or classes.
    """
    document = parsed(path)
    names, label = zip(*named(source), strict=True)
    of_image = [found(document, name) for name in names]
    missing = [name for name, labels in zip(names, of_image, strict=True) if labels is None]
    if missing:
        raise DataError(
            f"config.eval.real_labels={path} says nothing of {len(missing)} of {len(of_image)} "
            f"images of {source.name}, the first is {missing[0]}: a list is matched by the number "
            "in ILSVRC2012_val_NUMBER; other images need an object, file name -> labels"
        )
    check_classes(path, of_image, len(source.class_names))
    own = [c in labels for c, labels in zip(label, of_image, strict=True) if labels]
    if own and sum(own) < LEAST * len(own):
        raise DataError(
            f"config.eval.real_labels={path}: the own labels of only {sum(own)} of {len(own)} "
            f"images of {source.name} are among theirs. Its classes, or images, are in another "
            "order"
        )
    return of_image


def parsed(path: Path) -> list | dict:
    """The JSON of a file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"config.eval.real_labels={path} cannot be read: {error}") from error
    if not isinstance(document, list | dict):
        raise DataError(f"config.eval.real_labels={path} is no list and no object of labels")
    return document


def named(source: Source) -> list[tuple[str, int]]:
    """File name and label of each image."""
    if isinstance(source, Sample):
        return [_named(source.source, int(index)) for index in source.index]
    return [_named(source, index) for index in range(len(source))]


def _named(source: Source, index: int) -> tuple[str, int]:
    if isinstance(source, Folder):  # no need to read the image
        name, label = source.path(index), source.label[index]
    else:
        _, label, name = source[index]
    return os.path.basename(name), int(label)


def found(document: list | dict, name: str) -> Any:
    """What a file says of an image, or None."""
    if isinstance(document, dict):
        return document.get(name)
    match = NUMBER.search(name)
    place = int(match[1]) - 1 if match else -1
    return document[place] if 0 <= place < len(document) else None


def check_classes(path: Path, of_image: list[Any], num_classes: int) -> None:
    """DataError unless all are lists of classes."""
    for place, labels in enumerate(of_image):
        if not isinstance(labels, list) or not all(
            type(c) is int and 0 <= c < num_classes for c in labels
        ):
            raise DataError(
                f"config.eval.real_labels={path}: image {place} has {labels!r}, not a list of "
                f"classes from 0 to {num_classes - 1}"
            )
