"""The shallow decoder, which predicts targets of hidden patches from tokens of visible ones.

Shapes: B batch, N tokens, V tokens of the encoder, M predicted tokens, D width, W target_size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from supmim import masking
from supmim.config import options
from supmim.models import layers


class Decoder(nn.Module):
    """A few blocks on tokens in shuffled order, visible ones first, so that none is moved back.

    options: of its blocks, built as an encoder's. target_size: number of outputs for each patch,
    e.g. a logit per code. grid: side of the token grid.
    """

    options: options.Encoder
    target_size: int
    grid: int

    @nn.compact
    def __call__(self, latent: jax.Array, token_mask: masking.TokenMask) -> jax.Array:
        """Map [B, V, encoder D] to predictions [B, M, W], float32, for token_mask.ids_predict."""
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
        x, _ = layers.Blocks(self.options, name="blocks")(x, train=False)
        x = layers.LayerNorm(dtype=dtype, name="norm")(x[:, token_mask.num_visible :])
        return nn.Dense(self.target_size, dtype=dtype, name="head")(x).astype(jnp.float32)
