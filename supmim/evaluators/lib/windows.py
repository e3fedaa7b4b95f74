"""Sliding windows: which squares of an image a model is shown, and one answer from all of theirs.

Windows stand on a grid, so a row's place and a column's are apart: upsampling a window's logits,
averaging over the windows that see a pixel and upsampling to the mask are one matrix for rows and
one for columns. Shapes: H, W of the image as it is shown, P side of a window, G side of its logits,
R x Q windows, C classes.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ROWS = 2**24  # logits that are held at once, when they are turned into classes


class Grid(NamedTuple):
    """First rows and first columns of the windows of an image [height, width], and their side."""

    height: int
    width: int
    side: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """[H, W, ...] -> windows [R * Q, P, P, ...], rows first."""
        return np.stack([
            image[y : y + self.side, x : x + self.side] for y in self.rows for x in self.columns
        ])  # fmt: skip


def grid(height: int, width: int, side: int, stride: int) -> Grid:
    """Windows every `stride` pixels; the last ones end with the image, which holds one window."""
    return Grid(height, width, side, starts(height, side, stride), starts(width, side, stride))


def starts(length: int, side: int, stride: int) -> tuple[int, ...]:
    """Where windows begin on an axis."""
    return (*range(0, length - side, stride), length - side)


@functools.lru_cache(maxsize=64)
def resize_matrix(old: int, new: int) -> np.ndarray:
    """[new, old], float32: bilinear resize as jax.image.resize does it, antialiased."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    distance = np.abs(centres[:, None] - np.arange(old)) / scale
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def joining_matrix(length: int, side: int, first: tuple[int, ...], logits: int) -> np.ndarray:
    """[length, windows * logits]: upsamples windows' logits, averages them where they overlap."""
    joined = np.zeros((length, len(first), logits), np.float32)
    for number, start in enumerate(first):
        joined[start : start + side, number] += resize_matrix(logits, side)
    seen = sum((np.arange(length) >= s) & (np.arange(length) < s + side) for s in first)
    return joined.reshape(length, -1) / seen[:, None].astype(np.float32)


def classes(of: Grid, logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Windows' logits [R * Q, G, G, C] -> the most likely classes [height, width], of the mask."""
    return np.concatenate([part.argmax(axis=-1) for part in whole(of, logits, height, width)])


def whole(of: Grid, logits: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Logits [some rows, width, C] of the mask, from the top, averaged and upsampled."""
    side, num_classes = logits.shape[1], logits.shape[-1]
    rows = joined(of.height, of.side, of.rows, side, height)
    columns = joined(of.width, of.side, of.columns, side, width)
    tiles = logits.reshape(len(of.rows), len(of.columns), side, side, num_classes)
    tiles = tiles.transpose(0, 2, 1, 3, 4).reshape(len(of.rows) * side, -1, num_classes)
    wide = np.einsum("wq,hqc->hwc", columns, tiles, optimize=True).reshape(len(tiles), -1)
    step = max(1, ROWS // (width * num_classes))
    for start in range(0, height, step):
        yield (rows[start : start + step] @ wide).reshape(-1, width, num_classes)


def joined(length: int, side: int, first: tuple[int, ...], logits: int, new: int) -> np.ndarray:
    """[new, windows * logits]: to the axis as it is shown, and on to that of the mask."""
    matrix = joining_matrix(length, side, first, logits)
    return matrix if new == length else resize_matrix(length, new) @ matrix
