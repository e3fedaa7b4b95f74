"""Augmentation on the device: every draw is keyed by (data.seed, epoch, index).

Shapes: B batch, H, W, C. Images are float32 in [0, 1].
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

GEOMETRY = ("flip", "shift", "rotate", "scale", "shear")  # the options that move pixels


def example_keys(seed: int, epoch: jax.Array, index: jax.Array) -> jax.Array:
    """[B] keys, one for each example and epoch, whatever the batch size."""
    key = jax.random.key(seed)
    return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(key, e), i))(epoch, index)


def to_float(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [0, 1]."""
    return jnp.asarray(image, jnp.float32) / 255


def geometry(keys: jax.Array, image: jax.Array, data: Any) -> jax.Array:
    """The MIM view: [B] keys, [B, H, W, C] -> [B, H, W, C], flipped and moved."""
    if data.flip:
        flips = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 0)))(keys)
        image = jnp.where(flips[:, None, None, None], image[:, :, ::-1], image)
    if data.shift or data.rotate or data.scale or data.shear:
        affine_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        image = jax.vmap(lambda key, x: _random_affine(key, x, data))(affine_keys, image)
    return image


def _random_affine(key: jax.Array, image: jax.Array, data: Any) -> jax.Array:
    """One image [H, W, C], moved about its centre; what comes from outside is 0."""
    limits = jnp.array([
        data.rotate, data.shear, data.scale, data.scale, data.shift, data.shift
    ])  # fmt: skip
    angle, shear, scale_y, scale_x, *shift = jax.random.uniform(
        key, (6,), minval=-limits, maxval=limits
    )
    angle, shear = jnp.deg2rad(angle), jnp.deg2rad(shear)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    skew = jnp.array([[1.0, 0.0], [jnp.tan(shear), 1.0]])
    matrix = turn @ skew @ jnp.diag(1 / (1 + jnp.stack([scale_y, scale_x])))
    height, width, channels = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.mgrid[:height, :width]).reshape(2, -1)
    source = matrix @ (grid - centre[:, None]) + (centre - jnp.stack(shift))[:, None]
    moved = [
        map_coordinates(image[..., c], list(source), order=1, mode="constant")
        for c in range(channels)
    ]
    return jnp.stack(moved, axis=-1).reshape(image.shape)


def mixup(
    rng: jax.Array, image: jax.Array, probabilities: jax.Array, valid: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Blends [B, ...] images and their probabilities [B, C] with the next ones', as big_vision.

    valid: [B]. One share per step from Beta(alpha, alpha), folded to >= 0.5; padding is mixed into
    nothing.
    """
    share = jax.random.beta(rng, alpha, alpha)
    share = jnp.maximum(share, 1 - share)
    partner_valid = jnp.roll(valid, 1) > 0

    def mix(x):
        partner = jnp.roll(x, 1, axis=0)
        usable = partner_valid.reshape((-1,) + (1,) * (x.ndim - 1))
        return share * x + (1 - share) * jnp.where(usable, partner, x)

    return mix(image), mix(probabilities)
