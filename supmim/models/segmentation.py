"""Heads that give each place of an image a logit per class.

Shapes: B batch, N tokens of the grid, G grid side, D width of tokens, W of the pyramid, C classes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from supmim.config import Config
from supmim.models import layers
from supmim.models.encoder import Encoded, Encoder

RATES = (4, 2, 1, 0.5)  # sides of the pyramid's levels, in grids; none is finer than pixels


class Linear(nn.Module):
    """One dense layer on the last block's tokens, normalised as the encoder ends (no batch norm).

    blocks: whose outputs it takes besides.
    """

    num_classes: int
    dropout: float
    blocks: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool) -> jax.Array:
        """[B, N, D] -> logits [B, G, G, C], float32."""
        x = nn.Dropout(self.dropout)(squared(encoded.latent), deterministic=not train)
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))


class Multiscale(nn.Module):
    """Four blocks at 4, 2, 1 and 1/2 times the grid, added up at the finest and mixed once.

    patch_size: with patches of 1, 2 or 3 pixels the finest level is 1, 2 or 2 times the grid.

    Where UPerNet (arXiv 1807.10221), on a ViT's blocks as BEiT has them (arXiv 2106.08254), has a
    pyramid of its own, this has a sum and one 3 x 3 convolution; layer norm, no batch norm.
    """

    num_classes: int
    dropout: float
    blocks: tuple[int, ...]
    width: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool) -> jax.Array:
        """{block: [B, N (+ cls), D]} -> logits [B, 4 G, 4 G, C], float32, or less."""
        num_tokens = encoded.latent.shape[1]
        finest = 1 << (self.patch_size.bit_length() - 1)
        levels = []
        for i, (block, rate) in enumerate(zip(self.blocks, RATES, strict=True)):
            x = layers.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(
                encoded.taps[block][:, -num_tokens:]
            )
            levels.append(self.rescaled(squared(x), min(rate, finest), f"level_{i}"))
        batch, height, width, _ = levels[0].shape
        shape = (batch, height, width, self.width)
        x = sum(jax.image.resize(level, shape, "bilinear") for level in levels)
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="mix")(nn.gelu(x))
        x = nn.gelu(layers.LayerNorm(dtype=self.dtype, name="norm")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))

    def rescaled(self, x: jax.Array, rate: float, name: str) -> jax.Array:
        """[B, G, G, D] -> [B, rate G, rate G, W]; half of an odd side is rounded up."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        if rate < 1:
            batch, height, width, channels = x.shape
            half = (batch, -(-height // 2), -(-width // 2), channels)
            x = jax.image.resize(x, half, "bilinear")
        if rate <= 1:
            return dense(self.width, name=name)(x)
        x = doubled(dense(4 * self.width, name=name)(x))
        if rate == 2:
            return x
        x = nn.gelu(layers.LayerNorm(dtype=self.dtype, name=f"{name}_norm")(x))
        return doubled(dense(4 * self.width, name=f"{name}_2")(x))


class Segmenter(nn.Module):
    """An encoder and a head, handed in."""

    encoder: nn.Module
    segmentation: nn.Module

    def __call__(self, image: jax.Array, *, train: bool = False, fixed: bool = False) -> jax.Array:
        """[B, S, S, C] -> logits [B, side, side, C]; fixed: the encoder works as in inference."""
        blocks = tuple(sorted(set(self.segmentation.blocks)))
        encoded = self.encoder(image, train=train and not fixed, taps=blocks)
        return self.segmentation(encoded, train)


def squared(tokens: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, G, G, D]."""
    grid = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), grid, grid, -1)


def doubled(x: jax.Array) -> jax.Array:
    """[B, G, G, 4 W] -> [B, 2 G, 2 G, W]: after a dense layer, a 2 x 2 transposed convolution.

    As such, XLA has no fast program for CPUs.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def tapped(depth: int) -> tuple[int, ...]:
    """Blocks at a third, a half, two thirds and the end: 3, 5, 7, 11 of 12, as BEiT and MAE."""
    return tuple(-(-depth * a // b) - 1 for a, b in ((1, 3), (1, 2), (2, 3), (1, 1)))


def create(config: Config) -> Segmenter:
    """The model of a config; its head has config.classifier.num_classes classes."""
    sizes, num_classes = config.segmentation, config.classifier.num_classes
    if sizes.head == "linear":
        head = Linear(num_classes, sizes.dropout)
    else:
        head = Multiscale(
            num_classes, sizes.dropout, tapped(config.encoder.depth), sizes.width,
            config.encoder.patch_size, jnp.dtype(config.encoder.dtype),
        )  # fmt: skip
    return Segmenter(Encoder(config.encoder, config.grid), head)
