"""ViT parameters under the names and in the shapes of other libraries, both ways.

Our parameters are `Params`: float32 arrays under flat names such as
`encoder/blocks/block_0/mlp/up/kernel`, blocks unrolled. A `Layout` says what each is called in a
file, and how it is turned into the file's tensor and back.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from supmim.errors import CheckpointError
from supmim.interop import arrays

Tensors = dict[str, np.ndarray]  # of a file, under its names
Params = dict[str, np.ndarray]
PATCHES = "encoder/embedding/kernel"
LARGEST = 2**40  # values of a tensor
Shapes = dict[str, tuple[int, ...]]


class Layout(NamedTuple):
    """How another library stores a ViT.

    name_of: our name -> theirs. to_theirs: (our name, array, patch size) -> their array. to_ours:
    (our name, their array, our shape) -> our array. optional: name prefixes of head, pooling.
    """

    name_of: Callable[[str], str]
    to_theirs: Callable[[str, np.ndarray, int], np.ndarray]
    to_ours: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]
    optional: tuple[str, ...]


class Loaded(NamedTuple):
    """Parameters that a file held, and what became of the others.

    missing: ours that the file lacks, all of them optional. ignored: tensors of the file.
    """

    params: Params
    missing: list[str]
    ignored: list[str]


def exported(params: Params, layout: Layout, patch_size: int) -> Tensors:
    """Return all parameters in another layout."""
    return {
        layout.name_of(name): np.ascontiguousarray(layout.to_theirs(name, array, patch_size))
        for name, array in params.items()
    }


def imported(tensors: Tensors, layout: Layout, shapes: Shapes, path: Path) -> Loaded:
    """Return the parameters of these shapes from a file.

    CheckpointError, with a table, for tensors that are missing, unknown or of another size, unless
    they belong to head or pooling, and for values that are not finite.
    """
    theirs = {layout.name_of(ours): ours for ours in shapes}
    params, missing, rows = {}, [], []
    for name, ours in theirs.items():
        expected = shape_in(layout, ours, shapes[ours])
        if name not in tensors:
            missing.append(ours)
            if not name.startswith(layout.optional):
                rows.append((name, expected, None))
        elif not fits(tensors[name].shape, expected, ours):
            rows.append((name, expected, tensors[name].shape))
        else:
            array = layout.to_ours(ours, tensors[name], shapes[ours])
            with np.errstate(over="ignore"):  # non-finite values are refused below
                params[ours] = array.astype(np.float32)
    ignored = sorted(tensors.keys() - theirs.keys())
    unknown = [name for name in ignored if not name.startswith(layout.optional)]
    rows += [(name, None, tensors[name].shape) for name in unknown]
    if rows:
        raise CheckpointError(
            f"{path} is not a ViT that supmim has:\n{arrays.table(rows)}\nLikely causes: another "
            "kind of block (SwiGLU, norms of queries and keys, relative positions), a norm after "
            "pooling, or other sizes than the folder's config says"
        )
    if odd := [name for name, array in params.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"{path} has values that are not finite, e.g. in {odd[0]}")
    return Loaded(params, missing, ignored)


def shape_in(layout: Layout, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one of our parameters in another layout; ours for PATCHES.

    Ours also if it is LARGEST or more, which no file holds.
    """
    # Only the reader of the config knows the size of a patch.
    if name == PATCHES or math.prod(shape) > LARGEST:
        return shape
    return layout.to_theirs(name, np.broadcast_to(np.float32(0), shape), 0).shape


def fits(found: tuple[int, ...], expected: tuple[int, ...], name: str) -> bool:
    """Return whether a tensor has the expected shape, or number of values for PATCHES."""
    return math.prod(found) == math.prod(expected) if name == PATCHES else found == expected


def renamed(name: str, words: tuple[tuple[str, str], ...]) -> str:
    """Return the name after all replacements, in order."""
    for ours, theirs in words:
        name = name.replace(ours, theirs)
    return name


def for_our_pixels(
    params: Params, channels: int, mean: Sequence[float], std: Sequence[float]
) -> Params:
    """Return parameters for images in [-1, 1], of a network that takes (image - mean) / std.

    mean, std: per channel, of images in [0, 1]. The first layer is linear, so its kernel and bias
    absorb the difference; 0.5 and 0.5 leave every bit as it is.
    """
    scale, shift = 0.5 / np.asarray(std), (0.5 - np.asarray(mean)) / np.asarray(std)
    if (scale == 1).all() and (shift == 0).all():
        return params
    kernel = params["encoder/embedding/kernel"].astype(np.float64)
    by_channel = kernel.reshape(-1, channels, kernel.shape[-1])  # [p * p, C, D]
    bias = params["encoder/embedding/bias"] + np.einsum("pcd,c->d", by_channel, shift)
    kernel = (by_channel * scale[:, None]).reshape(kernel.shape)
    new = {"encoder/embedding/kernel": kernel, "encoder/embedding/bias": bias}
    return params | {name: array.astype(np.float32) for name, array in new.items()}


def with_positions(tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Add positions [1, K, D] of the tokens before the patches to these tokens [1, K, D]."""
    return (tokens.astype(np.float64) + positions).astype(np.float32)
