"""The targets of prediction for hidden patches, by the names of config.mim.target.

Shapes: B batch, S image side, N patches, M predicted ones, K codes, F pixel values of a patch.
Images are float32 in [0, 1].
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from supmim import losses, metrics
from supmim.config import Config
from supmim.metrics import Metrics
from supmim.models import layers
from supmim.tasks.base import Drawn
from supmim.tokenizers import Tokenizer

EPSILON = 1e-6  # added to a patch's variance, as in MAE


class Target(Protocol):
    """A target of prediction.

    size: values that the decoder gives for a patch. columns: titles of `pictures`.
    """

    size: int
    columns: tuple[str, ...]

    def __init__(self, config: Config) -> None: ...

    def of(self, image: jax.Array, target_ids: jax.Array | None) -> jax.Array:
        """Return the target [B, N, ...] of every patch of MIM views and their target ids."""
        ...

    def loss(self, predicted: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
        """Return the mean loss [B] of hidden patches.

        predicted: [B, M, size]. target: [B, M, ...]. mask: [B, M], 1 = hidden.
        """
        ...

    def totals(
        self, predicted: jax.Array, target: jax.Array, mask: jax.Array, batch: Drawn
    ) -> Metrics:
        """Return the metrics that are logged besides the loss."""
        ...

    def answer(self, predicted: jax.Array) -> jax.Array:
        """Return the prediction in the form of the target: [B, M, size] -> [B, M, ...]."""
        ...

    def scores(self, target: jax.Array, filled: jax.Array, mask: jax.Array) -> dict:
        """Return what `results` needs of each image; filled: see tasks.filling."""
        ...

    def results(self, scores: dict[str, np.ndarray]) -> dict[str, float]:
        """Return the results from the scores of all images; empty if nothing was hidden."""
        ...

    def pictures(
        self, frozen: Tokenizer | None, image: jax.Array, target: jax.Array, filled: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Return a batch of pictures [B, side, side, C] for each of the columns."""
        ...


class Tokens:
    """The ids of a tokenizer; the loss is cross-entropy, in nats."""

    columns = ("filled in from\npredicted tokens", "tokenizer's own\nreconstruction")

    def __init__(self, config: Config) -> None:
        self.size, self.label_smoothing = config.tokenizer.codebook_size, config.mim.label_smoothing

    def of(self, image: jax.Array, target_ids: jax.Array | None) -> jax.Array:
        assert target_ids is not None
        return target_ids

    def loss(self, predicted: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
        return losses.token_cross_entropy(predicted, target, mask, self.label_smoothing)

    def totals(
        self, predicted: jax.Array, target: jax.Array, mask: jax.Array, batch: Drawn
    ) -> Metrics:
        """Return the accuracy on hidden patches, and the use of the codebook by all patches."""
        correct = (self.answer(predicted) == target).astype(jnp.float32)
        return {
            "token_accuracy": metrics.mean(losses.masked_mean(correct, mask), batch.valid),
            **metrics.code_metrics(batch.target_ids, self.size, batch.valid),
        }

    def answer(self, predicted: jax.Array) -> jax.Array:
        return predicted.argmax(axis=-1)

    def scores(self, target: jax.Array, filled: jax.Array, mask: jax.Array) -> dict:
        return {"target_ids": target, "filled_ids": filled, "mask": mask}

    def results(self, scores: dict[str, np.ndarray]) -> dict[str, float]:
        """Return the accuracy over all hidden patches; the floor predicts the commonest id."""
        hidden = scores["mask"] > 0
        targets, filled = scores["target_ids"][hidden], scores["filled_ids"][hidden]
        if not targets.size:
            return {}
        return {
            "reconstruction/token_accuracy": float((targets == filled).mean()),
            "floor/token_accuracy": float(np.bincount(targets).max() / len(targets)),
        }

    def pictures(
        self, frozen: Tokenizer, image: jax.Array, target: jax.Array, filled: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Return the images that the tokenizer decodes from `filled` and from `target`."""
        return frozen.decode(filled), frozen.decode(target)


class Pixels:
    """The pixels of a patch as the encoder sees them, in [-1, 1]; the loss is squared error."""

    columns = ("filled in with\npredicted pixels",)

    def __init__(self, config: Config) -> None:
        self.patch_size, self.channels = config.encoder.patch_size, config.data.channels
        self.size = self.patch_size**2 * self.channels

    def patches(self, image: jax.Array) -> jax.Array:
        """Return the patches [B, N, F], in [-1, 1], of images [B, S, S, C]."""
        return 2 * layers.patchify(image, self.patch_size) - 1

    def of(self, image: jax.Array, target_ids: jax.Array | None) -> jax.Array:
        return self.patches(image)

    def loss(self, predicted: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
        return losses.patch_squared_error(predicted, target, mask)

    def totals(
        self, predicted: jax.Array, target: jax.Array, mask: jax.Array, batch: Drawn
    ) -> Metrics:
        return {}

    def answer(self, predicted: jax.Array) -> jax.Array:
        return predicted

    def scores(self, target: jax.Array, filled: jax.Array, mask: jax.Array) -> dict:
        """Return squared errors [B] where hidden: of predictions and of the mean visible patch."""
        visible = 1 - mask[..., None]
        mean = (target * visible).sum(axis=1) / jnp.maximum(visible.sum(axis=1), 1)
        spread = ((target - mean[:, None]) ** 2).mean(axis=-1)
        error = ((target - filled) ** 2).mean(axis=-1)
        return {"error": (error * mask).sum(axis=1), "spread": (spread * mask).sum(axis=1)}

    def results(self, scores: dict[str, np.ndarray]) -> dict[str, float]:
        """Return 1 - error / baseline error; the baseline predicts the mean visible patch."""
        error, spread = scores["error"].sum(), scores["spread"].sum()
        return {"reconstruction/pixels_explained": float(1 - error / spread)} if spread else {}

    def pictures(
        self, frozen: None, image: jax.Array, target: jax.Array, filled: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Return the predictions where patches are hidden, and the image elsewhere."""
        return (layers.unpatchify((filled + 1) / 2, self.patch_size, self.channels),)


class NormalizedPixels(Pixels):
    """Pixels minus the mean of their patch, divided by its deviation: MAE's norm_pix_loss."""

    columns = ("predicted pixels, at each\npatch's own mean, contrast",)

    def of(self, image: jax.Array, target_ids: jax.Array | None) -> jax.Array:
        patches = self.patches(image)
        mean, deviation = self.statistics(patches)
        return (patches - mean) / deviation

    def statistics(self, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the mean and the unbiased deviation [B, N, 1]."""
        variance = patches.var(axis=-1, keepdims=True, ddof=1)
        return patches.mean(axis=-1, keepdims=True), (variance + EPSILON) ** 0.5

    def pictures(
        self, frozen: None, image: jax.Array, target: jax.Array, filled: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Return pictures with the true mean and deviation of patches, which are not predicted."""
        mean, deviation = self.statistics(self.patches(image))
        return super().pictures(frozen, image, target, filled * deviation + mean)


TARGETS = {"tokens": Tokens, "pixels": Pixels, "normalized_pixels": NormalizedPixels}


def create(config: Config) -> Target:
    """Return the target of a config."""
    return TARGETS[config.mim.target](config)
