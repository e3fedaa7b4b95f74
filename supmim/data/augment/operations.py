"""Pillow's image operations over a whole batch, with parameters for each example.

Shapes: B batch, H, W, C. Images are uint8 [B, H, W, C], parameters [B] unless stated otherwise.
Every example takes every pass; where an operation does not apply, its parameters change nothing.
This keeps shapes static and needs no exchange between the devices that split a batch.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

GREY = 128  # fills boxes and what lies outside an image
BLUR_REACH = 6  # pixels; three times the largest radius in use

Degenerate = Callable[[jax.Array], jax.Array]


# Geometry.


def fixed_point(a: float, b: float, c: float, d: float, e: float, f: float) -> np.ndarray:
    """Convert Pillow's AFFINE data to the int32 [6] that `warp` takes.

    Pixel (x, y) of the result comes from (a x + b y + c, d x + e y + f). As in Pillow, coordinates
    are in units of 1/65536 pixel and refer to the centres of pixels.
    """
    rows = np.array([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2])
    return np.floor(rows * 65536 + 0.5).astype(np.int32)


def warp(image: jax.Array, affine: jax.Array) -> jax.Array:
    """Take the nearest source of each pixel, or GREY outside. affine: [B, 6] of `fixed_point`."""
    batch, height, width, channels = image.shape
    y, x = jnp.mgrid[:height, :width].reshape(2, 1, -1)
    a, b, c, d, e, f = affine.T[..., None]
    source_x, source_y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source = jnp.where(inside, source_y * width + source_x, 0)
    moved = jnp.take_along_axis(image.reshape(batch, -1, channels), source[..., None], axis=1)
    return jnp.where(inside[..., None], moved, jnp.uint8(GREY)).reshape(image.shape)


# Lookup tables of 256 levels.


def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
    """Return table[b, c, level] for the level of each pixel; table: [B, C, 256]."""
    batch, _, _, channels = image.shape
    levels = image.reshape(batch, -1, channels).astype(jnp.int32)
    return jnp.take_along_axis(table.swapaxes(1, 2), levels, axis=1).reshape(image.shape)


def histogram(image: jax.Array) -> jax.Array:
    """Count the pixels of each level: int32 [B, C, 256]."""
    batch, _, _, channels = image.shape
    first = 256 * jnp.arange(channels)[None, None, None]
    bins = (image.astype(jnp.int32) + first).reshape(batch, -1)

    def count(bins):
        return jnp.zeros(256 * channels, jnp.int32).at[bins].add(1, mode="promise_in_bounds")

    return jax.vmap(count)(bins).reshape(batch, channels, 256)


def equalize(image: jax.Array) -> jax.Array:
    """Return the table [B, C, 256] that equalizes the histogram of each channel."""
    counts = histogram(image)
    brightest = image.max(axis=(1, 2)).astype(jnp.int32)[..., None]
    last = jnp.take_along_axis(counts, brightest, axis=-1)
    step = (counts.sum(axis=-1, keepdims=True) - last) // 255
    below = counts.cumsum(axis=-1) - counts
    table = (step // 2 + below) // jnp.maximum(step, 1)
    identity = jnp.broadcast_to(jnp.arange(256), table.shape)
    return jnp.where(step > 0, table.clip(0, 255), identity).astype(jnp.uint8)


def autocontrast(image: jax.Array) -> jax.Array:
    """Return the table [B, C, 256] that stretches each channel to 0..255."""
    low = image.min(axis=(1, 2)).astype(jnp.int32)[..., None]
    high = image.max(axis=(1, 2)).astype(jnp.int32)[..., None]
    identity = jnp.broadcast_to(jnp.arange(256), (*low.shape[:2], 256))
    stretched = 255 * (identity - low) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched.clip(0, 255), identity).astype(jnp.uint8)


# Degenerate images to blend with: int32 [B, H, W, C], or sides of 1 to broadcast.


def black(image: jax.Array) -> jax.Array:
    """Return the degenerate image of brightness."""
    return jnp.zeros((len(image), 1, 1, 1), jnp.int32)


def grey(image: jax.Array) -> jax.Array:
    """Return the degenerate image of colour: Pillow's luma of RGB, or a grey image itself."""
    levels = image.astype(jnp.int32)
    if image.shape[-1] == 1:
        return levels
    red, green, blue = jnp.split(levels, 3, axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def mean_grey(image: jax.Array) -> jax.Array:
    """Return the degenerate image of contrast: the rounded mean of `grey`."""
    total = grey(image).sum(axis=(1, 2, 3), keepdims=True)
    pixels = image.shape[1] * image.shape[2]
    return (2 * total + pixels) // (2 * pixels)


def smooth(image: jax.Array) -> jax.Array:
    """Return the degenerate image of sharpness: 3 x 3 means, 5 times the centre; edges stay."""
    height, width = image.shape[1:3]
    levels = image.astype(jnp.int32)
    padded = jnp.pad(levels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = [padded[:, y : height + y, x : width + x] for y in range(3) for x in range(3)]
    y, x = jnp.mgrid[:height, :width]
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    mean = (2 * (sum(around) + 4 * levels) + 13) // 26
    return jnp.where(inner[None, :, :, None], mean, levels)


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Return degenerate + factor * (image - degenerate), clipped to 0..255 and rounded down."""
    start = degenerate.astype(jnp.float32)
    moved = start + factor[:, None, None, None] * (image.astype(jnp.float32) - start)
    return moved.clip(0, 255).astype(jnp.uint8)


def enhance(
    image: jax.Array, kind: jax.Array, factor: jax.Array, degenerates: tuple[Degenerate, ...]
) -> jax.Array:
    """Blend each example with degenerates[kind]; a factor of 1 returns the image."""
    chosen = jnp.zeros((), jnp.int32)
    for number, make in enumerate(degenerates):
        chosen = jnp.where((kind == number)[:, None, None, None], make(image), chosen)
    return blend(chosen, image, factor)


# Other operations.


def solarize(image: jax.Array, threshold: int) -> jax.Array:
    """Invert levels from `threshold` up."""
    return jnp.where(image < threshold, image, 255 - image)


def blur(image: jax.Array, radius: jax.Array) -> jax.Array:
    """Blur by a Gaussian; radius: its standard deviation, at most BLUR_REACH / 3 pixels."""
    taps = jnp.arange(-BLUR_REACH, BLUR_REACH + 1.0)
    weights = jnp.exp(-(taps[None] ** 2) / (2 * radius[:, None] ** 2))
    weights = weights / weights.sum(axis=1, keepdims=True)
    blurred = image.astype(jnp.float32)
    for axis in (1, 2):
        blurred = _weighted_shifts(blurred, weights, axis)
    return (blurred + 0.5).clip(0, 255).astype(jnp.uint8)


def _weighted_shifts(image: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Sum weights [B, K] times the image shifted by k - BLUR_REACH; edges are repeated."""
    padding = [(BLUR_REACH, BLUR_REACH) if n == axis else (0, 0) for n in range(4)]
    padded, length = jnp.pad(image, padding, mode="edge"), image.shape[axis]
    shifted = (
        weights[:, k, None, None, None] * jax.lax.slice_in_dim(padded, k, k + length, axis=axis)
        for k in range(weights.shape[1])
    )
    return cast(jax.Array, sum(shifted))
