"""What linear heads read of a frozen encoder: its last blocks, each as one token, and its patches.

Shapes: B batch, N patch tokens, D width, F feature values.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from supmim.models import layers
from supmim.models.encoder import Encoded

LAST_BLOCKS = (1, 4)  # that a head reads, as in DINOv2


class Kind(NamedTuple):
    """Features of some heads: the last blocks they read, with or without the mean of the patch
    tokens; their columns of `features` are [first, last).
    """

    blocks: int
    patches: bool
    first: int
    last: int


def kinds(encoder: Any) -> tuple[Kind, ...]:
    """Of config.encoder: {1, 4} last blocks, or all if there are fewer, x {without, with} patches.

    With pool=gap the last block's summary is that mean, so the grid is half as large.
    """
    kept = min(max(LAST_BLOCKS), encoder.depth)
    end = kept * encoder.width
    more = (False,) if encoder.pool == "gap" else (False, True)
    return tuple(
        Kind(blocks, patches, end - blocks * encoder.width, end + patches * encoder.width)
        for blocks in sorted({min(blocks, encoder.depth) for blocks in LAST_BLOCKS})
        for patches in more
    )


def taps(encoder: Any) -> tuple[int, ...]:
    """The blocks before the last whose outputs are needed."""
    return tuple(range(max(0, encoder.depth - max(LAST_BLOCKS)), encoder.depth - 1))


def features(encoded: Encoded, norm: Any, encoder: Any) -> jax.Array:
    """[B, F], float16: a summary of each block, the last one last, then the mean patch token.

    The last block's summary is the embedding; an earlier one's is its cls token, or without one
    the mean of its tokens. All have passed the encoder's last norm, of parameters `norm`.
    """
    normed = layers.LayerNorm(dtype=encoded.latent.dtype)
    earlier = [normed.apply({"params": norm}, encoded.taps[block]) for block in taps(encoder)]
    parts = [x[:, 0] if encoder.pool == "cls" else mean(x) for x in earlier] + [encoded.embedding]
    if encoder.pool != "gap":
        parts.append(mean(encoded.latent))
    return jnp.concatenate([part.astype(jnp.float16) for part in parts], axis=1)


def mean(tokens: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, D]."""
    return tokens.mean(axis=1, dtype=jnp.float32)
