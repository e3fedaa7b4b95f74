"""The VQGAN of taming-transformers (arXiv 2012.09841) with a stride of 16, to use its weights.

Differences from MaskGIT's: images in [-1, 1] inside, strided convolutions, shortcuts of a block's
input, attention at the lowest resolution, biases everywhere, and a 1x1 convolution on either side
of the codes. Modules are named as the tensors of the public implementation. Shapes: see vqgan.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from supmim.models import layers
from supmim.tokenizers import vqgan
from supmim.tokenizers.vqgan import ExactConv, GroupNorm


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions with a shortcut: [B, h, w, F] -> [B, h, w, filters]."""

    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, self.filters, dtype=self.dtype)
        y = nn.swish(GroupNorm(name="norm1")(x))
        y = conv((3, 3), name="conv1")(y)
        y = nn.swish(GroupNorm(name="norm2")(y))
        y = conv((3, 3), name="conv2")(y).astype("float32")
        if x.shape[-1] != self.filters:
            x = conv((1, 1), name="nin_shortcut")(x)
        return x + y


class Attention(nn.Module):
    """Self-attention of all positions, with one head and a shortcut; keeps [B, h, w, F]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        project = functools.partial(nn.Conv, x.shape[-1], (1, 1), dtype=self.dtype)
        y = GroupNorm(name="norm")(x)
        query, key, value = (
            project(name=name)(y).reshape(len(x), -1, 1, x.shape[-1]) for name in "qkv"
        )
        mixed = layers.dot_product_attention(query, key, value, "xla")
        return x + project(name="proj_out")(mixed.reshape(x.shape))


def middle(x: jax.Array, dtype: Any) -> jax.Array:
    """Apply the blocks at the lowest resolution, as submodules of the caller, to [B, h, w, F]."""
    x = ResBlock(x.shape[-1], dtype, name="mid.block_1")(x)
    x = Attention(dtype, name="mid.attn_1")(x)
    return ResBlock(x.shape[-1], dtype, name="mid.block_2")(x)


class Encoder(nn.Module):
    """Images [B, S, S, C] in [-1, 1] -> [B, h, w, D], float32.

    Every level but the last halves the side.
    """

    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    embedding_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        x = ExactConv(self.filters, (3, 3), name="conv_in")(image)
        last = len(self.channel_multipliers) - 1
        for level, multiplier in enumerate(self.channel_multipliers):
            for block in range(self.num_res_blocks):
                name = f"down.{level}.block.{block}"
                x = ResBlock(self.filters * multiplier, self.dtype, name=name)(x)
                if level == last:
                    x = Attention(self.dtype, name=f"down.{level}.attn.{block}")(x)
            if level < last:
                pad_below_right, name = ((0, 1), (0, 1)), f"down.{level}.downsample.conv"
                x = conv(x.shape[-1], (3, 3), strides=2, padding=pad_below_right, name=name)(x)
        x = nn.swish(GroupNorm(name="norm_out")(middle(x, self.dtype)))
        return ExactConv(self.embedding_dim, (3, 3), name="conv_out")(x)


class Decoder(nn.Module):
    """Codes [B, h, w, D] -> images [B, S, S, C], about [-1, 1].

    Every level but 0, the last one, doubles the side.
    """

    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype)
        last = len(self.channel_multipliers) - 1
        x = conv(self.filters * self.channel_multipliers[last], name="conv_in")(latents)
        x = middle(x, self.dtype)
        for level in range(last, -1, -1):
            width = self.filters * self.channel_multipliers[level]
            for block in range(self.num_res_blocks + 1):
                x = ResBlock(width, self.dtype, name=f"up.{level}.block.{block}")(x)
                if level == last:
                    x = Attention(self.dtype, name=f"up.{level}.attn.{block}")(x)
            if level:
                x = conv(width, name=f"up.{level}.upsample.conv")(vqgan.upsample(x))
        x = nn.swish(GroupNorm(name="norm_out")(x))
        return conv(self.channels, name="conv_out")(x).astype("float32")


class Network(vqgan.Network):
    """A network with the interface of vqgan.Network."""

    kind = "taming"

    def setup(self) -> None:
        sizes = (self.filters, self.channel_multipliers, self.num_res_blocks)
        self.encoder = Encoder(*sizes, self.embedding_dim, self.dtype)
        self.quant_conv = ExactConv(self.embedding_dim, (1, 1))
        self.quantizer = vqgan.Quantizer(self.codebook_size, self.embedding_dim)
        self.post_quant_conv = nn.Conv(self.embedding_dim, (1, 1), dtype=self.dtype)
        self.decoder = Decoder(*sizes, self.channels, self.dtype)

    def latents(self, image: jax.Array) -> jax.Array:
        return self.quant_conv(self.encoder(2 * image - 1))

    def decode(self, latents: jax.Array) -> jax.Array:
        return (self.decoder(self.post_quant_conv(latents)) + 1) / 2


abstract = functools.partial(vqgan.abstract, network=Network)
load = functools.partial(vqgan.load, network=Network)
