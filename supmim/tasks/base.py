"""The interface of a task to the step, the loop and the evaluators, with defaults.

Shapes: B batch, S image side, N patches, C classes, F features.
"""

from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from flax import struct

from supmim.config import Config
from supmim.data.raw import Raw
from supmim.metrics import Metrics

Step = jax.Array | int  # the number of a training step, from 0
Terms = tuple[jax.Array, Metrics]  # a weighted loss () and its metrics


@struct.dataclass
class Prepared:
    """A batch as a step takes it: augmented views in [0, 1], and targets that need no draw.

    class_view: [L, S, S, C], what the class loss sees of the L images with labels, before mixing;
    None means mim_view (one array in two fields would be stored twice). label: [L].
    class_valid: [L], their part of valid; None if all images have labels. mim_view: [B, S, S, C],
    what is masked and tokenized; None without masked image modelling. label_map: [B, S, S].
    target_ids: [B, N]. valid: [B].
    """

    class_view: Any = None
    class_valid: Any = None
    mim_view: Any = None
    label: Any = None
    label_map: Any = None
    target_ids: Any = None
    valid: Any = None


@struct.dataclass
class Drawn:
    """A prepared batch with what is drawn over all of it, such as masks and mixing.

    class_view: [L, S, S, C], mixed. class_target: [L, C], smoothed and mixed. class_mask,
    token_mask: masking.TokenMasks of the two passes; class_mask is None if all patches are kept.
    candidate: [B, N], latents that may replace unused codes. The others are those of Prepared.
    """

    candidate: Any = None
    class_mask: Any = None
    class_view: Any = None
    class_target: Any = None
    class_valid: Any = None
    mim_view: Any = None
    label: Any = None
    label_map: Any = None
    target_ids: Any = None
    token_mask: Any = None
    valid: Any = None


class Task:
    """Something to train: parameters, batches, a loss, and what evaluators compare.

    frozen: a pytree that training does not change, such as a tokenizer; None if there is none.
    fixed: groups of parameters without gradient and optimizer state.
    """

    frozen: Any = None
    fixed: tuple[str, ...] = ()

    @classmethod
    def abstract(cls, config: Config, frozen: bool = True) -> Self:
        """Return the task of a config without data: enough to trace and compile it.

        frozen: whether to include the frozen arrays, which may need a folder.
        """
        raise NotImplementedError

    @classmethod
    def create(cls, config: Config, images: Any, workdir: Path) -> Self:
        """Return the task of a run. images: the training data.images.Images."""
        raise NotImplementedError

    # Training.

    def init(self, rng: jax.Array) -> Any:
        """Return new parameters: a dict of groups."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, str]:
        """Return what, besides config and data, must be equal for a run to continue."""
        return {}

    def tokenize(self, frozen: Any, batch: Raw) -> Raw:
        """Add target_ids [B, N] to a raw batch, row by row; compiled by itself, it runs first."""
        return batch

    def prepare(self, batch: Raw) -> Prepared:
        """Make the views of a tokenized batch; compiled by itself."""
        raise NotImplementedError

    def draw(self, batch: Prepared, rng: jax.Array) -> Drawn:
        """Add what is drawn over the whole batch."""
        return Drawn(**vars(batch))

    def loss_fn(self, params: Any, batch: Drawn, rng: jax.Array, step: Step = 0) -> Terms:
        """Return the scalar loss and the metrics of a drawn batch, or of some of its rows.

        One of the metrics is `loss`.
        """
        raise NotImplementedError

    def after_update(self, params: Any, totals: Metrics) -> tuple[Any, Metrics]:
        """Change parameters by other means than gradients, from the metrics of the batch.

        The change is undone where the update was skipped. Returns the metrics to log.
        """
        return params, totals

    # Evaluation, on raw batches of whole images. A task needs only the methods that its evaluators
    # (`Facts.evaluators` in config/tasks.py) call.

    def predict(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        """Return what most evaluators compare, e.g. `embedding` [B, D] and `logits` [B, C]."""
        raise NotImplementedError

    def probe_features(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        """Return `features` [B, F] that linear classifiers are trained on."""
        raise NotImplementedError

    def patch_tokens(self, params: Any, batch: Raw) -> jax.Array:
        """Return patch tokens [B, N, D] after the last norm."""
        raise NotImplementedError

    def tokenize_whole(self, frozen: Any, batch: Raw) -> Raw:
        """Add target_ids [B, N] of images that are not augmented."""
        return batch

    def fill_in(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        """Return what `fill_in_results` needs of a batch with target_ids, with index and valid."""
        raise NotImplementedError

    def fill_in_results(self, scores: dict[str, np.ndarray]) -> dict[str, float]:
        """Return the results of `fill_in` over all images."""
        raise NotImplementedError

    def pictures(self, params: Any, frozen: Any, batch: Raw) -> dict[str, Any]:
        """Return `mask` [B, N] and `pictures`, {column title: [B, side, side, C]}."""
        raise NotImplementedError

    def reconstruct(self, params: Any, image: jax.Array) -> jax.Array:
        """Return what a tokenizer makes of images [B, S, S, C] in [0, 1]."""
        raise NotImplementedError
