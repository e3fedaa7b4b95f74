"""The quality of a tokenizer's reconstructions, against k-means codes of patches at equal cost."""

import contextlib
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim import sharding
from supmim.config import Config
from supmim.data.augment import views
from supmim.data.images import Images
from supmim.data.sources.base import evenly
from supmim.errors import ConfigError
from supmim.evaluators.lib import code_statistics
from supmim.evaluators.lib.predictions import Arrays, Predictions
from supmim.report import decoded
from supmim.tokenizers import kmeans, patch_vq, quality


def summarize_quality(out: Arrays) -> dict[str, float]:
    """Return `psnr` of the data set's mean squared error, and `ssim` if images are large enough."""
    results = {"psnr": quality.psnr(out["squared_error"].astype(np.float64).mean())}
    if "ssim" in out:
        results["ssim"] = float(out["ssim"].astype(np.float64).mean())
    return results


def fit_patch_vq(images: Images, config: Config) -> patch_vq.PatchVQ | None:
    """Fit patch_vq of the same patch and codebook sizes to images that are evenly taken.

    None if there are fewer patches than codes.
    """
    sizes = config.tokenizer
    enough = math.ceil(kmeans.MOST_POINTS / (config.data.image_size // sizes.patch_size) ** 2)
    index = evenly(len(images), min(sizes.fit_images, enough, len(images)))
    image = images.read_valid(index)["image"].astype(np.float32) / 255
    with contextlib.suppress(ConfigError):
        return patch_vq.fit(
            image,
            codebook_size=sizes.codebook_size,
            patch_size=sizes.patch_size,
            steps=sizes.fit_steps,
            seed=config.data.seed,
        )
    return None


def patch_vq_quality(tokenizer: patch_vq.PatchVQ, batch: dict) -> dict[str, jax.Array]:
    """Return the quality of the reconstructions of a raw batch, with `valid`."""
    image = views.to_float(batch["image"])
    found = quality.of(image, tokenizer.decode(tokenizer.encode(image)).clip(0, 1))
    return found | {"valid": jnp.asarray(batch["valid"])}


class Evaluator:
    """tokenizer/psnr, ssim (if a side has 11 pixels), code_usage, code_perplexity.

    floor/patch_vq_*: the same for k-means codes of equal number and patch size. If images have
    classes also class_information, and its floor.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.codebook_size = predictions, config.tokenizer.codebook_size
        self.pictures, self._last, self._images = config.eval.pictures, {}, 0
        everywhere = sharding.replicated(predictions.mesh)
        self._reconstruct = jax.jit(predictions.task.reconstruct, out_shardings=everywhere)
        self.patch_vq = fit_patch_vq(predictions.sources["train"], config)
        self.floors = {}
        if self.patch_vq is not None:
            measure = functools.partial(patch_vq_quality, self.patch_vq)
            out = predictions.collect(jax.jit(measure, out_shardings=everywhere), "eval")
            results = summarize_quality(out)
            self.floors = {f"floor/patch_vq_{name}": value for name, value in results.items()}

    def run(self, params: Any) -> dict[str, float]:
        out = self.predictions.of(params, "eval")
        self._images = len(out["index"])
        index = out["index"][evenly(len(out["index"]), self.pictures)]
        image = self.predictions.sources["eval"].read(index)["image"]
        image = views.to_float(jnp.asarray(image))
        self._last = {"image": image}
        if self.patch_vq is not None:
            ids = self.patch_vq.encode(image)
            self._last["k-means codes of patches"] = self.patch_vq.decode(ids)
        self._last["tokenizer"] = self._reconstruct(params, image)
        results = {f"tokenizer/{name}": x for name, x in summarize_quality(out).items()}
        return (
            results | code_statistics.of(out["ids"], out["label"], self.codebook_size) | self.floors
        )

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "images against what the tokenizer gives back",
            "feature": "pixels in [0, 1]",
            "metric": "PSNR of the mean squared error, mean SSIM, use of codes, class information",
            "codes": self.codebook_size,
            "images": self._images,
        }

    def draw(self, folder: Path) -> None:
        rows = {name: np.asarray(pictures) for name, pictures in self._last.items()}
        decoded.draw(folder / "decoded.png", rows)
