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
from supmim.data.raw import Raw
from supmim.metrics import Metrics
from supmim.models import segmentation as networks
from supmim.tasks.base import Drawn, Prepared, Task


class Segmentation(Task):
    """Cross-entropy of logits upsampled to the label map; every image counts alike."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fixed = ("encoder",) if config.optimizer.frozen == "encoder" else ()
        self.model = networks.create(config)

    @classmethod
    def abstract(cls, config: Config) -> "Segmentation":
        """See Task."""
        return cls(config)

    @classmethod
    def create(cls, config: Config, images: Images, workdir: Path) -> "Segmentation":
        """See Task."""
        return cls(config)

    def init(self, rng: jax.Array) -> Any:
        """Parameters of encoder and head."""
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        return self.model.init(rng, image)["params"]

    def prepare(self, batch: Raw) -> Prepared:
        """Raw batch -> image [B, S, S, C] in [0, 1] and label_map [B, S, S], moved alike."""
        data = self.config.data
        keys = views.example_keys(data.seed, batch["epoch"], batch["index"])
        image = views.geometry(keys, views.to_float(batch["image"]), data)
        label_map = jnp.asarray(batch["label_map"], jnp.int32)
        return Prepared(
            class_view=views.class_view(keys, image, data),
            label_map=views.label_geometry(keys, label_map, data, masks.IGNORED),
            valid=batch["valid"],
        )

    def loss_fn(self, params: Any, batch: Drawn, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean loss of the images, and totals of what is logged."""
        label_map, valid = batch.label_map, batch.valid
        rngs = dict(zip(("dropout", "stochastic_depth"), jax.random.split(rng), strict=True))
        logits = self.model.apply(
            {"params": params},
            views.to_input(batch.class_view),
            train=True,
            fixed=bool(self.fixed),
            rngs=rngs,
        )
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

    def predict(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        """Raw batch of square images of any side -> logits [B, G, G, C]."""
        image = views.to_input(views.to_float(batch["image"]))
        return {"logits": self.model.apply({"params": params}, image)}


def upsampled(logits: jax.Array, side: int) -> jax.Array:
    """[B, G, G, C] -> [B, side, side, C], bilinear."""
    return jax.image.resize(logits, (len(logits), side, side, logits.shape[-1]), "bilinear")
