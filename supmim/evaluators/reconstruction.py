"""Reconstruction of hidden patches: how well their target is predicted, and pictures of it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import sharding
from supmim.config import Config
from supmim.data.sources.base import evenly
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import reconstructions
from supmim.runtime import devices
from supmim.tokenizers import online


class Evaluator:
    """The results of the task's target over all hidden patches, with one fixed mask per image."""

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.task = predictions, predictions.task
        self.count, self.patch_size = config.eval.pictures, config.encoder.patch_size
        self.mim, self._images = config.mim, 0
        mesh, microbatch = predictions.mesh, config.tokenizer.microbatch
        self._tokenize = online.Tokenize(self.task.tokenize_whole, mesh, microbatch)
        everywhere = sharding.replicated(mesh)
        self._fill_in = jax.jit(self.task.fill_in, out_shardings=everywhere)
        self._pictures = jax.jit(self.task.pictures, out_shardings=everywhere)
        self._drawn: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        def fill_in(batch):
            return self._fill_in(params, self._tokenize(self.task.frozen, batch))

        scores = self.predictions.collect(fill_in, "eval")
        self._images = len(scores["index"])
        self._drawn = self.pictures(params, scores["index"])
        return self.task.fill_in_results(scores)

    def pictures(self, params: Any, index: np.ndarray) -> dict[str, Any]:
        """Return `image`, `mask` and `pictures` of images evenly taken from an index.

        A collective computation: every host takes part.
        """
        index = index[evenly(len(index), self.count)].astype(np.int32)
        batch = self.predictions.sources["eval"].read(index)
        batch |= {"index": index, "epoch": np.zeros_like(index)}
        with devices.compiling_quickly(devices.on_cpu(self.predictions.mesh)):  # it runs once
            shown = jax.device_get(self._pictures(params, self.task.frozen, batch))
        return shown | {"image": batch["image"].astype(np.float32) / 255}

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "targets of hidden patches, one fixed mask per image",
            "feature": "decoder",
            "metric": f"{self.mim.target}, as predicted",
            "masking": self.mim.masking,
            "mask_ratio": self.mim.mask_ratio,
            "images": self._images,
        }

    def draw(self, folder: Path) -> None:
        reconstructions.draw(
            folder / "reconstructions.png",
            image=self._drawn["image"],
            mask=self._drawn["mask"],
            patch_size=self.patch_size,
            columns=self._drawn["pictures"],
        )
