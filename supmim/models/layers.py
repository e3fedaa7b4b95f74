"""Attention, MLP, pre-norm blocks, their stack, positions and patches.

Shapes: B batch, N tokens of an image, T tokens of the batch, D width, H heads, G grid side, C
channels, p side of a patch. Parameters are float32; arithmetic is in `dtype`, but softmax and the
statistics of norms are float32.
"""

import functools
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from supmim import sharding
from supmim.config import options

NORM_EPSILON = 1e-6
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

Array = TypeVar("Array", jax.Array, np.ndarray)
LayerNorm = functools.partial(nn.LayerNorm, epsilon=NORM_EPSILON)
xavier = nn.initializers.xavier_uniform()
xavier_heads = nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2))


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str
) -> jax.Array:
    """Attend from [B, Nq, H, d] to keys and values [B, N, H, d]; returns [B, Nq, H, d].

    The einsum keeps the compute dtype: float32 scores would make the backward products float32.
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    query = query / np.sqrt(query.shape[-1]).astype(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def flat(x: jax.Array) -> jax.Array:
    """Reshape [B, N, D] to [B*N, D]; XLA for GPUs would transpose a residual stream [B, N, D]."""
    return x.reshape(-1, x.shape[-1])


class Heads(nn.Module):
    """The nn.DenseGeneral [T, D] -> [T, H, D/H], computed as one matrix product.

    GPUs add the bias of a matrix product inside it, and otherwise in a pass of its own.
    """

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.num_heads, x.shape[-1] // self.num_heads)
        kernel = self.param("kernel", xavier_heads, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        matrix, row = kernel.reshape(len(kernel), -1), bias.reshape((1,) * (x.ndim - 1) + (-1,))
        y = x @ matrix.astype(self.dtype) + row.astype(self.dtype)
        return y.reshape(*x.shape[:-1], *shape[1:])


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value projections."""

    num_heads: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, batch_size: int) -> jax.Array:
        """Map queries [B*Nq, D] and a context [B*N, D] to [B*Nq, D]."""
        heads = functools.partial(Heads, self.num_heads, self.dtype)
        query = heads(name="query")(x)
        key, value = heads(name="key")(context), heads(name="value")(context)
        q, k, v = (y.reshape(batch_size, -1, *y.shape[-2:]) for y in (query, key, value))
        mixed = dot_product_attention(q, k, v, self.attention)
        return nn.DenseGeneral(
            x.shape[-1], axis=(-2, -1), kernel_init=xavier, dtype=self.dtype, name="out"
        )(mixed.reshape(query.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, kind: str) -> jax.Array:
    """Apply GELU, in the tanh form or the exact one, storing only `x` for the backward pass."""
    return nn.gelu(x, approximate=kind == "tanh")


def _gelu_backward(kind, x, grad):
    x = jax.lax.optimization_barrier(x)  # keeps the compiler from storing the forward pass
    return jax.vjp(functools.partial(nn.gelu, approximate=kind == "tanh"), x)[1](grad)


gelu.defvjp(lambda x, kind: (gelu(x, kind), x), _gelu_backward)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them: [T, D] -> [T, D]."""

    mlp_dim: int
    gelu: str
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        small = nn.initializers.normal(1e-6)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=xavier, bias_init=small)
        hidden = gelu(dense(self.mlp_dim, name="up")(x), self.gelu)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return dense(x.shape[-1], name="down")(hidden)


class Block(nn.Module):
    """A pre-norm transformer block; its input stays split over the batch axes of the mesh."""

    options: options.Encoder
    batch_size: int
    keep_output: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_rate: jax.Array | float, train: bool
    ) -> tuple[jax.Array, Any]:
        """Map [B*N, D] to [B*N, D], twice if `keep_output`, for nn.scan to stack.

        drop_rate: probability that an image skips a branch (stochastic depth, arXiv 1603.09382).
        """
        sizes, dtype = self.options, jnp.dtype(self.options.dtype)
        x = sharding.constrain_batch(x)
        y = LayerNorm(dtype=dtype, name="attention_norm")(x)
        attention = Attention(sizes.num_heads, sizes.attention, dtype, name="attention")
        y = attention(y, y, self.batch_size)
        y = nn.Dropout(sizes.dropout)(y, deterministic=not train)
        x = x + self.skip(self.scaled(y, "attention_scale"), drop_rate, train)
        y = LayerNorm(dtype=dtype, name="mlp_norm")(x)
        y = Mlp(sizes.mlp_dim, sizes.gelu, sizes.dropout, dtype, name="mlp")(y, train)
        y = nn.Dropout(sizes.dropout)(y, deterministic=not train)
        x = x + self.skip(self.scaled(y, "mlp_scale"), drop_rate, train)
        return x, (x if self.keep_output else None)

    def scaled(self, branch: jax.Array, name: str) -> jax.Array:
        """Multiply the branch [B*N, D] by a learned scale [D] (LayerScale, arXiv 2103.17239)."""
        initial = self.options.layer_scale
        if not initial:
            return branch
        scale = self.param(name, nn.initializers.constant(initial), branch.shape[-1:])
        return branch * scale[None].astype(branch.dtype)

    def skip(self, branch: jax.Array, drop_rate: jax.Array | float, train: bool) -> jax.Array:
        """Drop the branch [B*N, D] of some images in training, and scale up the others."""
        never = isinstance(drop_rate, float) and drop_rate == 0.0
        if not train or never:
            return branch
        keep_rate = 1.0 - drop_rate
        rng = self.make_rng("stochastic_depth")
        keep = jax.random.bernoulli(rng, keep_rate, (self.batch_size, 1))
        keep = keep.repeat(len(branch) // self.batch_size, axis=0)  # [B*N, 1]
        return jnp.where(keep, branch / jnp.asarray(keep_rate, branch.dtype), 0)


class Blocks(nn.Module):
    """A stack of blocks, unrolled or scanned over stacked parameters, with chosen outputs."""

    options: options.Encoder

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, taps: tuple[int, ...] = ()
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Map [B, N, D] to [B, N, D] and {block: its output [B, N, D]} for the blocks in `taps`."""
        sizes, block = self.options, Block
        if sizes.remat != "none":
            block = nn.remat(
                Block,
                policy=REMAT_POLICIES[sizes.remat],
                prevent_cse=not sizes.scan,
                static_argnums=(3,) if sizes.scan or sizes.stochastic_depth else (2, 3),
            )
        shape = x.shape
        x = flat(x)
        rates = np.linspace(0.0, sizes.stochastic_depth, sizes.depth, dtype=np.float32)
        if sizes.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True, "stochastic_depth": True},
                in_axes=(0 if sizes.stochastic_depth else nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=sizes.depth,
            )(sizes, shape[0], keep_output=bool(taps), name="stack")
            x, outputs = stack(x, jnp.asarray(rates) if sizes.stochastic_depth else 0.0, train)
        else:
            outputs = {}
            for i, rate in enumerate(rates):
                x, _ = block(sizes, shape[0], name=f"block_{i}")(x, float(rate), train)
                outputs[i] = x
        return x.reshape(shape), {i: outputs[i].reshape(shape) for i in taps}


