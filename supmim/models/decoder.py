"""The shallow decoder: latent of the visible patches -> predictions of the hidden ones.

Shapes: B batch, N tokens, V tokens of the encoder, M predicted tokens, D width, W target_size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from supmim import masking
from supmim.config import options
from supmim.models import layers


class Decoder(nn.Module):
    """Works in shuffled order, visible tokens first, so that nothing is put back in place.

    options: of its blocks, which are built as an encoder's. target_size: values that it gives for a
    patch, e.g. the logit of each code.
    """

    options: options.Encoder
    target_size: int
    grid: int

    @nn.compact
    def __call__(
        self, latent: jax.Array, token_mask: masking.TokenMask, *, train: bool = False
    ) -> jax.Array:
        """[B, V, encoder D] -> predictions [B, M, W], float32, of token_mask.ids_predict."""
        dtype = jnp.dtype(self.options.dtype)
        batch, num_tokens = token_mask.ids_shuffle.shape
        x = nn.Dense(self.options.width, dtype=dtype, name="embedding")(latent)
        num_dropped = num_tokens - token_mask.num_keep
        if num_dropped:
            token = self.param("mask_token", nn.initializers.normal(0.02), (self.options.width,))
            token = jnp.broadcast_to(token, (batch, num_dropped, self.options.width))
            x = jnp.concatenate([x, token.astype(dtype)], axis=1)
        positions = jnp.asarray(layers.sincos_positions(self.grid, self.options.width))
        x = x + positions[token_mask.ids_shuffle].astype(dtype)
        x, _ = layers.Blocks(self.options, name="blocks")(x, train)
        x = layers.LayerNorm(dtype=dtype, name="norm")(x[:, token_mask.num_visible :])
        return nn.Dense(self.target_size, dtype=dtype, name="head")(x).astype(jnp.float32)
