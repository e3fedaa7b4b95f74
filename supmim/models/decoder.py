"""The shallow decoder: latent of the visible patches -> predictions of the hidden ones.

Shapes: B batch, N tokens, V tokens of the encoder, M predicted tokens, D width, W target_size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from supmim import masking
from supmim.models import layers


class Decoder(nn.Module):
    """Works in shuffled order, visible tokens first, so that nothing is put back in place.

    target_size: values that it gives for a patch, e.g. the logit of each code.
    """

    target_size: int
    grid: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    gelu: str = "tanh"
    attention: str = "xla"
    dtype: str = "float32"
    remat: str = "none"

    @nn.compact
    def __call__(
        self, latent: jax.Array, token_mask: masking.TokenMask, *, train: bool = False
    ) -> jax.Array:
        """[B, V, encoder D] -> predictions [B, M, W], float32, of token_mask.ids_predict."""
        dtype = jnp.dtype(self.dtype)
        batch, num_tokens = token_mask.ids_shuffle.shape
        x = nn.Dense(self.width, dtype=dtype, name="embedding")(latent)
        num_dropped = num_tokens - token_mask.num_keep
        if num_dropped:
            token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,))
            token = jnp.broadcast_to(token, (batch, num_dropped, self.width))
            x = jnp.concatenate([x, token.astype(dtype)], axis=1)
        positions = jnp.asarray(layers.sincos_positions(self.grid, self.width))
        x = x + positions[token_mask.ids_shuffle].astype(dtype)
        x, _ = layers.Blocks(
            depth=self.depth, num_heads=self.num_heads, mlp_dim=self.mlp_dim, gelu=self.gelu,
            attention=self.attention, dtype=dtype, remat=self.remat, name="blocks",
        )(x, train)  # fmt: skip
        x = layers.LayerNorm(dtype=dtype, name="norm")(x[:, token_mask.num_visible :])
        return nn.Dense(self.target_size, dtype=dtype, name="head")(x).astype(jnp.float32)
