"""Discriminators for adversarial tokenizer training: image -> logits, high for real images.

None has BatchNorm: it would tie an image's logits to the rest of its batch, so that padding,
gradient accumulation and the order of the rows would change the training. Shapes: B batch, S image
side, C channels, h w feature map, F features, P patches.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from supmim.config.options import STDDEV_GROUP

MAX_MULTIPLIER = 8  # no layer has more than this times the filters of the first
PATCH_LAYERS = 3  # layers that halve the side: a patch is 70 pixels wide
MIN_SIDE = 4  # side at which the StyleGAN discriminator stops halving
BLUR = (1.0, 3.0, 3.0, 1.0)

leaky = functools.partial(nn.leaky_relu, negative_slope=0.2)  # as in both sources


class Patch(nn.Module):
    """PatchGAN (arXiv 1611.07004, appendix 6.1.2): a logit for each of many overlapping patches.

    Its BatchNorm is replaced by GroupNorm with one group, which normalises each image alone.
    """

    filters: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, valid: jax.Array) -> jax.Array:
        """Return logits [B, P] of images [B, S, S, C] in [0, 1]; valid [B] is not used."""
        conv = functools.partial(nn.Conv, kernel_size=(4, 4), dtype=self.dtype)
        x = leaky(conv(self.filters, strides=(2, 2))(2 * image - 1))
        for layer in range(1, PATCH_LAYERS + 1):
            stride = 2 if layer < PATCH_LAYERS else 1
            x = conv(self.filters * min(2**layer, MAX_MULTIPLIER), strides=(stride, stride))(x)
            x = leaky(nn.GroupNorm(num_groups=1, dtype=self.dtype)(x))
        return conv(1)(x).astype(jnp.float32).reshape(len(image), -1)


class StyleGAN(nn.Module):
    """The StyleGAN2 discriminator (arXiv 1912.04958) with blur pooling, as in MaskGIT.

    Residual blocks halve the side; there is no equalised learning rate.
    """

    filters: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, valid: jax.Array) -> jax.Array:
        """Return logits [B, 1] of images [B, S, S, C] in [0, 1]; valid: [B]."""
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        x = leaky(conv(self.filters, (3, 3))(2 * image - 1))
        width, level = self.filters, 0
        while x.shape[1] > MIN_SIDE:
            level += 1
            width = self.filters * min(2**level, MAX_MULTIPLIER)
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
    """Blur, then halve (arXiv 1904.11486): [B, h, w, F] -> [B, ceil(h/2), ceil(w/2), F]."""
    row, features = np.array(BLUR) / sum(BLUR), x.shape[-1]
    kernel = jnp.asarray(np.outer(row, row)[:, :, None, None], x.dtype)
    return jax.lax.conv_general_dilated(
        x,
        jnp.tile(kernel, (1, 1, 1, features)),
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=features,
    )


def minibatch_stddev(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Return how much the images of a group differ (arXiv 1710.10196, section 3).

    [B, h, w, F], [B] -> [B, h, w, 1]. The STDDEV_GROUP rows of a group lie as far apart as
    possible: gradient accumulation takes every n-th row and so keeps groups whole. Rows that are
    not valid do not count.
    """
    size = STDDEV_GROUP if len(x) % STDDEV_GROUP == 0 else 1
    groups = x.astype(jnp.float32).reshape(size, -1, *x.shape[1:])
    weight = valid.reshape(size, -1, 1, 1, 1)
    weight = weight / jnp.maximum(weight.sum(axis=0, keepdims=True), 1)
    mean = (groups * weight).sum(axis=0, keepdims=True)
    variance = (((groups - mean) ** 2) * weight).sum(axis=0)
    deviation = jnp.sqrt(variance + 1e-8).mean(axis=(1, 2, 3))
    deviation = jnp.tile(deviation, size).reshape(len(x), 1, 1, 1)
    return jnp.broadcast_to(deviation, (*x.shape[:3], 1)).astype(x.dtype)
