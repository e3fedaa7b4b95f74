"""Measures of reconstruction quality. Shapes: B batch, S image side, C channels."""

import jax
import jax.numpy as jnp
import numpy as np

from supmim.config.options import SSIM_WINDOW

SIGMA = 1.5  # deviation of the Gaussian windows that SSIM compares, in pixels
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for images in [0, 1]


def psnr(mean_squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB for images in [0, 1].

    For a data set, pass the mean error over all its images.
    """
    return float(-10 * np.log10(np.maximum(mean_squared_error, 1e-12)))


def of(image: jax.Array, decoded: jax.Array) -> dict[str, jax.Array]:
    """Return `squared_error` and, unless images are smaller than a window, `ssim`, each [B]."""
    scores = {"squared_error": squared_error(image, decoded)}
    return scores if image.shape[1] < SSIM_WINDOW else scores | {"ssim": ssim(image, decoded)}


def squared_error(image: jax.Array, decoded: jax.Array) -> jax.Array:
    """Return the mean squared error of each image: [B, S, S, C] twice -> [B]."""
    return ((image - decoded) ** 2).mean(axis=(1, 2, 3))


def ssim(image: jax.Array, decoded: jax.Array) -> jax.Array:
    """Return the structural similarity (Wang et al. 2004): [B, S, S, C] twice -> [B].

    It is the mean over channels and over all Gaussian windows inside the image, from population
    variances. S is at least SSIM_WINDOW.
    """
    x, y = image, decoded
    mean_x, mean_y, xx, yy, xy = jnp.split(
        _windows(jnp.concatenate([x, y, x * x, y * y, x * y], axis=-1)), 5, axis=-1
    )
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + C1) * (variances + C2))
    return similarity.mean(axis=(1, 2, 3))


def _windows(x: jax.Array) -> jax.Array:
    """Return the Gaussian means of all windows: [B, S, S, F] -> [B, S-10, S-10, F]."""
    row = np.exp(-((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) ** 2) / (2 * SIGMA**2))
    row = jnp.asarray(row / row.sum(), jnp.float32)
    height, width = (side - SSIM_WINDOW + 1 for side in x.shape[1:3])
    x = jnp.asarray(sum(row[i] * x[:, i : i + height] for i in range(SSIM_WINDOW)))
    return jnp.asarray(sum(row[i] * x[:, :, i : i + width] for i in range(SSIM_WINDOW)))
