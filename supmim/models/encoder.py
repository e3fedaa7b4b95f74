"""The ViT encoder: an image, or its visible patches, to tokens and one embedding.

Shapes: B batch, N tokens of the grid, V tokens that enter, D width.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from supmim import masking
from supmim.config import options
from supmim.models import layers


class Encoded(NamedTuple):
    """latent: [B, V, D] patch tokens; embedding: [B, D]; taps: {block: [B, V (+ cls), D]}."""

    latent: jax.Array
    embedding: jax.Array
    taps: dict[int, jax.Array]


class MapPool(nn.Module):
    """Multi-head attention pooling: a learned probe asks all tokens, as in big_vision."""

    options: options.Encoder

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, N, D] -> [B, D]."""
        sizes, dtype = self.options, jnp.dtype(self.options.dtype)
        batch_size, _, width = x.shape
        probe = self.param("probe", layers.xavier, (1, 1, width))
        probe = jnp.broadcast_to(probe[0], (batch_size, width)).astype(dtype)
        # One query: the cuDNN kernel gains nothing and refuses odd lengths.
        attention = layers.Attention(sizes.num_heads, "xla", dtype, name="attention")
        x = attention(probe, layers.flat(x), batch_size)
        y = layers.LayerNorm(dtype=dtype, name="norm")(x)
        return x + layers.Mlp(sizes.mlp_dim, sizes.gelu, 0.0, dtype, name="mlp")(y, train)


class Encoder(nn.Module):
    """A ViT (arXiv 2010.11929).

    options: its sizes and how it is computed. grid: side of the token grid of the images that it
    is trained on. mask_token: whether patches that enter may be hidden behind a learned token.
    """

    options: options.Encoder
    grid: int
    mask_token: bool = False

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        token_mask: masking.TokenMask | None = None,
        *,
        train: bool = False,
        taps: tuple[int, ...] = (),
    ) -> Encoded:
        """[B, S, S, C] -> latent, embedding and the outputs of the blocks in `taps`.

        With a token_mask, patches that it does not keep are dropped before they are embedded.
        """
        sizes, dtype = self.options, jnp.dtype(self.options.dtype)
        patches = layers.patchify(image, sizes.patch_size)
        positions = self.position_table(image.shape[1] // sizes.patch_size)
        if token_mask is not None:
            patches = masking.take_tokens(patches, token_mask.ids_keep)
            positions = positions[token_mask.ids_keep]
        x = nn.Dense(sizes.width, dtype=dtype, name="embedding")(patches)
        if self.mask_token:
            token = self.param("mask_token", nn.initializers.normal(0.02), (sizes.width,))
            if token_mask is not None:
                hidden = masking.take_tokens(token_mask.mask, token_mask.ids_keep)
                x = jnp.where(hidden[..., None] > 0, token.astype(dtype), x)
        x = x + jnp.broadcast_to(positions, x.shape).astype(dtype)
        if sizes.pool == "cls":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, sizes.width))
            cls = jnp.broadcast_to(cls, (x.shape[0], 1, sizes.width)).astype(dtype)
            x = jnp.concatenate([cls, x], axis=1)
        x = nn.Dropout(sizes.dropout)(x, deterministic=not train)
        x, outputs = layers.Blocks(sizes, name="blocks")(x, train, taps)
        x = layers.LayerNorm(dtype=dtype, name="norm")(x)
        latent = x[:, 1:] if sizes.pool == "cls" else x
        return Encoded(latent, self.pooled(x, train).astype(jnp.float32), outputs)

    def position_table(self, grid: int) -> jax.Array:
        """[grid * grid, D], float32."""
        sizes = self.options
        made_for = sizes.position_grid or self.grid
        if sizes.positions == "learned":
            init = nn.initializers.normal(1 / sizes.width**0.5)
            table = self.param("positions", init, (made_for**2, sizes.width))
        else:
            table = jnp.asarray(layers.sincos_positions(made_for, sizes.width))
        return layers.resample_positions(table, grid)

    def pooled(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, N (+ cls), D] -> [B, D]."""
        if self.options.pool == "cls":
            return x[:, 0]
        if self.options.pool == "map":
            return MapPool(self.options, name="map_pool")(x, train)
        return x.mean(axis=1)
