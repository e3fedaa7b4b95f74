"""Boxes in images: what cutout and random erasing fill, and cutmix takes from another image.

Shapes: B batch, H, W, C. A box is int32 [..., 4]: top, left, bottom, right; the last two are
outside it.
"""

import jax
import jax.numpy as jnp

from supmim.data.augment.operations import GREY

# Boxes of random erasing (arXiv 1708.04896), as published; there they are filled with noise.
AREA = (0.02, 0.4)  # of the image
ASPECT = (0.3, 1 / 0.3)  # height by width


def inside(box: jax.Array, height: int, width: int) -> jax.Array:
    """[B, 4] -> bool [B, H, W, 1]."""
    top, left, bottom, right = box.T[..., None, None, None]
    y, x = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def fill(image: jax.Array, box: jax.Array) -> jax.Array:
    """GREY inside a box [B, 4] per image; uint8."""
    return jnp.where(inside(box, *image.shape[1:3]), jnp.uint8(GREY), image)


def around(centre: jax.Array, half: jax.Array) -> jax.Array:
    """The boxes [..., 4] that reach `half` up, left, down and right of a centre [..., 2]."""
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def erase(keys: jax.Array, image: jax.Array, share: float) -> jax.Array:
    """Fills a random box in this share of the images; keys: [B]."""
    height, width = image.shape[1:3]
    box = jax.vmap(lambda key: _erased(key, height, width, share))(keys)
    return fill(image, box)


def _erased(key: jax.Array, height: int, width: int, share: float) -> jax.Array:
    """One box [4]: area uniform, aspect log-uniform, a side that is too long cut to the image's."""
    chosen, area, aspect, y, x = jax.random.uniform(key, (5,))
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    root = (ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** aspect) ** 0.5
    sides = (height * width * area) ** 0.5 * jnp.stack([root, 1 / root])
    limits = jnp.array([height, width])
    sides = jnp.minimum(jnp.round(sides).astype(jnp.int32), limits)
    corner = (jnp.stack([y, x]) * (limits - sides + 1)).astype(jnp.int32)
    return jnp.where(chosen < share, jnp.concatenate([corner, corner + sides]), 0)
