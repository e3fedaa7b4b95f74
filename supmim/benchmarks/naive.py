"""References for the speed of a step: a plain Flax ViT, and the naive form of each of our choices.

Nothing trains with them. They compute what supmim.models computes, given the same parameters.
Shapes: B batch, N tokens of an image, D width, H heads.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from supmim.config import options
from supmim.models import layers
from supmim.models.encoder import Encoded


class PlainBlock(nn.Module):
    """A transformer block with flax.linen's own attention and autodiff's GELU."""

    options: options.Encoder

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        sizes, dtype = self.options, jnp.dtype(self.options.dtype)
        y = layers.LayerNorm(dtype=dtype, name="attention_norm")(x)
        attend = nn.MultiHeadDotProductAttention(sizes.num_heads, dtype=dtype, name="attention")
        x = x + attend(y, y)
        y = layers.LayerNorm(dtype=dtype, name="mlp_norm")(x)
        y = nn.Dense(sizes.mlp_dim, dtype=dtype, name="mlp_up")(y)
        y = nn.gelu(y, approximate=sizes.gelu == "tanh")
        return x + nn.Dense(x.shape[-1], dtype=dtype, name="mlp_down")(y)


class PlainViT(nn.Module):
    """A straightforward ViT in flax.linen, with fixed positions and average pooling."""

    options: options.Encoder
    grid: int

    @nn.compact
    def __call__(
        self, image: jax.Array, token_mask: None = None, *, train: bool = False, taps: tuple = ()
    ) -> Encoded:
        """[B, S, S, C] -> what an Encoder returns, without taps."""
        width, dtype = self.options.width, jnp.dtype(self.options.dtype)
        patch = (self.options.patch_size,) * 2
        x = nn.Conv(width, patch, patch, "VALID", dtype=dtype, name="embedding")(image)
        x = x.reshape(len(image), -1, width)
        x = x + jnp.asarray(layers.sincos_positions(self.grid, width))[None].astype(dtype)
        for i in range(self.options.depth):
            x = PlainBlock(self.options, name=f"block_{i}")(x)
        x = layers.LayerNorm(dtype=dtype, name="norm")(x)
        return Encoded(x, x.mean(axis=1).astype(jnp.float32), {})


def unflattened(x: jax.Array) -> jax.Array:
    """Return tokens as [B, N, D], which our layers flatten."""
    return x


def float32_scores(query, key, value, implementation: str) -> jax.Array:
    """Attention whose scores are float32, so that the products of its backward pass are, too."""
    query = query / np.sqrt(query.shape[-1]).astype(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def keeping_gelu(x: jax.Array, kind: str) -> jax.Array:
    """GELU of autodiff, which keeps the intermediate results of the forward pass."""
    return nn.gelu(x, approximate=kind == "tanh")


class Weights(nn.Module):
    """Kernel [D, H, D/H] and bias [H, D/H] of one projection."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Return the kernel and the bias."""
        kernel = self.param("kernel", layers.xavier_heads, self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[1:])


class FusedAttention(layers.Attention):
    """Self-attention with query, key and value from one product."""

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, batch_size: int) -> jax.Array:
        width, heads = x.shape[-1], self.num_heads
        shape = (width, heads, width // heads)
        parts = [Weights(shape, name=name)() for name in ("query", "key", "value")]
        kernel, bias = (jnp.stack(part, axis=-3) for part in zip(*parts, strict=True))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        joint = jnp.einsum("...d,dphk->...phk", x, kernel)
        joint = joint + bias.reshape((1,) * (joint.ndim - 3) + bias.shape)
        joint = joint.reshape(batch_size, -1, 3, *shape[1:])
        query, key, value = (joint[:, :, part] for part in range(3))
        mixed = layers.dot_product_attention(query, key, value, self.attention)
        out = nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=layers.xavier, dtype=self.dtype, name="out"
        )
        return out(mixed.reshape(*x.shape[:-1], *shape[1:]))


# A choice -> its name in supmim.models.layers and its naive form. The attention kernel, a choice
# as well, is an option of the config.
NAIVE = {
    "scores": ("dot_product_attention", float32_scores),
    "flat": ("flat", unflattened),
    "gelu": ("gelu", keeping_gelu),
    "separate": ("Attention", FusedAttention),
}


@contextlib.contextmanager
def patched(*choices: str) -> Iterator[None]:
    """Give the models that are traced inside the naive forms of these choices; see NAIVE."""
    with contextlib.ExitStack() as stack:
        for choice in NAIVE.keys() & set(choices):
            stack.enter_context(mock.patch.object(layers, *NAIVE[choice]))
        yield
