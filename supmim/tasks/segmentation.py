"""Segmentation, a class for each pixel: an encoder, frozen or not, and a head on its tokens.

Shapes: B batch, S image side, G side of the logits, C classes. A label map holds classes, and
masks.IGNORED (below 0) where a pixel is not counted.
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
from supmim.models import segmentation as networks
from supmim.tasks.base import Drawn, Prepared, Step, Task, Terms


class Segmentation(Task):
    """Cross-entropy of logits upsampled to the label map; every image has the same weight."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fixed = ("encoder",) if config.optimizer.frozen == "encoder" else ()
        self.model = networks.create(config)

    @classmethod
    def abstract(cls, config: Config, frozen: bool = True) -> "Segmentation":
        return cls(config)

    @classmethod
    def create(cls, config: Config, images: Images, workdir: Path) -> "Segmentation":
        return cls(config)

    def init(self, rng: jax.Array) -> Any:
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        return self.model.init(rng, image)["params"]

    def prepare(self, batch: Raw) -> Prepared:
        """See Task: class views, and label maps that are moved in the same way."""
        data = self.config.data
        keys = views.example_keys(data.seed, batch["epoch"], batch["index"])
        image = views.geometry(keys, views.to_float(batch["image"]), data)
        label_map = jnp.asarray(batch.get("label_map"), jnp.int32)
        return Prepared(
            class_view=views.class_view(keys, image, data),
            label_map=views.label_geometry(keys, label_map, data, masks.IGNORED),
            valid=batch["valid"],
        )

    def loss_fn(self, params: Any, batch: Drawn, rng: jax.Array, step: Step = 0) -> Terms:
        label_map, valid = batch.label_map, batch.valid
        dropout_rng, depth_rng = jax.random.split(rng)
        rngs = {"dropout": dropout_rng, "stochastic_depth": depth_rng}
        logits: Any = self.model.apply(
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
        """See Task: logits [B, G, G, C] of square images of any side."""
        image = views.to_input(views.to_float(batch["image"]))
        logits: Any = self.model.apply({"params": params}, image)
        return {"logits": logits}

    def patch_tokens(self, params: Any, batch: Raw) -> jax.Array:
        """See Task."""
        image = views.to_input(views.to_float(batch["image"]))
        encode = networks.Segmenter.encode
        encoded: Any = self.model.apply({"params": params}, image, method=encode)
        return encoded.latent


def upsampled(logits: jax.Array, side: int) -> jax.Array:
    """Resize logits [B, G, G, C] to [B, side, side, C], bilinear."""
    return jax.image.resize(logits, (len(logits), side, side, logits.shape[-1]), "bilinear")
