"""The classifier on corrupted evaluation images: how much it depends on what photographs lack.

The kinds are four of ImageNet-C (arXiv 1903.12261), computed on the device at the size that the
encoder sees; the numbers are not those of its files. Shapes: B batch, S image side, C channels,
V kinds times strengths. Images are float32 in [0, 1].
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from supmim.config import Config
from supmim.data.augment import views
from supmim.data.raw import Raw
from supmim.evaluators.classification import top_k
from supmim.evaluators.lib.predictions import Predictions

Corruption = Callable[[jax.Array, jax.Array, float], jax.Array]  # keys [B], images, strength


def noise(keys: jax.Array, image: jax.Array, deviation: float) -> jax.Array:
    """Add Gaussian noise, drawn from the key of each image."""
    drawn = jax.vmap(lambda key: jax.random.normal(key, image.shape[1:]))(keys)
    return image + deviation * drawn


def blur(keys: jax.Array, image: jax.Array, share: float) -> jax.Array:
    """Average with Gaussian weights, whose deviation is a share of the side, within the image."""
    side = image.shape[1]
    distance = np.arange(side)[:, None] - np.arange(side)
    weight = np.exp(-((distance / (share * side)) ** 2) / 2)
    rows = jnp.asarray(weight / weight.sum(axis=1, keepdims=True), jnp.float32)
    return jnp.einsum("ij,bjkc,lk->bilc", rows, image, rows)


def contrast(keys: jax.Array, image: jax.Array, factor: float) -> jax.Array:
    """Shrink the distance of every pixel to the image's mean, of each channel."""
    mean = image.mean(axis=(1, 2), keepdims=True)
    return mean + factor * (image - mean)


def pixelation(keys: jax.Array, image: jax.Array, share: float) -> jax.Array:
    """Shrink the image to a share of its side, at least one pixel, and enlarge it in squares."""
    batch, side, _, channels = image.shape
    small = max(1, round(share * side))
    shrunk = jax.image.resize(image, (batch, small, small, channels), "linear")
    return jax.image.resize(shrunk, image.shape, "nearest")


# Strengths 1, 3 and 5 of ImageNet-C but for blur, whose deviations there are in pixels.
KINDS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "noise": (noise, (0.08, 0.18, 0.38)),
    "blur": (blur, (1 / 64, 1 / 32, 1 / 16)),
    "contrast": (contrast, (0.4, 0.2, 0.05)),
    "pixelation": (pixelation, (0.6, 0.4, 0.25)),
}


def corrupted(batch: Raw) -> jax.Array:
    """Return a raw batch's images under every kind and strength, in order: [V, B, S, S, C].

    Values are in [0, 255] and not rounded: a tiny difference could round to a whole level.
    """
    keys = views.example_keys(0, batch["epoch"], batch["index"])
    image = views.to_float(batch["image"])
    each = [corrupt(keys, image, s) for corrupt, strengths in KINDS.values() for s in strengths]
    return 255 * jnp.stack(each).clip(0, 1)


class Evaluator:
    """corruptions/noise, blur, contrast, pixelation: mean top-1 over three strengths; top1: of all.

    Compare with classification/top1, of the same images without corruption.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.predict = predictions, predictions.task.predict

    def forward(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        """Return logits [B, V, classes] of the corrupted images."""

        def one(image: jax.Array) -> jax.Array:
            return self.predict(params, cast(Raw, {**batch, "image": image}))["logits"]

        return {"logits": jax.lax.map(one, corrupted(batch)).swapaxes(0, 1)}

    def run(self, params: Any) -> dict[str, float]:
        out = self.predictions.of(params, "eval", self.forward)
        tops = iter([top_k(x, out["label"], 1) for x in out["logits"].swapaxes(0, 1)])
        results = {
            f"corruptions/{kind}": float(np.mean([next(tops) for _ in strengths]))
            for kind, (_, strengths) in KINDS.items()
        }
        return results | {"corruptions/top1": float(np.mean(list(results.values())))}

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "the classifier's logits on corrupted images against the labels",
            "metric": "top-1, ties count against; means over strengths, then over kinds",
            "strengths": {kind: list(strengths) for kind, (_, strengths) in KINDS.items()},
        }

    def draw(self, folder: Path) -> None:
        pass
