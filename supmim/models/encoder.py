"""The ViT encoder: an image, or its visible patches, to tokens and one embedding.

Shapes: B batch, N tokens of the grid, V tokens that enter, D width.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from supmim import masking
from supmim.models import layers


class Encoded(NamedTuple):
    """latent: [B, V, D] patch tokens; embedding: [B, D]; taps: {block: [B, V (+ cls), D]}."""

    latent: jax.Array
    embedding: jax.Array
    taps: dict[int, jax.Array]


class MapPool(nn.Module):
    """Multi-head attention pooling: a learned probe asks all tokens, as in big_vision."""

    num_heads: int
    mlp_dim: int
    gelu: str
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, N, D] -> [B, D]."""
        batch_size, _, width = x.shape
        probe = self.param("probe", layers.xavier, (1, 1, width))
        probe = jnp.broadcast_to(probe[0], (batch_size, width)).astype(self.dtype)
        # One query: the cuDNN kernel gains nothing and refuses odd lengths.
        attention = layers.Attention(self.num_heads, "xla", self.dtype, name="attention")
        x = attention(probe, layers.flat(x), batch_size)
        y = layers.LayerNorm(dtype=self.dtype, name="norm")(x)
        return x + layers.Mlp(self.mlp_dim, self.gelu, 0.0, self.dtype, name="mlp")(y, train)


class Encoder(nn.Module):
    """A ViT (arXiv 2010.11929). grid: side of the token grid of the images it is trained on.

    position_grid: side of the grid that positions are made for, and resampled from; 0: grid.
    mask_token: whether patches that enter may be hidden behind a learned token.
    """

    grid: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    positions: str = "sincos2d"
    position_grid: int = 0
    pool: str = "gap"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    gelu: str = "tanh"
    attention: str = "xla"
    dtype: str = "float32"
    scan: bool = False
    remat: str = "none"
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
        dtype = jnp.dtype(self.dtype)
        patches = layers.patchify(image, self.patch_size)
        positions = self.position_table(image.shape[1] // self.patch_size)
        if token_mask is not None:
            patches = masking.take_tokens(patches, token_mask.ids_keep)
            positions = positions[token_mask.ids_keep]
        x = nn.Dense(self.width, dtype=dtype, name="embedding")(patches)
        if self.mask_token:
            token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,))
            if token_mask is not None:
                hidden = masking.take_tokens(token_mask.mask, token_mask.ids_keep)
                x = jnp.where(hidden[..., None] > 0, token.astype(dtype), x)
        x = x + jnp.broadcast_to(positions, x.shape).astype(dtype)
        if self.pool == "cls":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.width)).astype(dtype)
            x = jnp.concatenate([cls, x], axis=1)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x, outputs = layers.Blocks(
            depth=self.depth, num_heads=self.num_heads, mlp_dim=self.mlp_dim, gelu=self.gelu,
            attention=self.attention, dtype=dtype, dropout=self.dropout,
            stochastic_depth=self.stochastic_depth, scan=self.scan, remat=self.remat,
            name="blocks",
        )(x, train, taps)  # fmt: skip
        x = layers.LayerNorm(dtype=dtype, name="norm")(x)
        latent = x[:, 1:] if self.pool == "cls" else x
        return Encoded(latent, self.pooled(x, train).astype(jnp.float32), outputs)

    def position_table(self, grid: int) -> jax.Array:
        """[grid * grid, D], float32."""
        made_for = self.position_grid or self.grid
        if self.positions == "learned":
            init = nn.initializers.normal(1 / self.width**0.5)
            table = self.param("positions", init, (made_for**2, self.width))
        else:
            table = jnp.asarray(layers.sincos_positions(made_for, self.width))
        return layers.resample_positions(table, grid)

    def pooled(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, N (+ cls), D] -> [B, D]."""
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "map":
            return MapPool(
                self.num_heads, self.mlp_dim, self.gelu, self.attention, x.dtype, name="map_pool"
            )(x, train)
        return x.mean(axis=1)
