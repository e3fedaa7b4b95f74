"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) between the neighbours of a batch.

Shapes: B batch, H, W, C images in [0, 1], K classes.
"""

import jax
import jax.numpy as jnp

from supmim.data.augment import boxes


def mix(
    rng: jax.Array, image: jax.Array, target: jax.Array, valid: jax.Array, mixup: float,
    cutmix: float,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Mixes [B, H, W, C] images and their targets [B, K] with the next ones', as big_vision.

    valid: [B]. One share per step; where both a's are given, one of the two with equal chance;
    a target's share is that of the pixels. Padding is mixed into nothing.
    """
    own, share = _draw(rng, image.shape[1:3], mixup, cutmix)
    partner_valid = jnp.roll(valid, 1) > 0

    def blend(x, kept):
        usable = partner_valid.reshape((-1,) + (1,) * (x.ndim - 1))
        return kept * x + (1 - kept) * jnp.where(usable, jnp.roll(x, 1, axis=0), x)

    return blend(image, own), blend(target, share)


def _draw(rng: jax.Array, size: tuple, mixup: float, cutmix: float) -> tuple[jax.Array, jax.Array]:
    """What stays of an image, () or [1, H, W, 1], and of its target, ()."""
    if not cutmix:
        return _draw_mixup(rng, mixup)
    if not mixup:
        return _draw_cutmix(rng, size, cutmix)
    choice, mixup_rng, cutmix_rng = jax.random.split(rng, 3)
    drawn = _draw_mixup(mixup_rng, mixup), _draw_cutmix(cutmix_rng, size, cutmix)
    first = jax.random.bernoulli(choice)
    return jax.tree.map(lambda *two: jnp.where(first, *two), *drawn)


def _draw_mixup(rng: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """A share from Beta(alpha, alpha), folded to >= 0.5, of both."""
    share = jax.random.beta(rng, alpha, alpha)
    share = jnp.maximum(share, 1 - share)
    return share, share


def _draw_cutmix(rng: jax.Array, size: tuple, alpha: float) -> tuple[jax.Array, jax.Array]:
    """All but a box: its area from Beta(alpha, alpha) before the image's edges cut it."""
    height, width = size
    share_rng, centre_rng = jax.random.split(rng)
    side = jnp.sqrt(1 - jax.random.beta(share_rng, alpha, alpha))
    half = (side * jnp.array([height, width])).astype(jnp.int32) // 2
    centre = jax.random.randint(centre_rng, (2,), 0, jnp.array([height, width]))
    taken = boxes.inside(boxes.around(centre, half)[None], height, width)
    own = 1 - taken.astype(jnp.float32)
    return own, own.mean()
