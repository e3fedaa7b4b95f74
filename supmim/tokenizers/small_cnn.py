"""A small convolutional network that learns classes: its features say what a patch belongs to.

Unlike a ViT's, each of its features sees only the surroundings of its patch. Shapes: B batch, S
image side, C channels, N patches, D features.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from supmim import losses
from supmim.config import Config
from supmim.data.augment import views
from supmim.data.images import Images
from supmim.data.sources import joined
from supmim.data.sources.base import evenly
from supmim.models.classifier import Classifier
from supmim.models.encoder import Encoded
from supmim.models.layers import LayerNorm
from supmim.runtime.progress import doing
from supmim.tokenizers import inputs

LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 4e-3, 0.05, 1.0
MOST_ROWS = 64  # of a step, which is not split over devices


class SmallCNN(nn.Module):
    """Two convolutions at every scale from the pixels to the patches, channels doubling.

    filters: channels of the first scale.
    """

    patch_size: int
    filters: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image: jax.Array) -> Encoded:
        """Encode [B, S, S, C] to features of its patches and their mean."""
        channels, dtype = self.filters, jnp.dtype(self.dtype)
        x = nn.Conv(channels, (3, 3), dtype=dtype, name="first")(image)
        for i, stride in enumerate(strides(self.patch_size)):
            channels *= 2
            x = nn.gelu(LayerNorm(dtype=dtype, name=f"norm_{i}")(x))
            side = (max(3, stride),) * 2
            x = nn.Conv(channels, side, (stride, stride), dtype=dtype, name=f"down_{i}")(x)
            y = nn.gelu(LayerNorm(dtype=dtype, name=f"norm_{i}_branch")(x))
            x = x + nn.Conv(channels, (3, 3), dtype=dtype, name=f"branch_{i}")(y)
        x = LayerNorm(dtype=dtype, name="norm")(x)
        latent = x.reshape(len(x), -1, channels)
        return Encoded(latent, latent.mean(axis=1).astype(jnp.float32), {})


def strides(patch_size: int) -> list[int]:
    """Return factors whose product is the patch size: twos, then what is left."""
    twos = (patch_size & -patch_size).bit_length() - 1
    left = patch_size >> twos
    return [2] * twos + [left] * (left > 1)


class Learned(NamedTuple):
    """A network that has learned classes, its head, and {"network": ..., "head": ...}."""

    network: SmallCNN
    head: Classifier
    params: Any

    def logits(self, params: Any, image: jax.Array) -> Any:
        """Return logits [B, K] of images [B, S, S, C] in [0, 1]; params: such as self.params."""
        encoded: Any = self.network.apply({"params": params["network"]}, views.to_input(image))
        return self.head.apply({"params": params["head"]}, encoded.embedding)

    def frozen(self, dtype: str) -> tuple[SmallCNN, Any]:
        """Return the network, computing in a dtype, and its parameters."""
        return self.network.clone(dtype=dtype), self.params["network"]

    def top1(self, images: Images) -> float:
        """Return the share of images whose class it predicts."""
        find = jax.jit(lambda params, image: self.logits(params, views.to_float(image)).argmax(-1))
        right = []
        for rows in np.array_split(np.arange(len(images)), -(-len(images) // inputs.CHUNK)):
            batch = images.read_valid(rows)
            right.append(np.asarray(find(self.params, inputs.crops(batch))) == batch["label"])
        return float(np.concatenate(right).mean())


def train(config: Config, images: Images) -> Learned:
    """Return a network that has learned, in float32, the classes of the images with labels.

    It sees class views of config.tokenizer.fit_images evenly spaced images; AdamW, cosine schedule.
    """
    sizes, data = config.tokenizer, config.data
    count = len(joined.labelled(images.source))  # they come first
    batch = images.read_valid(evenly(count, min(sizes.fit_images, count)).astype(np.int32))
    pixels, label, index = inputs.crops(batch), batch["label"], batch["index"]
    head = Classifier(config.classifier.num_classes)
    learned = Learned(SmallCNN(sizes.patch_size, sizes.filters), head, {})
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, sizes.network_steps)
    adamw = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    tx = optax.chain(optax.clip_by_global_norm(MAX_NORM), adamw)

    def loss_fn(params: Any, keys: jax.Array, image: jax.Array, label: jax.Array) -> jax.Array:
        image = views.geometry(keys, views.to_float(image), data)
        logits = learned.logits(params, views.class_view(keys, image, data))
        target = losses.one_hot(label, head.num_classes, config.classifier.label_smoothing)
        return losses.softmax_cross_entropy(logits, target).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, *batch: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss_fn)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    keys = jax.random.split(jax.random.key(data.seed))
    encoded: Any
    encoded, own = learned.network.init_with_output(
        keys[0], views.to_float(jnp.asarray(pixels[:1]))
    )
    params = {"network": own["params"], "head": head.init(keys[1], encoded.embedding)["params"]}
    state, rng = tx.init(params), np.random.default_rng(data.seed)
    with doing("training the tokenizer's network", sizes.network_steps) as advance:
        for step in range(sizes.network_steps):
            rows = rng.integers(len(index), size=min(config.batch_size, MOST_ROWS))
            epoch, drawn = jnp.full(len(rows), step), jnp.asarray(index[rows])
            view_keys = views.example_keys(data.seed, epoch, drawn)
            params, state = update(params, state, view_keys, pixels[rows], label[rows])
            advance(1)
    return learned._replace(params=jax.device_get(params))
