"""Pictures of what is embedded where: all images as points, and the patches of some as colours.

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
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import embedding_map, patches

NEIGHBOURHOODS = range(10, 501)  # images that exact t-SNE is for, seconds of it; else PCA
MOST = 5000  # points of a map, evenly taken
SPREAD = (1, 99)  # percentiles of a component that become 0 and 1


def placed(rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Unit embeddings [n, D] -> places [n, 2] and how they were found; the same every time."""
    if len(rows) not in NEIGHBOURHOODS:
        return components(rows, 2), "first two principal components"
    perplexity = min(30.0, (len(rows) - 1) / 3)
    nearby = TSNE(
        metric="cosine", init="random", perplexity=perplexity, random_state=0, method="exact"
    )  # fmt: skip
    return nearby.fit_transform(rows), f"t-SNE by cosine, perplexity {perplexity:.3g}"


def components(rows: np.ndarray, count: int) -> np.ndarray:
    """[n, D] -> the first principal components [n, count]; 0 where there are fewer."""
    if len(rows) < 2:
        return np.zeros((len(rows), count))
    values = PCA(min(count, *rows.shape), svd_solver="full").fit_transform(rows)
    return np.pad(values, ((0, 0), (0, count - values.shape[1])))


def coloured(tokens: np.ndarray) -> np.ndarray:
    """[n, N, D] -> [n, N, 3] in [0, 1]: the first components over all patches of all images."""
    values = components(tokens.reshape(-1, tokens.shape[-1]).astype(np.float64), 3)
    low, high = np.percentile(values, SPREAD, axis=0)
    shares = (values - low) / np.maximum(high - low, 1e-12)
    return shares.clip(0, 1).reshape(*tokens.shape[:2], 3)


class Evaluator:
    """embedding_map.png and patches.png, of evaluation images; no results."""

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.count = predictions, config.eval.pictures
        self.mib, self._last = config.eval.similarity_mib, {}
        everywhere = sharding.replicated(predictions.mesh)
        self._tokens = jax.jit(predictions.task.patch_tokens, out_shardings=everywhere)

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        out = self.predictions.of(params, "eval")
        rows, _ = self.predictions.bank(params, "eval", self.mib)
        some = evenly(len(rows), MOST)
        few = out["index"][evenly(len(rows), self.count)]
        image = self.predictions.sources["eval"].read(few)["image"]
        tokens = np.asarray(self._tokens(params, {"image": image}), np.float32)
        self._last = {
            "rows": rows[some], "label": out["label"][some], "image": image, "tokens": tokens,
        }  # fmt: skip
        return {}

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "pictures of evaluation images",
            "feature": "embedding, L2-normalised; patch tokens after the last norm",
            "images": len(self._last["label"]),
        }

    def draw(self, folder: Path) -> None:
        """Both pictures."""
        rows, label, image, tokens = self._last.values()
        points, how = placed(rows)
        embedding_map.draw(
            folder / "embedding_map.png", points=points, label=label,
            class_names=self.predictions.sources["eval"].class_names,
            title=f"{len(points):,} evaluation images by class: {how}",
        )  # fmt: skip
        grid = int(tokens.shape[1] ** 0.5)
        colours = coloured(tokens).reshape(len(image), grid, grid, 3)
        patches.draw(folder / "patches.png", image=image, colours=colours)
