"""Segmentation without a trained head: a patch takes the classes of the patches most like it.

After Balazevic et al. (arXiv 2306.01667). The bank has patch tokens of training images, each with
the share that every class has of its counted pixels. An evaluation patch takes the mean of its
nearest neighbours' shares, weighted by exp(cosine / T). Shapes: B rows of a batch, P side of a
window, N patches of it, D width of tokens, k neighbours, C classes.
"""

import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim import sharding
from supmim.config import Config
from supmim.data import crop
from supmim.data.images import Bad
from supmim.data.sources.base import evenly
from supmim.evaluators import segmentation
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib.predictions import SOURCES, Predictions
from supmim.runtime import hosts
from supmim.runtime.progress import doing

BANK_IMAGES = 4096  # of the training source at most, each with one window
PATCHES_PER_IMAGE = 16  # at most
NEIGHBOURS = 30  # as in open-hummingbird-eval, a reproduction of the paper
TEMPERATURE = 0.02  # likewise; it prefers patches of rare classes, and searches approximately


def class_shares(pixels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the share of each class: classes of pixels [n, pixels] -> [n, C], float32.

    Pixels that do not count are left out; at least one pixel of each row counts.
    """
    counts = (pixels[:, :, None] == np.arange(num_classes)).sum(axis=1, dtype=np.float32)
    return counts / counts.sum(axis=1, keepdims=True)


def vote(similarity: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the weighted mean of neighbours' shares: [n, k], [n, k, C] -> [n, C]."""
    weights = ranking.weights(similarity, TEMPERATURE)
    return np.einsum("nk,nkc->nc", weights / weights.sum(axis=1, keepdims=True), shares)


class Evaluator(segmentation.Evaluator):
    """patch_knn/miou, pixel_accuracy, mean_accuracy, and iou/NAME of each class.

    Floors are those of `segmentation`. The head is not used. Windows overlap only at the edge of an
    image, whatever config.segmentation.stride is.
    """

    name, scored = "patch_knn", "the patch tokens"

    def __init__(self, predictions: Predictions, config: Config) -> None:
        super().__init__(predictions, config)
        self.stride, self.patch_size = self.side, config.encoder.patch_size
        self.mib = config.eval.similarity_mib
        everywhere = sharding.replicated(predictions.mesh)
        compiled = functools.partial(jax.jit, out_shardings=everywhere)
        self._some_tokens, self._unit_tokens = map(compiled, (self.some_tokens, self.unit_tokens))

    def tokens(self, params: Any, image: jax.Array) -> jax.Array:
        """Return patch tokens [B, N, D], float32."""
        batch: Any = {"image": image}
        return self.predictions.task.patch_tokens(params, batch).astype(jnp.float32)

    def some_tokens(self, params: Any, image: jax.Array, chosen: jax.Array) -> jax.Array:
        """Return the tokens of the chosen patches of each image: [B, n] -> [B, n, D]."""
        return jnp.take_along_axis(self.tokens(params, image), chosen[:, :, None], axis=1)

    def unit_tokens(self, params: Any, image: jax.Array) -> jax.Array:
        """Return patch tokens [B, N, D] of length 1; not finite where a token has no length."""
        tokens = self.tokens(params, image)
        return tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)

    def run(self, params: Any) -> dict[str, float]:
        """Return the results; raise what segmentation does, also for the training images.

        NumericsError if tokens cannot be compared.
        """
        rows, shares = self.known_patches(params)
        self._bank_size = len(rows)
        self._bank, self._shares = ranking.Bank(rows, self.predictions.mesh, self.mib), shares
        results = super().run(params)
        del self._bank, self._shares
        return results

    def known_patches(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return unit tokens [n, D] of random patches of training images, and their shares [n, C].

        Every process reads the same images.
        """
        source, bad = self.predictions.sources["train"], list[Bad]()
        index, size = evenly(len(source), BANK_IMAGES).tolist(), self.predictions.batch_size
        windows, tokens, shares = self.random_windows(index, bad), [], []
        with doing(SOURCES["train"], len(index)) as advance:
            for _ in range(0, len(index), size):  # as many batches on a host that lacks some images
                batch = np.zeros((size, self.side, self.side, self.channels), np.uint8)
                chosen, count = np.zeros((size, PATCHES_PER_IMAGE), np.int32), [0] * size
                for row, (window, patches, own) in enumerate(itertools.islice(windows, size)):
                    batch[row], count[row] = window, len(patches)
                    chosen[row, : len(patches)] = patches
                    shares.append(own)
                placed = (self.placed(rows[self.rows]) for rows in (batch, chosen))
                found = jax.device_get(self._some_tokens(params, *placed))
                tokens += [found[row, :n] for row, n in enumerate(count)]
                advance(size)
        unreadable = hosts.gather(json.dumps([image.index for image in bad]))
        segmentation.check_same_unreadable(source.name, unreadable)
        self.predictions.record_missing("train", len(bad))
        segmentation.check_counted(source, len(index), len(bad), sum(map(len, shares)))
        rows = ranking.unit(np.concatenate(tokens), source.name, "patch")
        return rows, np.concatenate(shares)

    def random_windows(
        self, index: list[int], bad: list[Bad]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield a window [P, P, channels] of each image, patches of it, and their shares."""
        rng, num_classes = np.random.default_rng(0), len(self.class_names)
        for image in self.read("train", index, bad):
            window, labels = self.random_window(image, rng)
            side, size = self.side // self.patch_size, self.patch_size
            pixels = labels.reshape(side, size, side, size).swapaxes(1, 2).reshape(side * side, -1)
            counted = np.flatnonzero((pixels >= 0).any(axis=1))
            patches = rng.permutation(counted)[:PATCHES_PER_IMAGE]
            yield window, patches, class_shares(pixels[patches], num_classes)

    def random_window(
        self, image: segmentation.Image, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels [P, P, channels] and the label map [P, P] of a window of an image."""
        height, width = image.pixels.shape[:2]
        y, x = (int(rng.integers(length - self.side + 1)) for length in (height, width))
        rows, columns = (n / m for n, m in zip(image.truth.shape, (height, width), strict=True))
        box = (x * columns, y * rows, (x + self.side) * columns, (y + self.side) * rows)
        window = image.pixels[y : y + self.side, x : x + self.side]
        return window, crop.resize_ids(image.truth, box, self.side)

    def scores(self, params: Any, batch: np.ndarray) -> np.ndarray:
        """Return the neighbours' shares of classes [rows, G, G, C] of a batch of windows."""
        tokens = jax.device_get(self._unit_tokens(params, self.placed(batch)))
        count, patches, width = tokens.shape
        similarity, ids = self._bank.nearest(tokens.reshape(-1, width), NEIGHBOURS)
        similarity, ids = (x.reshape(count, patches, -1) for x in (similarity, ids))
        each = [vote(similarity[row], self._shares[ids[row]]) for row in self.rows]
        side = self.side // self.patch_size
        return np.stack(each).reshape(len(each), side, side, -1)

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {
            "what": "classes of pixels: shares of classes, upsampled to the masks' own size; "
            "averaged as for segmentation",
            "feature": "patch tokens after the last norm, L2-normalised",
            "search": "cosine, exact",
            "k": min(NEIGHBOURS, self._bank_size),
            "T": TEMPERATURE,
            "bank": self._bank_size,
            "bank_images": min(BANK_IMAGES, len(self.predictions.sources["train"])),
        }
