"""Codebook updates without gradients: averages of the latents of each code, and code revival.

Statistics are sums over the batch, so that parts, shards and hosts add up exactly. Shapes: B batch,
N latents of an image, D size of a code, K codes.
"""

import jax
import jax.numpy as jnp

MIN_COUNT = 1e-6  # count below which a code has no meaningful average


def candidates(rng: jax.Array, batch_size: int, num_tokens: int) -> jax.Array:
    """Return a permutation [B, N]: the latent whose number is k < K may replace code k."""
    return jax.random.permutation(rng, batch_size * num_tokens).reshape(batch_size, num_tokens)


def statistics(
    latents: jax.Array, ids: jax.Array, candidate: jax.Array, valid: jax.Array, codebook_size: int
) -> dict[str, jax.Array]:
    """Return sums over the valid images of [B, N, D], [B, N], [B, N], [B].

    `count` [K] and `total` [K, D] of the latents of each code; `offered` [K, D], the candidate of
    each code, and `offers` [K], whether there is one.
    """
    weight = jnp.broadcast_to(valid[:, None], ids.shape)
    weighted = jax.lax.stop_gradient(latents).astype(jnp.float32) * weight[..., None]

    def sums(values: jax.Array, code: jax.Array) -> jax.Array:
        flat = values.reshape(-1, *values.shape[2:])
        return jax.ops.segment_sum(flat, code.reshape(-1), codebook_size)

    return {
        "count": sums(weight, ids),
        "total": sums(weighted, ids),
        "offered": sums(weighted, candidate),
        "offers": sums(weight, candidate),
    }


def initial_averages(codebook: jax.Array) -> dict[str, jax.Array]:
    """Return the averages before the first step, all zero."""
    return {"count": jnp.zeros(len(codebook)), "total": jnp.zeros_like(codebook)}


def average(
    averages: dict[str, jax.Array], seen: dict[str, jax.Array], decay: float
) -> dict[str, jax.Array]:
    """Update the exponential averages of `count` and `total` (arXiv 1711.00937, A.1)."""
    return {name: decay * old + (1 - decay) * seen[name] for name, old in averages.items()}


def means(averages: dict[str, jax.Array], codebook: jax.Array) -> jax.Array:
    """Return the mean latent of each code, [K, D]; a code without latents stays as it is."""
    count = averages["count"][:, None]
    return jnp.where(count > MIN_COUNT, averages["total"] / jnp.maximum(count, MIN_COUNT), codebook)


def revive(
    codebook: jax.Array, averages: dict[str, jax.Array], seen: dict[str, jax.Array], below: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Replace codes used less than `below` x the mean by their candidates, at the mean use.

    All codes are unused before the first step, so the codebook soon consists of randomly drawn
    latents of images, wherever the first latents lie.
    """
    mean = averages["count"].mean()
    dead = (averages["count"] < below * mean) & (seen["offers"] > 0)
    codebook = jnp.where(dead[:, None], seen["offered"], codebook)
    count = jnp.where(dead, mean, averages["count"])
    total = jnp.where(dead[:, None], seen["offered"] * mean, averages["total"])
    return codebook, {"count": count, "total": total}
