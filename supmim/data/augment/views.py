"""The MIM view and the class view of an image; every draw is keyed by (data.seed, epoch, index).

Shapes: B batch, H, W, C. Images are float32 in [0, 1].
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from supmim.config import options
from supmim.data.augment import boxes, colour, randaugment

# Their order fixes the random draws of a run: append only.
PURPOSES = ("flip", "affine", "three_augment", "colour_jitter", "randaugment", "erase")

MEAN, STD = 0.5, 0.5  # of what `to_input` does


def example_keys(seed: int, epoch: jax.Array, index: jax.Array) -> jax.Array:
    """Return [B] keys, one for each example and epoch, independent of the batch size."""
    key = jax.random.key(seed)
    return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(key, e), i))(epoch, index)


def keys_for(purpose: str, keys: jax.Array) -> jax.Array:
    """Return [B] keys for one purpose."""
    return jax.vmap(lambda key: jax.random.fold_in(key, PURPOSES.index(purpose)))(keys)


def to_float(image: jax.Array) -> jax.Array:
    """Convert uint8 to float32 in [0, 1]."""
    return jnp.asarray(image, jnp.float32) / 255


def to_input(image: jax.Array) -> jax.Array:
    """Scale [0, 1] to the [-1, 1] that the encoder takes: (image - MEAN) / STD."""
    return 2 * image - 1


def geometry(keys: jax.Array, image: jax.Array, data: options.Data) -> jax.Array:
    """Return the MIM view: images [B, H, W, C], flipped and moved; keys: [B].

    The draws do not depend on the size: images of the encoder and the tokenizer move alike.
    """
    if data.flip:
        flips = jax.vmap(jax.random.bernoulli)(keys_for("flip", keys))
        image = jnp.where(flips[:, None, None, None], image[:, :, ::-1], image)
    if moves(data):
        affine_keys = keys_for("affine", keys)
        image = jax.vmap(lambda key, x: _random_affine(key, x, data))(affine_keys, image)
    return image


def label_geometry(
    keys: jax.Array, label_map: jax.Array, data: options.Data, outside: int
) -> jax.Array:
    """Apply `geometry` to label maps [B, H, W] with order 0; what lies outside is `outside`."""
    if data.flip:
        flips = jax.vmap(jax.random.bernoulli)(keys_for("flip", keys))
        label_map = jnp.where(flips[:, None, None], label_map[:, :, ::-1], label_map)
    if not moves(data):
        return label_map

    def move(key: jax.Array, ids: jax.Array) -> jax.Array:
        places = list(_affine_places(key, ids.shape, data))
        moved = map_coordinates(ids, places, order=0, mode="constant", cval=outside)
        return moved.reshape(ids.shape)

    return jax.vmap(move)(keys_for("affine", keys), label_map)


def moves(data: options.Data) -> bool:
    """Return whether images are moved, besides flips."""
    return bool(data.shift or data.rotate or data.scale or data.shear)


def class_view(keys: jax.Array, image: jax.Array, data: options.Data) -> jax.Array:
    """Return the class view of a MIM view [B, H, W, C], not yet mixed; keys: [B].

    Without any augmentation it is the same array; otherwise its values are multiples of 1/255.
    """
    if not (data.three_augment or data.colour_jitter or data.randaug_num or data.erase):
        return image
    levels = jnp.round(image * 255).astype(jnp.uint8)
    if data.three_augment:
        levels = colour.three_augment(keys_for("three_augment", keys), levels)
    if data.colour_jitter:
        levels = colour.jitter(keys_for("colour_jitter", keys), levels, data.colour_jitter)
    if data.randaug_num:
        levels = randaugment.randaugment(
            keys_for("randaugment", keys), levels, data.randaug_num, data.randaug_magnitude
        )
    if data.erase:
        levels = boxes.erase(keys_for("erase", keys), levels, data.erase)
    return to_float(levels)


def _random_affine(key: jax.Array, image: jax.Array, data: options.Data) -> jax.Array:
    """Move one image [H, W, C] about its centre; what lies outside is 0."""
    places = list(_affine_places(key, image.shape[:2], data))
    moved = [
        map_coordinates(image[..., c], places, order=1, mode="constant")
        for c in range(image.shape[-1])
    ]
    return jnp.stack(moved, axis=-1).reshape(image.shape)


def _affine_places(key: jax.Array, size: tuple[int, ...], data: options.Data) -> jax.Array:
    """Return [2, H * W]: the source of each pixel of a moved image [H, W]."""
    height, width = size
    shift = data.shift * (height / data.image_size)  # data.shift is in pixels of data.image_size
    limits = jnp.array([data.rotate, data.shear, data.scale, data.scale, shift, shift])
    drawn = jax.random.uniform(key, (6,), minval=-limits, maxval=limits)
    angle, shear, scale_y, scale_x, *shift = drawn
    angle, shear = jnp.deg2rad(angle), jnp.deg2rad(shear)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    skew = jnp.array([[1.0, 0.0], [jnp.tan(shear), 1.0]])
    matrix = turn @ skew @ jnp.diag(1 / (1 + jnp.stack([scale_y, scale_x])))
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.mgrid[:height, :width]).reshape(2, -1)
    return matrix @ (grid - centre[:, None]) + (centre - jnp.stack(shift))[:, None]
