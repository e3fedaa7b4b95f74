"""Sliding windows: the squares of an image that a model sees, and one prediction from all of them.

Windows stand on a grid, so that rows and columns are independent: upsampling a window's logits,
averaging over the windows that see a pixel and upsampling to the mask are one matrix for rows and
one for columns. Shapes: H, W of the resized image, P side of a window, G side of its logits, R x Q
windows, C classes.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MOST_LOGITS = 2**24  # held at once when they are turned into classes


class Grid(NamedTuple):
    """First rows and first columns of the windows of an image [height, width], and their side."""

    height: int
    width: int
    side: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return the windows [R * Q, P, P, ...] of an image [H, W, ...], rows first."""
        side = self.side
        return np.stack(
            [image[y : y + side, x : x + side] for y in self.rows for x in self.columns]
        )


def grid(height: int, width: int, side: int, stride: int) -> Grid:
    """Return windows every `stride` pixels; the last ones end with the image."""
    return Grid(height, width, side, starts(height, side, stride), starts(width, side, stride))


def starts(length: int, side: int, stride: int) -> tuple[int, ...]:
    """Return the first pixels of the windows along an axis."""
    return (*range(0, length - side, stride), length - side)


@functools.lru_cache(maxsize=64)
def resize_matrix(old: int, new: int) -> np.ndarray:
    """Return [new, old], float32: bilinear resize as jax.image.resize does it, antialiased."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    distance = np.abs(centres[:, None] - np.arange(old)) / scale
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def axis_matrix(
    length: int, side: int, first: tuple[int, ...], logits: int, new: int
) -> np.ndarray:
    """Return [new, windows * logits] for an axis: upsample windows, average overlaps, then resize.

    length: of the resized image. first: where windows begin. logits: of a window. new: of the mask.
    """
    joined = np.zeros((length, len(first), logits), np.float32)
    for number, start in enumerate(first):
        joined[start : start + side, number] += resize_matrix(logits, side)
    places = np.arange(length)
    seen = np.sum([(places >= start) & (places < start + side) for start in first], axis=0)
    matrix = joined.reshape(length, -1) / seen[:, None].astype(np.float32)
    return matrix if new == length else resize_matrix(length, new) @ matrix


def classes(of: Grid, logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the most likely classes [height, width] of a mask; logits: [R * Q, G, G, C]."""
    return np.concatenate([part.argmax(axis=-1) for part in upsample(of, logits, height, width)])


def upsample(of: Grid, logits: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield the logits [some rows, width, C] of a mask from the top; logits: [R * Q, G, G, C]."""
    side, num_classes = logits.shape[1], logits.shape[-1]
    rows = axis_matrix(of.height, of.side, of.rows, side, height)
    columns = axis_matrix(of.width, of.side, of.columns, side, width)
    tiles = logits.reshape(len(of.rows), len(of.columns), side, side, num_classes)
    tiles = tiles.transpose(0, 2, 1, 3, 4).reshape(len(of.rows) * side, -1, num_classes)
    wide = np.einsum("wq,hqc->hwc", columns, tiles, optimize=True).reshape(len(tiles), -1)
    step = max(1, MOST_LOGITS // (width * num_classes))
    for start in range(0, height, step):
        yield (rows[start : start + step] @ wide).reshape(-1, width, num_classes)
