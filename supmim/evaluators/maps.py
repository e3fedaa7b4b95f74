"""Pictures of where embeddings lie: images as points, and the patches of a few images as colours.

Shapes: n images, N patch tokens, D width.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from supmim import sharding
from supmim.config import Config
from supmim.data.sources.base import evenly
from supmim.errors import counted
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import embedding_map, patches

NEIGHBOURHOODS = range(10, 501)  # numbers of images for exact t-SNE, which takes seconds; else PCA
MOST = 5000  # points of a map, evenly taken
SPREAD = (1, 99)  # percentiles of a component that become 0 and 1


def project(rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Return points [n, 2] for unit embeddings [n, D] and the name of the method; deterministic."""
    if len(rows) not in NEIGHBOURHOODS:
        return principal_components(rows, 2), "first two principal components"
    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(
        metric="cosine", init="random", perplexity=perplexity, random_state=0, method="exact"
    )
    return tsne.fit_transform(rows), f"t-SNE by cosine, perplexity {perplexity:.3g}"


def principal_components(rows: np.ndarray, count: int) -> np.ndarray:
    """Return the first components [n, count] of [n, D]; 0 where there are fewer."""
    if len(rows) < 2:
        return np.zeros((len(rows), count))
    values = PCA(min(count, *rows.shape), svd_solver="full").fit_transform(rows)
    return np.pad(values, ((0, 0), (0, count - values.shape[1])))


def patch_colours(tokens: np.ndarray) -> np.ndarray:
    """Return the first three components over the patches of all images: [n, N, D] -> [n, N, 3]."""
    values = principal_components(tokens.reshape(-1, tokens.shape[-1]).astype(np.float64), 3)
    low, high = np.percentile(values, SPREAD, axis=0)
    shares = (values - low) / np.maximum(high - low, 1e-12)
    return shares.clip(0, 1).reshape(*tokens.shape[:2], 3)


class Evaluator:
    """embedding_map.png and patches.png of evaluation images; no results."""

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.count = predictions, config.eval.pictures
        self.mib, self._last = config.eval.similarity_mib, {}
        everywhere = sharding.replicated(predictions.mesh)
        self._tokens = jax.jit(predictions.task.patch_tokens, out_shardings=everywhere)

    def run(self, params: Any) -> dict[str, float]:
        out = self.predictions.of(params, "eval")
        rows, _ = self.predictions.bank(params, "eval", self.mib)
        some = evenly(len(rows), MOST)
        few = out["index"][evenly(len(rows), self.count)]
        image = self.predictions.sources["eval"].read(few)["image"]
        tokens = np.asarray(self._tokens(params, {"image": image}), np.float32)
        self._last = {"rows": rows[some], "label": out["label"][some]}
        self._last |= {"image": image, "tokens": tokens}
        return {}

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "pictures of evaluation images",
            "feature": "embedding, L2-normalised; patch tokens after the last norm",
            "images": len(self._last["label"]),
        }

    def draw(self, folder: Path) -> None:
        rows, label, image, tokens = self._last.values()
        points, how = project(rows)
        embedding_map.draw(
            folder / "embedding_map.png",
            points=points,
            label=label,
            class_names=self.predictions.sources["eval"].class_names,
            title=f"{counted(len(points), 'evaluation image')} by class: {how}",
        )
        grid = int(tokens.shape[1] ** 0.5)
        colours = patch_colours(tokens).reshape(len(image), grid, grid, 3)
        patches.draw(folder / "patches.png", image=image, colours=colours)
