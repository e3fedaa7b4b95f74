"""What a tokenizer sees: images at its own size, and the views that it is fitted on."""

import functools
from typing import Any

import jax
import numpy as np

from supmim.config import Config
from supmim.data.augment import views
from supmim.data.images import Images
from supmim.data.sources.base import evenly

CHUNK = 512  # images that are moved at once


def shown(batch: dict) -> Any:
    """Its uint8 images of a raw batch: at a size of their own, where they have one."""
    return batch["tokenizer_image"] if "tokenizer_image" in batch else batch["image"]


def first(config: Config, images: Images) -> np.ndarray:
    """MIM views of config.tokenizer.fit_images images in the first epoch: float32 [n, T, T, C]."""
    count = min(config.tokenizer.fit_images, len(images))
    move = jax.jit(functools.partial(views.geometry, data=config.data))

    def view(index: np.ndarray) -> np.ndarray:
        keys = views.example_keys(config.data.seed, np.zeros_like(index), index)
        return np.asarray(move(keys, views.to_float(shown(images.read(index)))))

    index = evenly(len(images), count).astype(np.int32)
    parts = np.split(index, range(CHUNK, count, CHUNK))
    return np.concatenate([view(part) for part in parts])