def stack_blocks(params: Any) -> Any:
    """Convert parameters of unrolled blocks for scanned ones: leaves gain a leading depth axis."""
    if not isinstance(params, dict):
        return params
    if "block_0" not in params:
        return {name: stack_blocks(value) for name, value in params.items()}
    blocks = [params[f"block_{i}"] for i in range(len(params))]
    return {"stack": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: Any) -> Any:
    """Invert stack_blocks."""
    if not isinstance(params, dict):
        return params
    if "stack" not in params:
        return {name: unstack_blocks(value) for name, value in params.items()}
    depth = len(jax.tree.leaves(params["stack"])[0])
    return {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["stack"]) for i in range(depth)
    }


def patchify(image: Array, patch_size: int) -> Array:
    """Cut images into patches, row by row: [B, G*p, G*p, C] -> [B, G*G, p*p*C]."""
    batch, height, width, channels = image.shape
    rows, columns = height // patch_size, width // patch_size
    image = image.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return image.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def unpatchify(patches: jax.Array, patch_size: int, channels: int) -> jax.Array:
    """Invert patchify for a square grid: [B, G*G, p*p*C] -> [B, G*p, G*p, C]."""
    batch, num_tokens, _ = patches.shape
    grid = round(num_tokens**0.5)
    patches = patches.reshape(batch, grid, grid, patch_size, patch_size, channels)
    side = grid * patch_size
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side, side, channels)


def sincos_positions(grid: int, width: int) -> np.ndarray:
    """Return fixed positions [G*G, D], as in big_vision and MoCo v3 (arXiv 2104.02057)."""
    y, x = np.mgrid[:grid, :grid]
    omega = 1.0 / 10_000 ** (np.arange(width // 4) / (width // 4 - 1 if width > 4 else 1))
    angles_y, angles_x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    parts = [np.sin(angles_x), np.cos(angles_x), np.sin(angles_y), np.cos(angles_y)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def resample_positions(positions: jax.Array, grid: int) -> jax.Array:
    """Resample positions [N, D] to another grid, [G*G, D], bilinearly with antialiasing."""
    old_grid = round(len(positions) ** 0.5)
    if old_grid == grid:
        return positions
    square = positions.reshape(old_grid, old_grid, -1)
    square = jax.image.resize(square, (grid, grid, square.shape[-1]), "bilinear", antialias=True)
    return square.reshape(grid * grid, -1)
