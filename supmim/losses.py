"""Losses, one value per example; averages over a batch are made by metrics.py.

Shapes: B batch, C classes, M predicted patches, K codes, F values of a patch, H, W pixels. All in
float32.
"""

import jax
import jax.numpy as jnp
import optax


def one_hot(label: jax.Array, num_classes: int, label_smoothing: float) -> jax.Array:
    """[B] ids -> [B, C] probabilities, `label_smoothing` of them spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(label, num_classes), label_smoothing)


def softmax_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """[B, C], [B, C] -> [B], in nats."""
    return optax.softmax_cross_entropy(logits, probabilities)


def sigmoid_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """[B, C], [B, C] -> [B]: binary losses summed over the classes, as in big_vision."""
    return optax.sigmoid_binary_cross_entropy(logits, probabilities).sum(axis=-1)


CLASS_LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


def token_cross_entropy(
    logits: jax.Array, target_ids: jax.Array, mask: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Mean over an image's hidden tokens: [B, M, K], [B, M], [B, M] -> [B]; 0 if none is hidden."""
    targets = one_hot(target_ids, logits.shape[-1], label_smoothing)
    token_loss = optax.softmax_cross_entropy(logits, targets)
    return masked_mean(token_loss, mask)


def patch_squared_error(predicted: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the values of hidden patches: [B, M, F], [B, M, F], [B, M] -> [B]; 0 if none is."""
    return masked_mean(((predicted - target) ** 2).mean(axis=-1), mask)


def pixel_cross_entropy(logits: jax.Array, label_map: jax.Array) -> jax.Array:
    """Mean over an image's pixels that count: [B, H, W, C], [B, H, W] -> [B]; 0 if none does.

    A class below 0 does not count.
    """
    counted = (label_map >= 0).astype(jnp.float32)
    pixel_loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label_map, 0))
    return masked_mean(flat(pixel_loss), flat(counted))


def flat(x: jax.Array) -> jax.Array:
    """[B, H, W] -> [B, H * W]."""
    return x.reshape(len(x), -1)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the values where mask is 1: [B, M], [B, M] -> [B]; 0 where it is 0 everywhere."""
    return (values * mask).sum(axis=-1) / jnp.maximum(mask.sum(axis=-1), 1)
