"""DeiT-III's 3-Augment (arXiv 2204.07118) and colour jitter.

Shapes: B batch, H, W, C. Images are uint8; keys are [B], one for each example.
"""

import jax
import jax.numpy as jnp

from supmim.data.augment import operations

RADIUS = (0.1, 2.0)  # of 3-Augment's blur, in pixels
JITTERED = (operations.black, operations.mean_grey, operations.grey)


def three_augment(keys: jax.Array, image: jax.Array) -> jax.Array:
    """Apply grey, solarize or blur to each image, each with probability 1/3."""
    kind, radius = jax.vmap(_draw_one_of_three)(keys)
    kind = kind[:, None, None, None]
    grey = operations.grey(image).astype(jnp.uint8)
    changed = jnp.where(kind == 0, grey, operations.solarize(image, 128))
    return jnp.where(kind == 2, operations.blur(image, radius), changed)


def _draw_one_of_three(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    kind_key, radius_key = jax.random.split(key)
    kind = jax.random.randint(kind_key, (), 0, 3)
    return kind, jax.random.uniform(radius_key, minval=RADIUS[0], maxval=RADIUS[1])


def jitter(keys: jax.Array, image: jax.Array, largest: float) -> jax.Array:
    """Change brightness, contrast and saturation in random order.

    Each is multiplied by a factor drawn from 1 - largest to 1 + largest.
    """
    order, factors = jax.vmap(lambda key: _draw_jitter(key, largest))(keys)

    def change(image, drawn):
        kind, factor = drawn
        return operations.enhance(image, kind, factor, JITTERED), None

    return jax.lax.scan(change, image, (order.T, factors.T))[0]


def _draw_jitter(key: jax.Array, largest: float) -> tuple[jax.Array, jax.Array]:
    """Draw the order [3] of the three changes and their factors [3], in that order."""
    order_key, factor_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(JITTERED))
    return order, jax.random.uniform(factor_key, (3,), minval=1 - largest, maxval=1 + largest)
