"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) between neighbours in a batch.

Shapes: B batch, H, W, C images in [0, 1], K classes.
"""

import jax
import jax.numpy as jnp

from supmim.data.augment import boxes


def mix(
    rng: jax.Array,
    image: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    mixup: float,
    cutmix: float,
) -> tuple[jax.Array, jax.Array]:
    """Mix images [B, H, W, C] and their labels [B, K] with the next example's, as in big_vision.

    valid: [B]; padding is not mixed into any image. mixup, cutmix: the alpha of each. One share is
    drawn per step. If both alphas are positive, each method has probability 1/2. A label's weight
    is its share of the pixels.
    """
    own, share = _draw(rng, image.shape[1:3], mixup, cutmix)
    partner_valid = jnp.roll(valid, 1) > 0

    def blend(x, kept):
        usable = partner_valid.reshape((-1,) + (1,) * (x.ndim - 1))
        return kept * x + (1 - kept) * jnp.where(usable, jnp.roll(x, 1, axis=0), x)

    return blend(image, own), blend(label, share)


def _draw(rng: jax.Array, size: tuple, mixup: float, cutmix: float) -> tuple[jax.Array, jax.Array]:
    """Draw the share kept of an image, () or [1, H, W, 1], and of its label, ()."""
    if not cutmix:
        return _draw_mixup(rng, mixup)
    if not mixup:
        return _draw_cutmix(rng, size, cutmix)
    choice, mixup_rng, cutmix_rng = jax.random.split(rng, 3)
    drawn = _draw_mixup(mixup_rng, mixup), _draw_cutmix(cutmix_rng, size, cutmix)
    first = jax.random.bernoulli(choice)
    return jax.tree.map(lambda *two: jnp.where(first, *two), *drawn)


def _draw_mixup(rng: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Draw one share from Beta(alpha, alpha), folded to >= 0.5, for image and label."""
    share = jax.random.beta(rng, alpha, alpha)
    share = jnp.maximum(share, 1 - share)
    return share, share


def _draw_cutmix(rng: jax.Array, size: tuple, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Draw a box to replace; Beta(alpha, alpha) gives its area before clipping to the image."""
    height, width = size
    share_rng, centre_rng = jax.random.split(rng)
    side = jnp.sqrt(1 - jax.random.beta(share_rng, alpha, alpha))
    half = (side * jnp.array([height, width])).astype(jnp.int32) // 2
    centre = jax.random.randint(centre_rng, (2,), 0, jnp.array([height, width]))
    own = 1 - boxes.inside(boxes.around(centre, half)[None], height, width).astype(jnp.float32)
    return own, own.mean()
