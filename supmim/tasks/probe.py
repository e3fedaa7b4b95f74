"""Features that linear heads read from a frozen encoder: its last blocks and its mean patch.

Shapes: B batch, N patch tokens, D width, F feature values.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from supmim.config.options import Encoder
from supmim.models import layers
from supmim.models.encoder import Encoded

LAST_BLOCKS = (1, 4)  # how many of the last blocks a head reads, as in DINOv2


class Kind(NamedTuple):
    """One choice of features: the columns from first to last - 1 of `features`.

    blocks: how many of the last blocks. patches: whether the mean of the patch tokens is added.
    """

    blocks: int
    patches: bool
    first: int
    last: int


def kinds(encoder: Encoder) -> tuple[Kind, ...]:
    """Return all choices: {1, 4} last blocks, or all if there are fewer, x {without, with} patches.

    With pool=gap the last block's summary is already that mean, so there are half as many choices.
    """
    kept = min(max(LAST_BLOCKS), encoder.depth)
    end = kept * encoder.width
    more = (False,) if encoder.pool == "gap" else (False, True)
    return tuple(
        Kind(blocks, patches, end - blocks * encoder.width, end + patches * encoder.width)
        for blocks in sorted({min(blocks, encoder.depth) for blocks in LAST_BLOCKS})
        for patches in more
    )


def taps(encoder: Encoder) -> tuple[int, ...]:
    """Return the blocks before the last whose outputs are needed."""
    return tuple(range(max(0, encoder.depth - max(LAST_BLOCKS)), encoder.depth - 1))


def features(encoded: Encoded, norm: Any, encoder: Encoder) -> jax.Array:
    """Return features [B, F], float16: a summary of each block, then the mean patch token.

    The last block's summary is the embedding; that of an earlier block is its cls token or, if
    there is none, the mean of its tokens. All have passed the encoder's last norm. norm: its
    parameters.
    """
    normed = layers.LayerNorm(dtype=encoded.latent.dtype)
    earlier: list[Any] = [
        normed.apply({"params": norm}, encoded.taps[block]) for block in taps(encoder)
    ]
    patches = -encoded.latent.shape[1]
    parts = [x[:, 0] if encoder.pool == "cls" else mean(x[:, patches:]) for x in earlier] + [
        encoded.embedding
    ]
    if encoder.pool != "gap":
        parts.append(mean(encoded.latent))
    return jnp.concatenate([part.astype(jnp.float16) for part in parts], axis=1)


def mean(tokens: jax.Array) -> jax.Array:
    """Return the mean [B, D] of tokens [B, N, D]."""
    return tokens.mean(axis=1, dtype=jnp.float32)
