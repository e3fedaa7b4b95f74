"""Boxes in images, for cutout, random erasing and CutMix.

Shapes: B batch, H, W, C. A box is int32 [..., 4]: top, left, bottom, right; the last two are
exclusive.
"""

import jax
import jax.numpy as jnp

from supmim.data.augment.operations import GREY

# Boxes of random erasing, as published (arXiv 1708.04896), which fills them with noise instead.
AREA = (0.02, 0.4)  # share of the image
ASPECT = (0.3, 1 / 0.3)  # height / width


def inside(box: jax.Array, height: int, width: int) -> jax.Array:
    """Return a mask of the pixels in each box: [B, 4] -> bool [B, H, W, 1]."""
    top, left, bottom, right = box.T[..., None, None, None]
    y, x = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def fill(image: jax.Array, box: jax.Array) -> jax.Array:
    """Fill one box [B, 4] per image with GREY; images are uint8 [B, H, W, C]."""
    return jnp.where(inside(box, *image.shape[1:3]), jnp.uint8(GREY), image)


def around(centre: jax.Array, half: jax.Array) -> jax.Array:
    """Return the boxes [..., 4] that extend by `half` on all sides of a centre [..., 2]."""
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def erase(keys: jax.Array, image: jax.Array, share: float) -> jax.Array:
    """Fill a random box in this share of the images; keys: [B]."""
    height, width = image.shape[1:3]
    return fill(image, jax.vmap(lambda key: _erased(key, height, width, share))(keys))


def _erased(key: jax.Array, height: int, width: int, share: float) -> jax.Array:
    """Draw one box [4]; its area is uniform, its aspect log-uniform; sides are clipped to fit."""
    chosen, area, aspect, y, x = jax.random.uniform(key, (5,))
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    root = (ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** aspect) ** 0.5
    sides = (height * width * area) ** 0.5 * jnp.stack([root, 1 / root])
    limits = jnp.array([height, width])
    sides = jnp.minimum(jnp.round(sides).astype(jnp.int32), limits)
    corner = (jnp.stack([y, x]) * (limits - sides + 1)).astype(jnp.int32)
    return jnp.where(chosen < share, jnp.concatenate([corner, corner + sides]), 0)
