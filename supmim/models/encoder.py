"""The ViT encoder: from an image, or its visible patches, to tokens and an embedding.

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
    """Outputs of the encoder.

    latent: [B, V, D], patch tokens. embedding: [B, D]. taps: {block: [B, V, D]} or longer, as
    the class token and registers stand before the patches.
    """

    latent: jax.Array
    embedding: jax.Array
    taps: dict[int, jax.Array]


class MapPool(nn.Module):
    """Attention pooling by a learned probe, as in big_vision: [B, N, D] -> [B, D]."""

    options: options.Encoder

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        sizes, dtype = self.options, jnp.dtype(self.options.dtype)
        batch_size, _, width = x.shape
        probe = self.param("probe", layers.xavier, (1, 1, width))
        probe = jnp.broadcast_to(probe[0], (batch_size, width)).astype(dtype)
        # With one query, the cuDNN kernel is not faster, and it rejects odd lengths.
        attention = layers.Attention(sizes.num_heads, "xla", dtype, name="attention")
        x = attention(probe, layers.flat(x), batch_size)
        y = layers.LayerNorm(dtype=dtype, name="norm")(x)
        return x + layers.Mlp(sizes.mlp_dim, sizes.gelu, 0.0, dtype, name="mlp")(y, train)


class Encoder(nn.Module):
    """A ViT (arXiv 2010.11929).

    grid: side of the token grid of training images. mask_token: whether hidden patches may enter
    as a learned token.
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
        """Encode [B, S, S, C] to latent, embedding and the outputs of the blocks in `taps`.

        With a token_mask, only the patches that it keeps are embedded.
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
        first = []
        if sizes.pool == "cls":
            first.append(self.param("cls", nn.initializers.zeros, (1, 1, sizes.width)))
        if sizes.registers:
            shape, init = (1, sizes.registers, sizes.width), nn.initializers.normal(1e-6)
            first.append(self.param("registers", init, shape))
        num_patches = x.shape[1]
        tokens = [jnp.broadcast_to(y, (x.shape[0], *y.shape[1:])).astype(dtype) for y in first]
        x = jnp.concatenate([*tokens, x], axis=1)
        x = nn.Dropout(sizes.dropout)(x, deterministic=not train)
        x, outputs = layers.Blocks(sizes, name="blocks")(x, train, taps)
        x = layers.LayerNorm(dtype=dtype, name="norm")(x)
        latent = x[:, x.shape[1] - num_patches :]
        if sizes.pool == "cls":
            embedding = x[:, 0]
        elif sizes.pool == "map":
            embedding = MapPool(sizes, name="map_pool")(latent, train)
        else:
            embedding = latent.mean(axis=1)
        return Encoded(latent, embedding.astype(jnp.float32), outputs)

    def position_table(self, grid: int) -> jax.Array:
        """Return float32 positions [grid * grid, D], resampled if made for another grid."""
        sizes = self.options
        made_for = sizes.position_grid or self.grid
        if sizes.positions == "learned":
            init = nn.initializers.normal(1 / sizes.width**0.5)
            table = self.param("positions", init, (made_for**2, sizes.width))
        else:
            table = jnp.asarray(layers.sincos_positions(made_for, sizes.width))
        return layers.resample_positions(table, grid)
