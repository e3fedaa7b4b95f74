"""The images that a tokenizer sees: crops at its own size, and the views that it is fitted on."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim.config import Config
from supmim.data.augment import views
from supmim.data.images import Images
from supmim.data.raw import Raw
from supmim.data.sources.base import evenly

CHUNK = 512  # images that are augmented at once


def crops(batch: Raw | dict[str, np.ndarray]) -> Any:
    """Return a batch's uint8 crops for the tokenizer: those at its own size, if there are any."""
    return batch["tokenizer_image"] if "tokenizer_image" in batch else batch["image"]


def first_views(config: Config, images: Images) -> np.ndarray:
    """Return the MIM views of the first epoch for fitting: float32 [n, T, T, C].

    There are config.tokenizer.fit_images of them, evenly spaced over the training images.
    """
    count = min(config.tokenizer.fit_images, len(images))
    geometry = jax.jit(functools.partial(views.geometry, data=config.data))

    def mim_views(index: np.ndarray) -> np.ndarray:
        keys = views.example_keys(config.data.seed, jnp.zeros_like(index), jnp.asarray(index))
        return np.asarray(geometry(keys, views.to_float(crops(images.read(index)))))

    index = evenly(len(images), count).astype(np.int32)
    parts = np.split(index, range(CHUNK, count, CHUNK))
    return np.concatenate([mim_views(part) for part in parts])
