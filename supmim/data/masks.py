"""Masks: the classes of an image's pixels, from ids as they are stored.

Classes are the ids without data.ignore_label, in their order: with 0 ignored, as ADE20K has it, id
1 is class 0; with 255 ignored, or nothing (-1), id 0 is.
"""

import numpy as np

from supmim.data import decode
from supmim.data.sources.base import MaskedRecord
from supmim.errors import DataError

IGNORED = -1  # in a label map


def read(record: MaskedRecord, max_pixels: int) -> np.ndarray:
    """uint8 or uint16 [H, W]: the ids of a record's mask; BadImage if it can't be decoded."""
    if isinstance(record.mask, np.ndarray):
        return record.mask
    if isinstance(record.mask, OSError):
        raise decode.BadImage(f"its mask: {record.mask.strerror}")
    try:
        return decode.decode_ids(record.mask, max_pixels)
    except decode.BadImage as error:
        raise decode.BadImage(f"its mask: {error}") from error


def check_size(name: str, ids: np.ndarray, pixels: np.ndarray) -> None:
    """DataError if a mask [H, W] is not of the size of its image [H, W, C]."""
    if ids.shape != pixels.shape[:2]:
        raise DataError(
            f"{name}: its mask has {ids.shape[1]} x {ids.shape[0]} pixels, the image "
            f"{pixels.shape[1]} x {pixels.shape[0]}; mend or remove the pair. All of them: "
            "supmim data check SOURCE"
        )


def to_classes(name: str, ids: np.ndarray, num_classes: int, ignore_label: int) -> np.ndarray:
    """int16 [H, W]: the class of each pixel, or IGNORED. DataError for an id that is no class."""
    if ignore_label >= 0:
        classes = np.where(ids == ignore_label, IGNORED, ids.astype(int) - (ids > ignore_label))
    else:
        classes = ids.astype(int)
    if classes.max() >= num_classes:
        wrong = ids[classes >= num_classes]
        raise DataError(
            f"{name}: its mask has the id {wrong.min()} ({wrong.size} pixels), which is none of "
            f"{num_classes} classes with data.ignore_label={ignore_label}; check the masks, the "
            "number of classes (classes.txt, --config.data.mask_classes) or "
            "--config.data.ignore_label"
        )
    return classes.astype(np.int16)


def ids_of(num_classes: int, ignore_label: int) -> list[int]:
    """The id of each class."""
    return [i for i in range(num_classes + 1) if i != ignore_label][:num_classes]
