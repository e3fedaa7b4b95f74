"""K-means of points in memory, and its spherical form, whose codes have length 1.

Shapes: P points, F values of a point, K codes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from supmim.errors import ConfigError, counted
from supmim.tokenizers import codes as codes_lib

CHUNK = 65_536  # points whose distances to all codes are in memory at once
MOST_POINTS = 2**17  # k-means sees at most this many, drawn at random


def fit(
    points: np.ndarray,
    codebook_size: int,
    *,
    steps: int,
    seed: int,
    images: int,
    spherical: bool = False,
) -> jax.Array:
    """Return codes [K, F] of points [P, F], one for each patch of `images`, deterministically.

    It starts from distinct points, drawn by `seed`. spherical: points and codes have length 1
    (Dhillon and Modha, 2001). ConfigError if there are fewer distinct points than codes.
    """
    rng = np.random.default_rng(seed)
    if len(points) > MOST_POINTS:
        points = points[rng.choice(len(points), MOST_POINTS, replace=False)]
    distinct = np.unique(points, axis=0)
    if len(distinct) < codebook_size:
        raise ConfigError(
            f"config.tokenizer.codebook_size={codebook_size} exceeds the "
            f"{counted(len(distinct), 'distinct patch')} of {counted(images, 'image')}; set it to "
            f"{len(distinct)} or less"
        )
    start = rng.choice(len(distinct), codebook_size, replace=False)
    return _lloyd(jnp.asarray(points), jnp.asarray(distinct[np.sort(start)]), steps, spherical)


@functools.partial(jax.jit, static_argnames=("steps", "spherical"))
def _lloyd(points: jax.Array, codes: jax.Array, steps: int, spherical: bool) -> jax.Array:
    """Run `steps` rounds of k-means: [P, F], [K, F] -> [K, F].

    A code without points moves to the point that is farthest from its code.
    """
    num_codes = len(codes)

    def step(codes: jax.Array, _: None) -> tuple[jax.Array, None]:
        def assign(point: jax.Array) -> tuple[jax.Array, jax.Array]:
            distance = codes_lib.distances(point, codes)
            return distance.argmin(), distance.min() + (point**2).sum()

        ids, error = jax.lax.map(assign, points, batch_size=CHUNK)
        count = jax.ops.segment_sum(jnp.ones(len(points)), ids, num_codes)
        total = jax.ops.segment_sum(points, ids, num_codes)
        mean = total / jnp.maximum(count, 1)[:, None]
        if spherical:
            mean = unit(mean)
        worst = points[jax.lax.top_k(error, num_codes)[1]]
        rank = jnp.cumsum(count == 0) - 1  # the n-th empty code takes the n-th worst point
        return jnp.where(count[:, None] > 0, mean, worst[rank]), None

    return jax.lax.scan(step, codes, length=steps)[0]


def unit(x: jax.Array) -> jax.Array:
    """Scale the last axis to length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
