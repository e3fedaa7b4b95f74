"""Discriminators of an adversarial tokenizer: image -> logits, high for real ones.

None has BatchNorm: it would tie an image's logits to the rest of its batch, so that padding,
accumulation parts and the place of a row would change the training. Shapes: B batch, S image side,
C channels, h w feature map, F features, P patches.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from supmim.config.options import STDDEV_GROUP as GROUP

SLOPE = 0.2  # of the leaky ReLUs, in both sources
WIDEST = 8  # no layer has more than so many times the filters
PATCH_LAYERS = 3  # that halve the side: a patch is 70 pixels wide
SMALLEST = 4  # side at which the StyleGAN discriminator stops halving
BLUR = (1.0, 3.0, 3.0, 1.0)

leaky = functools.partial(nn.leaky_relu, negative_slope=SLOPE)


class Patch(nn.Module):
    """PatchGAN (arXiv 1611.07004, appendix 6.1.2): a logit for each of many overlapping patches.

    Where it has BatchNorm, this has GroupNorm with one group: each image is normalised alone.
    """

    filters: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, valid: jax.Array) -> jax.Array:
        """[B, S, S, C] in [0, 1], [B] -> [B, P]."""
        conv = functools.partial(nn.Conv, kernel_size=(4, 4), dtype=self.dtype)
        x = leaky(conv(self.filters, strides=(2, 2))(2 * image - 1))
        for layer in range(1, PATCH_LAYERS + 1):
            stride = 2 if layer < PATCH_LAYERS else 1
            x = conv(self.filters * min(2**layer, WIDEST), strides=(stride, stride))(x)
            x = leaky(nn.GroupNorm(num_groups=1, dtype=self.dtype)(x))
        return conv(1)(x).astype(jnp.float32).reshape(len(image), -1)


class StyleGAN(nn.Module):
    """Residual blocks that halve by blur pooling: StyleGAN2 (arXiv 1912.04958), as MaskGIT has it.

    Without the equalised learning rate.
    """

    filters: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, valid: jax.Array) -> jax.Array:
        """[B, S, S, C] in [0, 1], [B] -> [B, 1]."""
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        x = leaky(conv(self.filters, (3, 3))(2 * image - 1))
        width, level = self.filters, 0
        while x.shape[1] > SMALLEST:
            level += 1
            width = self.filters * min(2**level, WIDEST)
            y = leaky(conv(x.shape[-1], (3, 3))(x))
            y = leaky(blur_pool(conv(width, (3, 3))(y)))
            shortcut = conv(width, (1, 1), use_bias=False)(blur_pool(x))
            x = (y + shortcut) / np.sqrt(2).astype(y.dtype)
        x = jnp.concatenate([x, minibatch_stddev(x, valid)], axis=-1)
        x = leaky(conv(width, (3, 3))(x)).reshape(len(image), -1)
        x = leaky(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(1, dtype=self.dtype)(x).astype(jnp.float32)


DISCRIMINATORS = {"patch": Patch, "stylegan": StyleGAN}


def blur_pool(x: jax.Array) -> jax.Array:
    """[B, h, w, F] -> [B, ceil(h/2), ceil(w/2), F]: blurred, then halved (arXiv 1904.11486)."""
    row = np.array(BLUR) / sum(BLUR)
    kernel = jnp.asarray(np.outer(row, row)[:, :, None, None], x.dtype)
    features = x.shape[-1]
    return jax.lax.conv_general_dilated(
        x, jnp.tile(kernel, (1, 1, 1, features)), (2, 2), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=features,
    )  # fmt: skip


def minibatch_stddev(x: jax.Array, valid: jax.Array) -> jax.Array:
    """[B, h, w, F], [B] -> [B, h, w, 1]: how much images differ (arXiv 1710.10196, section 3).

    A group is GROUP rows, as far apart as can be, so that the parts of an accumulation, which are
    every n-th row, keep it whole. Rows that are not valid do not count.
    """
    size = GROUP if len(x) % GROUP == 0 else 1
    groups = x.astype(jnp.float32).reshape(size, -1, *x.shape[1:])
    weight = valid.reshape(size, -1, 1, 1, 1)
    weight = weight / jnp.maximum(weight.sum(axis=0, keepdims=True), 1)
    mean = (groups * weight).sum(axis=0, keepdims=True)
    variance = (((groups - mean) ** 2) * weight).sum(axis=0)
    deviation = jnp.sqrt(variance + 1e-8).mean(axis=(1, 2, 3))
    each = jnp.tile(deviation, size).reshape(len(x), 1, 1, 1)
    return jnp.broadcast_to(each, (*x.shape[:3], 1)).astype(x.dtype)
