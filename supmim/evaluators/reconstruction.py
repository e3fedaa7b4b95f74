"""How well hidden tokens are predicted, and what the predictions look like."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import sharding
from supmim.data import augment
from supmim.data.sources import evenly
from supmim.evaluators.predictions import Predictions
from supmim.report import reconstructions
from supmim.tokenizers import online


class Evaluator:
    """reconstruction/token_accuracy over all hidden tokens, with one fixed mask per image.

    floor/token_accuracy: always answering the most frequent code among them.
    """

    def __init__(self, predictions: Predictions, config: Any) -> None:
        self.predictions, self.task = predictions, predictions.task
        self.pictures, self.patch_size = config.eval.pictures, config.encoder.patch_size
        mesh = predictions.mesh
        self._tokenize = online.Tokenize(
            self.task.tokenize_whole, mesh, config.tokenizer.microbatch
        )
        self._fill_in = jax.jit(self.task.fill_in, out_shardings=sharding.replicated(mesh))
        self._last: dict[str, np.ndarray] = {}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""

        def fill_in(batch):
            return self._fill_in(params, self._tokenize(self.task.frozen, batch))

        self._last = out = self.predictions.collect(fill_in, "eval")
        hidden = out["mask"] > 0
        targets, filled = out["target_ids"][hidden], out["filled_ids"][hidden]
        if not targets.size:
            return {}
        return {
            "reconstruction/token_accuracy": float((targets == filled).mean()),
            "floor/token_accuracy": float(np.bincount(targets).max() / len(targets)),
        }

    def draw(self, folder: Path) -> None:
        """reconstructions.png of evenly taken images."""
        index = self._last["index"]
        rows = evenly(len(index), self.pictures)
        shown = self.predictions.sources["eval"].read(index[rows])["image"]
        decode = jax.jit(self.task.frozen.decode)
        reconstructions.draw(
            folder / "reconstructions.png",
            image=np.asarray(augment.to_float(shown)),
            mask=self._last["mask"][rows],
            filled=np.asarray(decode(self._last["filled_ids"][rows])),
            tokenized=np.asarray(decode(self._last["target_ids"][rows])),
            patch_size=self.patch_size,
        )
