"""Nearest-code search and the range check of images, shared by all tokenizers.

Shapes: K codes, D values of a code.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from supmim.errors import DataError

MARGIN = 1e-3  # resizing may leave [0, 1] by this much


def distances(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Return squared distances less |latent|^2, which is equal for all codes.

    [..., D], [K, D] -> [..., K], in float32: accelerators would round the operands of a float32
    product to 8 or 11 bits.
    """
    latents, codes = latents.astype(jnp.float32), codes.astype(jnp.float32)
    product = jnp.matmul(latents, codes.T, precision="highest")
    return jnp.broadcast_to((codes**2).sum(axis=-1), product.shape) - 2 * product


def nearest(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Return the nearest code, the first of equally near ones: [..., D], [K, D] -> [...], int32."""
    return distances(latents, codes).argmin(axis=-1).astype(jnp.int32)


def check_range(image: jax.Array) -> None:
    """Raise DataError for images outside [0, 1], unless they are traced and have no values."""
    if isinstance(image, Tracer):
        return
    low, high = float(image.min()), float(image.max())
    if not (low >= -MARGIN and high <= 1 + MARGIN):
        raise DataError(
            f"a tokenizer takes images in [0, 1], but these run from {low:g} to {high:g}: divide "
            "8-bit pixels by 255, and do not normalise them"
        )
