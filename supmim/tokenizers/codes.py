"""What tokenizers share: the range of their images, and which code a vector is closest to.

Shapes: K codes, D values of a code.
"""

import jax
import jax.numpy as jnp

from supmim.errors import DataError

MARGIN = 1e-3  # by which resizing may leave [0, 1]


def distances(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Squared distances less |latent|^2, which no comparison needs: [..., D], [K, D] -> [..., K].

    In float32: accelerators would round the product of float32 matrices to 8 or 11 bits.
    """
    latents, codes = latents.astype(jnp.float32), codes.astype(jnp.float32)
    product = jnp.matmul(latents, codes.T, precision="highest")
    return jnp.broadcast_to((codes**2).sum(axis=-1), product.shape) - 2 * product


def nearest(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """[..., D], [K, D] -> [...], int32; of equally near ones the first."""
    return distances(latents, codes).argmin(axis=-1).astype(jnp.int32)


def check_range(image: jax.Array) -> None:
    """DataError for images outside [0, 1]; while a program is traced there is nothing to check."""
    if isinstance(image, jax.core.Tracer):
        return
    low, high = float(image.min()), float(image.max())
    if not (low >= -MARGIN and high <= 1 + MARGIN):
        raise DataError(
            f"a tokenizer takes images in [0, 1], these run from {low:g} to {high:g}: divide 8-bit "
            "pixels by 255, and do not normalise"
        )
