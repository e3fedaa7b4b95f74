"""Masks of patches: random, BEiT blocks, SimMIM units, MAGE's variable ratio.

Shapes: B batch, G grid side, N = G * G tokens, V tokens that enter the encoder, D width.
"""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from supmim.config import options

BLOCK_DRAWS = 16  # rectangles drawn per image; BEiT draws until its count is reached
BLOCK_ASPECT = 0.3  # most extreme height / width of a rectangle, as in BEiT


@struct.dataclass
class TokenMask:
    """The order in which an image's patches are taken, visible ones first.

    ids_shuffle: [B, N] patch ids, from visible to hidden.
    mask: [B, N] in grid order, 1 = hidden.
    num_keep: V, how many of ids_shuffle enter the encoder (the rest is dropped).
    num_visible: how many of the first ids_shuffle are visible, so that the decoder does not predict
        them; 0 if their number varies, or if all are predicted.
    """

    ids_shuffle: jax.Array
    mask: jax.Array
    num_keep: int = struct.field(pytree_node=False)
    num_visible: int = struct.field(pytree_node=False)

    @property
    def ids_keep(self) -> jax.Array:
        """[B, V] patches that enter the encoder."""
        return self.ids_shuffle[:, : self.num_keep]

    @property
    def ids_predict(self) -> jax.Array:
        """[B, N - num_visible] patches whose tokens the decoder predicts."""
        return self.ids_shuffle[:, self.num_visible :]


def take_tokens(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Return x[b, ids[b]] [B, V, ...] of x [B, N, ...] and ids [B, V]."""
    return jnp.take_along_axis(x, ids.reshape(ids.shape + (1,) * (x.ndim - 2)), axis=1)


def take_rows(tree: Any, share: Fraction) -> Any:
    """Return the first p of every q rows of the arrays [B, ...] of a tree, for a share of p / q.

    The choice does not depend on the mesh. If q divides the rows of each device, no row moves to
    another device. q must divide B.
    """
    if share == 1:
        return tree
    taken, group = share.as_integer_ratio()

    def take(x: jax.Array) -> jax.Array:
        return x.reshape(-1, group, *x.shape[1:])[:, :taken].reshape(-1, *x.shape[1:])

    return jax.tree.map(take, tree)


def num_hidden(num_tokens: int, mask_ratio: float, unit: int = 1) -> int:
    """Return how many patches a ratio hides, in whole units of unit x unit patches."""
    units = num_tokens // unit**2
    return (units - round(units * (1 - mask_ratio))) * unit**2


def random_order(rng: jax.Array, batch_size: int, grid: int) -> jax.Array:
    """Return scores [B, N], independent for each patch; low scores stay visible."""
    return jax.random.uniform(rng, (batch_size, grid * grid))


def unit_order(rng: jax.Array, batch_size: int, grid: int, unit: int) -> jax.Array:
    """Return scores [B, N] that are the same for the patches of a unit (SimMIM)."""
    coarse = random_order(rng, batch_size, grid // unit)
    rank = jnp.argsort(jnp.argsort(coarse, axis=1), axis=1)
    rank = rank.reshape(batch_size, grid // unit, grid // unit)
    return rank.repeat(unit, axis=1).repeat(unit, axis=2).reshape(batch_size, grid * grid)


def block_order(rng: jax.Array, batch_size: int, grid: int, smallest: int, largest: int):
    """Return scores [B, N] that hide patches rectangle by rectangle (BEiT).

    A fixed number of rectangles of `smallest` to `largest` patches is drawn; patches of
    earlier ones are hidden first. In the last one that is needed, they are chosen at random.
    """
    area_rng, aspect_rng, corner_rng, noise_rng = jax.random.split(rng, 4)
    draws = (batch_size, BLOCK_DRAWS)
    area = jax.random.uniform(area_rng, draws, minval=smallest, maxval=max(smallest, largest))
    limit = jnp.log(1 / BLOCK_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_rng, draws, minval=-limit, maxval=limit))
    sides = jnp.stack([jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)], axis=-1)
    sides = jnp.clip(jnp.round(sides), 1, grid)
    corner = jnp.floor(jax.random.uniform(corner_rng, sides.shape) * (grid - sides + 1))
    line = jnp.arange(grid, dtype=jnp.float32)[None, None, None]
    inside = (line >= corner[..., None]) & (line < (corner + sides)[..., None])  # [B, R, 2, G]
    covers = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]  # [B, R, G, G]
    covers = covers.reshape(batch_size, BLOCK_DRAWS, grid * grid)
    urgency = jnp.where(covers.any(axis=1), BLOCK_DRAWS - covers.argmax(axis=1), 0)
    return urgency + random_order(noise_rng, batch_size, grid)


def keep_some(rng: jax.Array, batch_size: int, grid: int, share: float) -> TokenMask:
    """Draw the patches of each image to keep, a fixed share (PatchDropout, arXiv 2208.07220)."""
    return draw(rng, batch_size, grid, options.Mim(mask_ratio=1 - share))


def draw(rng: jax.Array, batch_size: int, grid: int, mim: options.Mim) -> TokenMask:
    """Draw one mask per image, with a fixed number of dropped patches, so that shapes are static.

    With `variable` masking (MAGE) one ratio is drawn per batch, from a normal truncated to
    [mask_ratio, 1]; mask_ratio of the patches is dropped, the other hidden ones become mask tokens.
    """
    order_rng, ratio_rng = jax.random.split(rng)
    num_tokens = grid * grid
    dropped = num_hidden(num_tokens, mim.mask_ratio, mim.unit if mim.masking == "units" else 1)
    if mim.masking == "units":
        order = unit_order(order_rng, batch_size, grid, mim.unit)
    elif mim.masking == "block":
        order = block_order(order_rng, batch_size, grid, mim.block_min, dropped)
    else:
        order = random_order(order_rng, batch_size, grid)
    hide, num_visible = dropped, num_tokens - dropped if mim.loss_on == "hidden" else 0
    if mim.masking == "variable":
        low, high = (
            (mim.mask_ratio - mim.ratio_mean) / mim.ratio_std,
            (1 - mim.ratio_mean) / mim.ratio_std,
        )
        ratio = mim.ratio_mean + mim.ratio_std * jax.random.truncated_normal(ratio_rng, low, high)
        hide = jnp.maximum(jnp.round(num_tokens * ratio), dropped)
        num_visible = 0
    ids_shuffle = jnp.argsort(order, axis=1)
    rank = jnp.argsort(ids_shuffle, axis=1)
    mask = (rank >= num_tokens - hide).astype(jnp.float32)
    num_keep = num_tokens if mim.hidden == "mask_token" else num_tokens - dropped
    return TokenMask(ids_shuffle, mask, num_keep, num_visible)
