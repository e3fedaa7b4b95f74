"""Segmentation heads: logits for every position of an image.

Shapes: B batch, N tokens, G grid side, D width of tokens, W width of the pyramid, C classes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from supmim.config import Config
from supmim.models import layers
from supmim.models.encoder import Encoded, Encoder

RATES = (4, 2, 1, 0.5)  # side of each level of the pyramid, relative to the grid


class Linear(nn.Module):
    """A dense layer on the encoder's normalised tokens, without batch norm.

    It returns logits [B, G, G, C], float32. blocks: blocks whose outputs the head also reads.
    """

    num_classes: int
    dropout: float
    blocks: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool) -> jax.Array:
        x = nn.Dropout(self.dropout)(to_grid(encoded.latent), deterministic=not train)
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))


class Multiscale(nn.Module):
    """Outputs of four blocks at 4, 2, 1 and 1/2 times the grid, added up at the finest side.

    No level is finer than pixels: with patches of 1, 2 or 3 pixels the finest side is 1, 2 or 2
    times the grid. UPerNet (arXiv 1807.10221), as BEiT (arXiv 2106.08254) uses it on a ViT, has a
    pyramid of its own with batch norm; here a sum and one 3 x 3 convolution with layer norm do.
    """

    num_classes: int
    dropout: float
    blocks: tuple[int, ...]
    width: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool) -> jax.Array:
        """Map taps [B, N (+ cls), D] to logits, float32, at most [B, 4 G, 4 G, C]."""
        num_tokens = encoded.latent.shape[1]
        finest = 1 << (self.patch_size.bit_length() - 1)
        levels = []
        for i, (block, rate) in enumerate(zip(self.blocks, RATES, strict=True)):
            norm = layers.LayerNorm(dtype=self.dtype, name=f"norm_{i}")
            x = to_grid(norm(encoded.taps[block][:, -num_tokens:]))
            levels.append(self.rescaled(x, min(rate, finest), f"level_{i}"))
        batch, height, width, _ = levels[0].shape
        shape = (batch, height, width, self.width)
        x = sum(jax.image.resize(level, shape, "bilinear") for level in levels)
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="mix")(nn.gelu(x))
        x = nn.gelu(layers.LayerNorm(dtype=self.dtype, name="norm")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))

    def rescaled(self, x: jax.Array, rate: float, name: str) -> jax.Array:
        """Map [B, G, G, D] to [B, rate G, rate G, W]; half of an odd side is rounded up."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        if rate < 1:
            batch, height, width, channels = x.shape
            half = (batch, -(-height // 2), -(-width // 2), channels)
            x = jax.image.resize(x, half, "bilinear")
        if rate <= 1:
            return dense(self.width, name=name)(x)
        x = depth_to_space(dense(4 * self.width, name=name)(x))
        if rate == 2:
            return x
        x = nn.gelu(layers.LayerNorm(dtype=self.dtype, name=f"{name}_norm")(x))
        return depth_to_space(dense(4 * self.width, name=f"{name}_2")(x))


class Segmenter(nn.Module):
    """An encoder with a segmentation head."""

    encoder: Encoder
    segmentation: Linear | Multiscale

    def __call__(self, image: jax.Array, *, train: bool = False, fixed: bool = False) -> jax.Array:
        """Map [B, S, S, C] to logits [B, side, side, C]; fixed: run the encoder as in inference."""
        blocks = tuple(sorted(set(self.segmentation.blocks)))
        encoded = self.encoder(image, train=train and not fixed, taps=blocks)
        return self.segmentation(encoded, train)

    def encode(self, image: jax.Array) -> Encoded:
        """Return what the encoder makes of [B, S, S, C], without the head."""
        return self.encoder(image)


def to_grid(tokens: jax.Array) -> jax.Array:
    """Reshape [B, N, D] to [B, G, G, D]."""
    grid = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), grid, grid, -1)


def depth_to_space(x: jax.Array) -> jax.Array:
    """Rearrange [B, G, G, 4 W] to [B, 2 G, 2 G, W].

    After a dense layer, this is a 2 x 2 transposed convolution, which XLA runs slowly on CPUs.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def tapped_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks at 1/3, 1/2, 2/3 and the end: 3, 5, 7, 11 of 12, as in BEiT and MAE."""
    return tuple(-(-depth * a // b) - 1 for a, b in ((1, 3), (1, 2), (2, 3), (1, 1)))


def create(config: Config) -> Segmenter:
    """Return the model of a config, with config.classifier.num_classes classes."""
    sizes, num_classes = config.segmentation, config.classifier.num_classes
    if sizes.head == "linear":
        head = Linear(num_classes, sizes.dropout)
    else:
        blocks, dtype = tapped_blocks(config.encoder.depth), jnp.dtype(config.encoder.dtype)
        patch_size = config.encoder.patch_size
        head = Multiscale(num_classes, sizes.dropout, blocks, sizes.width, patch_size, dtype)
    return Segmenter(Encoder(config.encoder, config.grid), head)
