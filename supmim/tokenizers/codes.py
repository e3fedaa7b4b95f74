"""Nearest codes: which row of a codebook a vector is closest to.

Shapes: K codes, D values of a code.
"""

import jax
import jax.numpy as jnp


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
