"""Masks: stored ids of an image's pixels, and the classes that they stand for.

Classes are the ids except data.ignore_label, in ascending order: if 0 is ignored, as in ADE20K, id
1 is class 0; if 255 or nothing (-1) is ignored, id 0 is class 0.
"""

import numpy as np

from supmim.data import decode
from supmim.data.sources.base import MaskedRecord
from supmim.errors import DataError, counted
from supmim.runtime.streams import printable

IGNORED = -1  # in a label map


def read_ids(record: MaskedRecord, max_pixels: int) -> np.ndarray:
    """Return the ids of a record's mask, uint8 or uint16 [H, W]; BadImage if it is unreadable."""
    if isinstance(record.mask, np.ndarray):
        return record.mask
    if isinstance(record.mask, OSError):
        raise decode.BadImage(f"its mask: {record.mask.strerror}")
    try:
        return decode.decode_ids(record.mask, max_pixels)
    except decode.BadImage as error:
        raise decode.BadImage(f"its mask: {error}") from error


def check_size(name: str, ids: np.ndarray, pixels: np.ndarray) -> None:
    """Raise DataError if a mask [H, W] and its image [H, W, C] differ in size."""
    if ids.shape != pixels.shape[:2]:
        raise DataError(
            f"{printable(name)}: its mask has {ids.shape[1]} x {ids.shape[0]} pixels, but the "
            f"image has {pixels.shape[1]} x {pixels.shape[0]}; repair or remove the pair. To list "
            "all such pairs: supmim data check SOURCE"
        )


def to_classes(name: str, ids: np.ndarray, num_classes: int, ignore_label: int) -> np.ndarray:
    """Return the class of each pixel or IGNORED, int16 [H, W]; DataError if an id is no class."""
    if ignore_label >= 0:
        classes = np.where(ids == ignore_label, IGNORED, ids.astype(int) - (ids > ignore_label))
    else:
        classes = ids.astype(int)
    if classes.max() >= num_classes:
        wrong = ids[classes >= num_classes]
        raise DataError(
            f"{printable(name)}: its mask has the id {wrong.min()} "
            f"({counted(wrong.size, 'pixel')}), which is not one of "
            f"{counted(num_classes, 'class')} with data.ignore_label={ignore_label}; check the "
            "masks, the number of classes (classes.txt, --config.data.mask_classes) or "
            "--config.data.ignore_label"
        )
    return classes.astype(np.int16)


def ids_of(num_classes: int, ignore_label: int) -> list[int]:
    """Return the id of each class."""
    return [i for i in range(num_classes + 1) if i != ignore_label][:num_classes]
