"""References for the step's speed: a plain Flax ViT, and the naive form of each of our choices.

Nothing trains with them. All compute what supmim.models computes, given the same parameters.
Shapes: B batch, N tokens of an image, D width, H heads.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from supmim.models import layers
from supmim.models.encoder import Encoded


class PlainBlock(nn.Module):
    """A transformer block with flax.linen's own attention and autodiff's GELU."""

    num_heads: int
    mlp_dim: int
    gelu: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        y = layers.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        x = x + nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype, name="attention")(
            y, y
        )
        y = layers.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, name="mlp_up")(y)
        y = nn.gelu(y, approximate=self.gelu == "tanh")
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="mlp_down")(y)


class PlainViT(nn.Module):
    """The ViT that one writes first with flax.linen: fixed positions, average pooling."""

    grid: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    gelu: str
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False, taps: tuple = ()) -> Encoded:
        """[B, S, S, C] -> what an Encoder returns, without taps."""
        dtype, patch = jnp.dtype(self.dtype), (self.patch_size,) * 2
        x = nn.Conv(self.width, patch, patch, "VALID", dtype=dtype, name="embedding")(image)
        x = x.reshape(len(image), -1, self.width)
        x = x + jnp.asarray(layers.sincos_positions(self.grid, self.width))[None].astype(dtype)
        for i in range(self.depth):
            block = PlainBlock(self.num_heads, self.mlp_dim, self.gelu, dtype, name=f"block_{i}")
            x = block(x)
        x = layers.LayerNorm(dtype=dtype, name="norm")(x)
        return Encoded(x, x.mean(axis=1).astype(jnp.float32), {})


def spread(x: jax.Array) -> jax.Array:
    """Tokens stay [B, N, D], where ours lie flat."""
    return x


def float32_scores(query, key, value, implementation: str) -> jax.Array:
    """Attention whose first product gives float32, and so takes float32 in its backward pass."""
    query = query / np.sqrt(query.shape[-1]).astype(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def keeping_gelu(x: jax.Array, kind: str) -> jax.Array:
    """GELU as autodiff has it: it keeps what the forward pass computed."""
    return nn.gelu(x, approximate=kind == "tanh")


class Weights(nn.Module):
    """Kernel [D, H, D/H] and bias [H, D/H] of one projection, and no more."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """The two."""
        kernel = self.param("kernel", layers.xavier_heads, self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[1:])


class FusedAttention(layers.Attention):
    """Attention of x to itself with query, key and value from one product."""

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, batch_size: int) -> jax.Array:
        """As layers.Attention."""
        width, heads = x.shape[-1], self.num_heads
        shape = (width, heads, width // heads)
        names = ("query", "key", "value")
        parts = [Weights(shape, name=name)() for name in names]
        kernel, bias = (jnp.stack(part, axis=-3) for part in zip(*parts, strict=True))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        joint = jnp.einsum("...d,dphk->...phk", x, kernel)
        joint = joint + bias.reshape((1,) * (joint.ndim - 3) + bias.shape)
        joint = joint.reshape(batch_size, -1, 3, *shape[1:])
        mixed = layers.dot_product_attention(
            *(joint[:, :, part] for part in range(3)), self.attention
        )
        out = nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=layers.xavier, dtype=self.dtype, name="out"
        )
        return out(mixed.reshape(*x.shape[:-1], *shape[1:]))


# A choice -> its name in supmim.models.layers and the naive form. The kernel of attention, which
# is one too, is an option.
NAIVE = {
    "scores": ("dot_product_attention", float32_scores),
    "flat": ("flat", spread),
    "gelu": ("gelu", keeping_gelu),
    "separate": ("Attention", FusedAttention),
}


@contextlib.contextmanager
def naive(*choices: str) -> Iterator[None]:
    """While it is open, models that are traced are naive in these choices; see NAIVE."""
    with contextlib.ExitStack() as stack:
        for choice in NAIVE.keys() & set(choices):
            stack.enter_context(mock.patch.object(layers, *NAIVE[choice]))
        yield
