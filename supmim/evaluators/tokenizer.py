"""How well a tokenizer gives images back, beside k-means codes of patches at the same cost."""

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
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import decoded
from supmim.tokenizers import patch_vq, quality


def summary(out: dict[str, np.ndarray]) -> dict[str, float]:
    """`psnr`, of the data set's mean squared error, and `ssim` if images are large enough."""
    results = {"psnr": quality.psnr(out["squared_error"].astype(np.float64).mean())}
    if "ssim" in out:
        results["ssim"] = float(out["ssim"].astype(np.float64).mean())
    return results


def usage(ids: np.ndarray, codebook_size: int) -> dict[str, float]:
    """[n, N] -> share of the codes used, and exp(entropy) of their shares."""
    count = np.bincount(ids.ravel(), minlength=codebook_size)
    share = count[count > 0] / count.sum()
    return {
        "code_usage": float((count > 0).mean()),
        "code_perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }


def fitted(images: Images, config: Config) -> patch_vq.PatchVQ | None:
    """patch_vq of the same patch and codebook sizes, of readable training images evenly taken.

    None where there are fewer patches than codes.
    """
    sizes = config.tokenizer
    enough = math.ceil(patch_vq.MOST_PATCHES / (config.data.image_size // sizes.patch_size) ** 2)
    index = evenly(len(images), min(sizes.fit_images, enough, len(images)))
    arrays, bad = images.take(index, np.zeros_like(index))
    image = np.delete(arrays["image"], list(bad), axis=0)
    with contextlib.suppress(ConfigError):
        return patch_vq.fit(
            image.astype(np.float32) / 255, codebook_size=sizes.codebook_size,
            patch_size=sizes.patch_size, steps=sizes.fit_steps, seed=config.data.seed,
        )  # fmt: skip
    return None


class Evaluator:
    """tokenizer/psnr, ssim (if a side has 11 pixels), code_usage, code_perplexity.

    floor/patch_vq_*: the same of k-means codes, as many and of as many pixels, on the same images.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.codebook_size = predictions, config.tokenizer.codebook_size
        self.pictures, self._last, self._images = config.eval.pictures, {}, 0
        everywhere = sharding.replicated(predictions.mesh)
        self._reconstruct = jax.jit(predictions.task.reconstruct, out_shardings=everywhere)
        self.simple = fitted(predictions.sources["train"], config)
        self.floors = {}
        if self.simple is not None:
            floor = jax.jit(functools.partial(judged, self.simple), out_shardings=everywhere)
            out = predictions.collect(floor, "eval")
            self.floors = {f"floor/patch_vq_{name}": value for name, value in summary(out).items()}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        out = self.predictions.of(params, "eval")
        self._images = len(out["index"])
        index = out["index"][evenly(len(out["index"]), self.pictures)]
        image = views.to_float(self.predictions.sources["eval"].read(index)["image"])
        self._last = {"image": image}
        if self.simple is not None:
            simple = self.simple.decode(self.simple.encode(image))
            self._last["k-means codes of patches"] = simple
        self._last["tokenizer"] = self._reconstruct(params, image)
        results = summary(out) | usage(out["ids"], self.codebook_size)
        return {f"tokenizer/{name}": value for name, value in results.items()} | self.floors

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "images against what the tokenizer gives back", "feature": "pixels in [0, 1]",
            "metric": "PSNR of the mean squared error, mean SSIM, use of codes",
            "codes": self.codebook_size, "images": self._images,
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """decoded.png of evenly taken images."""
        rows = {name: np.asarray(pictures) for name, pictures in self._last.items()}
        decoded.draw(folder / "decoded.png", rows)


def judged(tokenizer: patch_vq.PatchVQ, batch: dict) -> dict[str, jax.Array]:
    """Raw batch -> `quality.of` its reconstructions, with `valid`."""
    image = views.to_float(batch["image"])
    found = quality.of(image, tokenizer.decode(tokenizer.encode(image)).clip(0, 1))
    return found | {"valid": jnp.asarray(batch["valid"])}
