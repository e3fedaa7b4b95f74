"""Losses, one value per example; metrics.py averages them over a batch.

Shapes: B batch, C classes, M predicted patches, K codes, F values of a patch, H, W pixels. All in
float32.
"""

import jax
import jax.numpy as jnp
import optax


def one_hot(label: jax.Array, num_classes: int, label_smoothing: float) -> jax.Array:
    """Return probabilities [B, C] of ids [B]; `label_smoothing` is spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(label, num_classes), label_smoothing)


def softmax_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Return the cross-entropy [B], in nats, of logits and probabilities [B, C]."""
    return optax.softmax_cross_entropy(logits, probabilities)


def sigmoid_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Return binary cross-entropies [B], summed over the classes [B, C], as in big_vision."""
    return optax.sigmoid_binary_cross_entropy(logits, probabilities).sum(axis=-1)


CLASS_LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}  # from the same logits


def token_cross_entropy(
    logits: jax.Array, target_ids: jax.Array, mask: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Return the mean loss [B] of an image's hidden tokens; 0 if none is hidden.

    logits: [B, M, K]. target_ids: [B, M]. mask: [B, M], 1 = hidden.
    """
    is_target = jax.nn.one_hot(target_ids, logits.shape[-1], dtype=bool)
    expected_logit = logits.sum(axis=-1, where=is_target)
    if label_smoothing:
        expected_logit += label_smoothing * (logits.mean(axis=-1) - expected_logit)
    return masked_mean(jax.nn.logsumexp(logits, axis=-1) - expected_logit, mask)


def patch_squared_error(predicted: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean squared error [B] of hidden patches [B, M, F]; 0 if none is hidden."""
    return masked_mean(((predicted - target) ** 2).mean(axis=-1), mask)


def pixel_cross_entropy(logits: jax.Array, label_map: jax.Array) -> jax.Array:
    """Return the mean loss [B] of an image's pixels; 0 if none is counted.

    logits: [B, H, W, C]. label_map: [B, H, W]; a pixel of a class below 0 is not counted.
    """
    counted = (label_map >= 0).astype(jnp.float32)
    pixel_loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label_map, 0))
    return masked_mean(flat(pixel_loss), flat(counted))


def flat(x: jax.Array) -> jax.Array:
    """Reshape [B, H, W] to [B, H * W]."""
    return x.reshape(len(x), -1)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean [B] of values [B, M] where mask is 1; 0 where it is 0 everywhere."""
    return (values * mask).sum(axis=-1) / jnp.maximum(mask.sum(axis=-1), 1)
