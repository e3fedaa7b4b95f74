"""A class for each pixel: an encoder, frozen or not, and a head on its tokens.

Shapes: B batch, S image side, G side of the logits, C classes. A label map has classes, and
masks.IGNORED (below 0) where a pixel does not count.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from supmim import losses, metrics
from supmim.config import Config
from supmim.data import masks
from supmim.data.augment import views
from supmim.data.images import Images
from supmim.models import segmentation as model
from supmim.tasks.supmim import to_input


class Segmentation:
    """Cross-entropy of logits upsampled to the label map; every image counts alike."""

    frozen = None

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fixed = ("encoder",) if config.optimizer.frozen == "encoder" else ()
        self.model = model.create(config)

    def init(self, rng: jax.Array) -> Any:
        """Parameters of encoder and head."""
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        return self.model.init(rng, image)["params"]

    def fingerprint(self) -> dict[str, str]:
        """Nothing besides config and data."""
        return {}

    def tokenize(self, frozen: None, batch: dict) -> dict:
        """A raw batch as it is: nothing here predicts ids."""
        return batch

    def prepare(self, batch: dict) -> dict:
        """Raw batch -> image [B, S, S, C] in [0, 1] and label_map [B, S, S], moved alike."""
        data = self.config.data
        keys = views.example_keys(data.seed, batch["epoch"], batch["index"])
        image = views.geometry(keys, views.to_float(batch["image"]), data)
        label_map = jnp.asarray(batch["label_map"], jnp.int32)
        return {
            "image": views.class_view(keys, image, data),
            "label_map": views.label_geometry(keys, label_map, data, masks.IGNORED),
            "valid": batch["valid"],
        }

    def draw(self, batch: dict, rng: jax.Array) -> dict:
        """Nothing is drawn over a whole batch."""
        return batch

    def loss_fn(self, params: Any, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
        """Mean loss of the images, and totals of what is logged."""
        label_map, valid = batch["label_map"], batch["valid"]
        rngs = dict(zip(("dropout", "stochastic_depth"), jax.random.split(rng), strict=True))
        logits = self.model.apply(
            {"params": params}, to_input(batch["image"]), train=True, fixed=bool(self.fixed),
            rngs=rngs,
        )  # fmt: skip
        logits = upsampled(logits, label_map.shape[1])
        loss = metrics.mean(losses.pixel_cross_entropy(logits, label_map), valid)
        counted = losses.flat((label_map >= 0).astype(jnp.float32))
        correct = losses.flat((logits.argmax(axis=-1) == label_map).astype(jnp.float32))
        seen = (
            jnp.zeros(logits.shape[-1])
            .at[label_map]
            .add((label_map >= 0) * valid[:, None, None], mode="drop")
        )
        return loss.compute(), {
            "loss": metrics.scalar(loss.compute()),
            "pixel_loss": loss,
            "pixel_accuracy": metrics.mean(losses.masked_mean(correct, counted), valid),
            "classes_seen": metrics.CodeUsage(seen),
        }

    def after_update(self, params: Any, totals: dict) -> tuple[Any, dict]:
        """Gradients change all there is."""
        return params, totals

    def predict(self, params: Any, batch: dict) -> dict:
        """Raw batch of square images of any side -> logits [B, G, G, C]."""
        image = to_input(views.to_float(batch["image"]))
        return {"logits": self.model.apply({"params": params}, image)}


def upsampled(logits: jax.Array, side: int) -> jax.Array:
    """[B, G, G, C] -> [B, side, side, C], bilinear."""
    return jax.image.resize(logits, (len(logits), side, side, logits.shape[-1]), "bilinear")


def abstract(config: Config) -> Segmentation:
    """The task of a config without data: enough to trace and compile it."""
    return Segmentation(config)


def create(config: Config, images: Images, workdir: Path) -> Segmentation:
    """The task of a run."""
    return Segmentation(config)
