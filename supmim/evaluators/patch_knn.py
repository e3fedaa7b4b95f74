"""Segmentation without a trained head: a patch takes the classes of the patches most like it.

After Balazevic et al. (arXiv 2306.01667). The bank has patch tokens of training images, each with
the share that every class has of its pixels. An evaluation patch takes the mean of the shares of
its nearest neighbours, weighted by exp(cosine / T). Windows overlap only at the edge of an image.
Shapes: B rows of a batch, P side of a window, N patches of it, D width, M patches of the bank,
k neighbours, C classes.
"""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim import sharding
from supmim.config import Config
from supmim.data import crop
from supmim.data.images import Bad
from supmim.data.sources.base import evenly
from supmim.errors import DataError
from supmim.evaluators import segmentation
from supmim.evaluators.lib import predictions as predictions_lib
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib.predictions import Predictions
from supmim.runtime import hosts

IMAGES = 4096  # of the training source at most, each with one window
PATCHES = 16  # of a window at most
NEIGHBOURS = 30
TEMPERATURE = 0.02


def class_shares(labels: np.ndarray, patch_size: int, num_classes: int) -> np.ndarray:
    """Return what share of a patch's pixels each class has: label map [P, P] -> [N, C], float32."""
    side = len(labels) // patch_size
    cells = labels.reshape(side, patch_size, side, patch_size).swapaxes(1, 2)
    pixels = cells.reshape(side * side, -1, 1)
    return (pixels == np.arange(num_classes)).mean(axis=1, dtype=np.float32)


def vote(similarity: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the weighted mean of neighbours' shares: [n, k], [n, k, C] -> [n, C]."""
    weight = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / TEMPERATURE)
    return np.einsum("nk,nkc->nc", weight / weight.sum(axis=1, keepdims=True), shares)


class Evaluator(segmentation.Evaluator):
    """patch_knn/miou, pixel_accuracy, mean_accuracy, and iou/NAME of each class; floors as there.

    The encoder's tokens are compared, whatever the head has learned from them.
    """

    name = "patch_knn"

    def __init__(self, predictions: Predictions, config: Config) -> None:
        super().__init__(predictions, config)
        self.stride, self.patch_size = self.side, config.encoder.patch_size
        self.mib = config.eval.similarity_mib
        everywhere = sharding.replicated(predictions.mesh)
        self._unit_tokens = jax.jit(self.unit_tokens, out_shardings=everywhere)

    def unit_tokens(self, params: Any, image: jax.Array) -> jax.Array:
        """Return patch tokens [B, N, D] of length 1, float32; tokens of length 0 stay."""
        batch: Any = {"image": image}
        tokens = self.predictions.task.patch_tokens(params, batch).astype(jnp.float32)
        return tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)

    def run(self, params: Any) -> dict[str, float]:
        """See segmentation; DataError also if no pixel of the training masks counts."""
        self._bank, self._shares = self.known_patches(params)
        return super().run(params)

    def known_patches(self, params: Any) -> tuple[ranking.Bank, np.ndarray]:
        """Return the bank of patches of training images, and their shares of classes [M, C].

        Every process reads the same images. From each comes one window, and random patches of it.
        """
        source, bad = self.predictions.sources["train"], list[Bad]()
        index, size = evenly(len(source), IMAGES), self.predictions.batch_size
        drawn, images = np.random.default_rng(0), self.read("train", index, bad)
        tokens, shares = [], []
        for _ in range(0, len(index), size):  # as many batches on a host that lacks some images
            batch = np.zeros((size, self.side, self.side, self.channels), np.uint8)
            chosen = []
            for row, image in enumerate(itertools.islice(images, size)):
                batch[row], labels = self.random_window(image, drawn)
                of_patches = class_shares(labels, self.patch_size, len(self.class_names))
                chosen.append(drawn.permutation(np.flatnonzero(of_patches.any(axis=1)))[:PATCHES])
                shares.append(of_patches[chosen[-1]])
            found = self.tokens(params, batch[self.rows])
            tokens += [found[row, some] for row, some in enumerate(chosen)]
        bad_ones = json.dumps([image.index for image in bad])
        segmentation.require_same(source.name, hosts.gather(bad_ones))
        self.predictions.record_missing("train", len(bad))
        if not sum(map(len, shares)):
            raise DataError(
                f"{source.name}: no pixel of its masks counts, so no patch has a class; "
                f"config.data.ignore_label={source.ignore_label} does not count"
            )
        bank = ranking.Bank(np.concatenate(tokens), self.predictions.mesh, self.mib)
        return bank, np.concatenate(shares)

    def random_window(
        self, image: segmentation.Image, drawn: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels [P, P, channels] and the label map [P, P] of a window of an image."""
        height, width = image.pixels.shape[:2]
        y, x = (int(drawn.integers(length - self.side + 1)) for length in (height, width))
        rows, columns = (n / m for n, m in zip(image.truth.shape, (height, width), strict=True))
        box = (x * columns, y * rows, (x + self.side) * columns, (y + self.side) * rows)
        window = image.pixels[y : y + self.side, x : x + self.side]
        return window, crop.resize_ids(image.truth, box, self.side)

    def tokens(self, params: Any, batch: np.ndarray) -> np.ndarray:
        """Return the tokens [B, N, D] of a batch of which every group has its rows.

        NumericsError if they are not finite.
        """
        tokens = jax.device_get(self._unit_tokens(params, self.placed(batch)))
        predictions_lib.check_finite(tokens, "patch tokens")
        return tokens

    def logits(self, params: Any, batch: np.ndarray) -> np.ndarray:
        """Return the neighbours' shares of classes [rows, G, G, C], as segmentation's logits."""
        tokens = self.tokens(params, batch)
        count, patches, width = tokens.shape
        similarity, ids = self._bank.nearest(tokens.reshape(-1, width), NEIGHBOURS)
        similarity, ids = (x.reshape(count, patches, -1) for x in (similarity, ids))
        each = [vote(similarity[row], self._shares[ids[row]]) for row in self.rows]
        side = self.side // self.patch_size
        return np.stack(each).reshape(len(each), side, side, -1)

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {
            "feature": "patch tokens after the last norm, L2-normalised; upsampled like logits",
            "search": "cosine, exact",
            "k": min(NEIGHBOURS, self._bank.length),
            "T": TEMPERATURE,
            "bank": self._bank.length,
        }
