"""RandAugment (arXiv 1909.13719) with the operations and levels of big_vision.

Shapes: B batch, S image side, C; O operations. Each round draws one operation for each example and
applies it; all make the same four passes (warp, table, blend, box), which differ in parameters.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from supmim.data.augment import boxes, operations

OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "colour", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout",
    "solarize_add",
)  # fmt: skip
DEGENERATES = {
    "brightness": operations.black, "contrast": operations.mean_grey, "colour": operations.grey,
    "sharpness": operations.smooth,
}  # fmt: skip
KINDS = np.array([list(DEGENERATES).index(name) if name in DEGENERATES else -1
                  for name in OPERATIONS])  # fmt: skip
REFERENCE_SIDE = 224  # whose pixels shifts and cutout are given in


class Draw(NamedTuple):
    """What one round does to each example: [B], [B], [B, 2]; a sign is 0 or 1."""

    operation: jax.Array
    sign: jax.Array
    centre: jax.Array


def randaugment(keys: jax.Array, image: jax.Array, num: int, magnitude: float) -> jax.Array:
    """`num` operations at level `magnitude` / 10: [B] keys, uint8 [B, S, S, C] -> the same."""

    def one_round(image, number):
        drawn = draw(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), image)
        return apply(image, drawn, magnitude / 10), None

    # Unrolled, XLA for CPUs repeats a round inside every pass of the next one.
    return jax.lax.scan(one_round, image, jnp.arange(num))[0]


def draw(keys: jax.Array, image: jax.Array) -> Draw:
    """A round of an image's shape; keys: [B]."""
    limits = jnp.array([len(OPERATIONS), 2, *image.shape[1:3]])
    drawn = jax.vmap(lambda key: jax.random.randint(key, (4,), 0, limits))(keys)
    return Draw(drawn[:, 0], drawn[:, 1], drawn[:, 2:])


def apply(image: jax.Array, drawn: Draw, level: float) -> jax.Array:
    """One round."""
    side = image.shape[1]
    operation = drawn.operation
    image = operations.warp(image, jnp.asarray(_affines(level, side))[operation, drawn.sign])
    image = operations.look_up(image, _table(image, operation, level))
    kind = jnp.asarray(KINDS)[operation]
    factor = jnp.where(kind < 0, 1.0, 1.8 * level + 0.1)
    image = operations.enhance(image, kind, factor, tuple(DEGENERATES.values()))
    reach = int(40 * level * side / REFERENCE_SIDE)
    half = jnp.where(operation == OPERATIONS.index("cutout"), reach, 0)
    return boxes.fill(image, boxes.around(drawn.centre, half[:, None]))


def _affines(level: float, side: int) -> np.ndarray:
    """[O, sign, 6] for `warp`: what moves an image about its centre, or from its upper left."""

    def one(name, sign):
        angle, shear = math.radians(30 * level * sign), 0.3 * level * sign
        shift, centre = 100 * level * sign * side / REFERENCE_SIDE, side / 2
        cos, sin = math.cos(angle), math.sin(angle)
        moves = {
            "rotate": (cos, -sin, centre - (cos - sin) * centre,
                       sin, cos, centre - (cos + sin) * centre),
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, shift, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, shift),
        }  # fmt: skip
        return operations.fixed_point(*moves.get(name, (1, 0, 0, 0, 1, 0)))

    return np.stack([[one(name, sign) for sign in (1, -1)] for name in OPERATIONS])


def _fixed_tables(level: float) -> np.ndarray:
    """[O, 256]: those that need no image; posterize keeps at least a bit, as TensorFlow's shift."""
    bits = min(max(int(4 * level), 1), 8)
    levels = np.arange(256)
    added = np.clip(levels + int(110 * level), 0, 255)
    tables = {
        "invert": 255 - levels,
        "posterize": levels >> (8 - bits) << (8 - bits),
        "solarize": np.where(levels < int(256 * level), levels, 255 - levels),
        "solarize_add": np.where(levels < 128, added, levels),
    }
    rows = [tables.get(name, levels) for name in OPERATIONS]
    return np.stack(rows).astype(np.uint8)


def _table(image: jax.Array, operation: jax.Array, level: float) -> jax.Array:
    """[B, C, 256] for `look_up`."""
    table = jnp.asarray(_fixed_tables(level))[operation][:, None]
    table = jnp.broadcast_to(table, (len(image), image.shape[-1], 256))
    for name, make in (
        ("autocontrast", operations.autocontrast), ("equalize", operations.equalize)
    ):  # fmt: skip
        expected = operation == OPERATIONS.index(name)
        table = jnp.where(expected[:, None, None], make(image), table)
    return table
