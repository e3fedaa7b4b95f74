"""RandAugment (arXiv 1909.13719) with the operations and levels of big_vision.

Shapes: B batch, S image side, C; O operations. Each round draws and applies one operation for each
example. All operations are the same four passes (warp, table, blend, box) with other parameters.
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
    "brightness": operations.black,
    "contrast": operations.mean_grey,
    "colour": operations.grey,
    "sharpness": operations.smooth,
}
KINDS = np.array([list(DEGENERATES).index(n) if n in DEGENERATES else -1 for n in OPERATIONS])
ADAPTIVE_TABLES = {"autocontrast": operations.autocontrast, "equalize": operations.equalize}
REFERENCE_SIDE = 224  # image side, in pixels, for which shifts and cutout are given


class Draw(NamedTuple):
    """One round's draws for each example: [B], [B], [B, 2]; a sign is 0 or 1."""

    operation: jax.Array
    sign: jax.Array
    centre: jax.Array


def randaugment(keys: jax.Array, image: jax.Array, num: int, magnitude: float) -> jax.Array:
    """Apply `num` operations at level `magnitude` / 10 to uint8 [B, S, S, C]; keys: [B]."""

    def one_round(image, number):
        drawn = draw(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), image)
        return apply(image, drawn, magnitude / 10), None

    # Not unrolled: XLA for CPUs would repeat a round inside every pass of the next one.
    return jax.lax.scan(one_round, image, jnp.arange(num))[0]


def draw(keys: jax.Array, image: jax.Array) -> Draw:
    """Draw one round for images of this shape; keys: [B]."""
    limits = jnp.array([len(OPERATIONS), 2, *image.shape[1:3]])
    drawn = jax.vmap(lambda key: jax.random.randint(key, (4,), 0, limits))(keys)
    return Draw(drawn[:, 0], drawn[:, 1], drawn[:, 2:])


def apply(image: jax.Array, drawn: Draw, level: float) -> jax.Array:
    """Apply one round of operations."""
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
    """Return [O, sign, 6] for `warp`: rotation about the centre, shear and shift at the corner."""

    def one(name, sign):
        angle, shear = math.radians(30 * level * sign), 0.3 * level * sign
        shift, centre = 100 * level * sign * side / REFERENCE_SIDE, side / 2
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = centre - (cos - sin) * centre, centre - (cos + sin) * centre
        moves = {
            "rotate": (cos, -sin, x, sin, cos, y),
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, shift, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, shift),
        }
        return operations.fixed_point(*moves.get(name, (1, 0, 0, 0, 1, 0)))

    return np.stack([[one(name, sign) for sign in (1, -1)] for name in OPERATIONS])


def _fixed_tables(level: float) -> np.ndarray:
    """Return [O, 256], the tables that need no image; posterize keeps a bit, as TensorFlow does."""
    bits = min(max(int(4 * level), 1), 8)
    levels = np.arange(256)
    added = np.clip(levels + int(110 * level), 0, 255)
    tables = {
        "invert": 255 - levels,
        "posterize": levels >> (8 - bits) << (8 - bits),
        "solarize": np.where(levels < int(256 * level), levels, 255 - levels),
        "solarize_add": np.where(levels < 128, added, levels),
    }
    return np.stack([tables.get(name, levels) for name in OPERATIONS]).astype(np.uint8)


def _table(image: jax.Array, operation: jax.Array, level: float) -> jax.Array:
    """Return [B, C, 256] for `look_up`."""
    table = jnp.asarray(_fixed_tables(level))[operation][:, None]
    table = jnp.broadcast_to(table, (len(image), image.shape[-1], 256))
    for name, make in ADAPTIVE_TABLES.items():
        chosen = operation == OPERATIONS.index(name)
        table = jnp.where(chosen[:, None, None], make(image), table)
    return table
