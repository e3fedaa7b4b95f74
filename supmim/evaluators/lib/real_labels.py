"""All labels that fit an image: those of ReaL (arXiv 2006.07159), or a user's own."""

import os
import re
from pathlib import Path
from typing import Any

from supmim.data.sources.base import Sample, Source
from supmim.data.sources.folders import Folder
from supmim.errors import DataError, counted
from supmim.workdir.files import read_json

NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
MIN_AGREEMENT = 0.5  # share of images whose own label is listed; about nine tenths for ReaL


def read(path: Path, source: Source) -> list[list[int]]:
    """Return a list of labels per image of a source, in its order; empty if none was agreed on.

    The file is google-research/reassessed-imagenet's real.json, a list in order of the number in
    ILSVRC2012_val_NUMBER, or an object from file names to labels. DataError if it is damaged or
    belongs to other images or classes.
    """
    document = _parse(path)
    names, label = zip(*_names_and_labels(source), strict=True)
    of_image = [_entry(document, name) for name in names]
    missing = [name for name, labels in zip(names, of_image, strict=True) if labels is None]
    if missing:
        raise DataError(
            f"config.eval.real_labels={path} has no entry for {len(missing)} of "
            f"{counted(len(of_image), 'image')} of {source.name}; the first is {missing[0]}. "
            "A list is matched by the number "
            "in ILSVRC2012_val_NUMBER; other images need an object, file name -> labels"
        )
    _check_classes(path, of_image, len(source.class_names))
    own = [c in labels for c, labels in zip(label, of_image, strict=True) if labels]
    if own and sum(own) < MIN_AGREEMENT * len(own):
        raise DataError(
            f"config.eval.real_labels={path} includes the label that {source.name} gives for only "
            f"{sum(own)} of {counted(len(own), 'image')}. Its classes, or its images, are in "
            "another order"
        )
    return of_image


def _parse(path: Path) -> list | dict:
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"config.eval.real_labels={path} cannot be read: {error}") from error
    if not isinstance(document, list | dict):
        raise DataError(f"config.eval.real_labels={path} is neither a list nor an object of labels")
    return document


def _names_and_labels(source: Source) -> list[tuple[str, int]]:
    if isinstance(source, Sample):
        return [_name_and_label(source.source, int(index)) for index in source.index]
    return [_name_and_label(source, index) for index in range(len(source))]


def _name_and_label(source: Source, index: int) -> tuple[str, int]:
    if isinstance(source, Folder):  # no need to read the image
        name, label = source.path(index), source.label[index]
    else:
        _, label, name = source[index]
    return os.path.basename(name), int(label)


def _entry(document: list | dict, name: str) -> Any:
    """Return the labels that a file gives for an image, or None."""
    if isinstance(document, dict):
        return document.get(name)
    match = NUMBER.search(name)
    place = int(match[1]) - 1 if match else -1
    return document[place] if 0 <= place < len(document) else None


def _check_classes(path: Path, of_image: list[Any], num_classes: int) -> None:
    """Raise DataError unless all entries are lists of classes."""
    for place, labels in enumerate(of_image):
        if not isinstance(labels, list) or not all(
            type(c) is int and 0 <= c < num_classes for c in labels
        ):
            raise DataError(
                f"config.eval.real_labels={path}: image {place} has {labels!r}, not a list of "
                f"classes from 0 to {num_classes - 1}"
            )
