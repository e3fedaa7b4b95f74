"""What keeps a codebook alive besides gradients: averages of what its codes stand for, revival.

Statistics are sums over the batch, so that parts, shards and hosts add up exactly. Shapes: B batch,
N latents of an image, D size of a code, K codes.
"""

import jax
import jax.numpy as jnp

LEAST = 1e-6  # count below which a code's average says nothing


def candidates(rng: jax.Array, batch_size: int, num_tokens: int) -> jax.Array:
    """[B, N], a permutation: latent number k of it may become code k; those past K none."""
    return jax.random.permutation(rng, batch_size * num_tokens).reshape(batch_size, num_tokens)


def statistics(
    latents: jax.Array, ids: jax.Array, candidate: jax.Array, valid: jax.Array, codebook_size: int
) -> dict[str, jax.Array]:
    """[B, N, D], [B, N], [B, N], [B] -> sums over the valid images.

    `count` [K] and `total` [K, D] of the latents of each code; `offered` [K, D], the candidate of
    each code, and `offers` [K], whether there is one.
    """
    weight = jnp.broadcast_to(valid[:, None], ids.shape)
    weighted = jax.lax.stop_gradient(latents).astype(jnp.float32) * weight[..., None]

    def sums(values, where):
        flat = values.reshape(-1, *values.shape[2:])
        return jax.ops.segment_sum(flat, where.reshape(-1), codebook_size)

    return {
        "count": sums(weight, ids), "total": sums(weighted, ids),
        "offered": sums(weighted, candidate), "offers": sums(weight, candidate),
    }  # fmt: skip


def begin(codebook: jax.Array) -> dict[str, jax.Array]:
    """Averages before the first step: nothing was seen."""
    return {"count": jnp.zeros(len(codebook)), "total": jnp.zeros_like(codebook)}


def average(
    averages: dict[str, jax.Array], seen: dict[str, jax.Array], decay: float
) -> dict[str, jax.Array]:
    """One step of the exponential averages of `count` and `total` (arXiv 1711.00937, A.1)."""
    return {name: decay * old + (1 - decay) * seen[name] for name, old in averages.items()}


def means(averages: dict[str, jax.Array], codebook: jax.Array) -> jax.Array:
    """The mean latent of each code, [K, D]; a code that has none stays."""
    count = averages["count"][:, None]
    return jnp.where(count > LEAST, averages["total"] / jnp.maximum(count, LEAST), codebook)


def revive(
    codebook: jax.Array, averages: dict[str, jax.Array], seen: dict[str, jax.Array], below: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Codes used less than `below` x the mean take their candidate, with the mean use to begin.

    So do, once they have no use for a while, codes at the first step: the codebook begins as
    latents of images, drawn at random, wherever the first latents lie.
    """
    mean = averages["count"].mean()
    dead = (averages["count"] < below * mean) & (seen["offers"] > 0)
    codebook = jnp.where(dead[:, None], seen["offered"], codebook)
    count = jnp.where(dead, mean, averages["count"])
    total = jnp.where(dead[:, None], seen["offered"] * mean, averages["total"])
    return codebook, {"count": count, "total": total}
