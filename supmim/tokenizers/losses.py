"""Losses of tokenizers: pure functions that return one value per example unless stated otherwise.

Shapes: B batch, S image side, C channels, h w latent grid, D size of a code, K codes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from supmim.tokenizers import codes as codes_lib


def _per_example(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


def l1(image: jax.Array, decoded: jax.Array) -> jax.Array:
    """Return the mean absolute error: [B, S, S, C] twice -> [B]."""
    return _per_example(jnp.abs(image - decoded))


def l2(image: jax.Array, decoded: jax.Array) -> jax.Array:
    """Return the mean squared error: [B, S, S, C] twice -> [B]."""
    return _per_example((image - decoded) ** 2)


RECONSTRUCTION = {"l1": l1, "l2": l2}


# Quantization: "Neural Discrete Representation Learning", arXiv 1711.00937.


def straight_through(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Return the codes, with the gradient of the latents: section 3.2."""
    return latents + jax.lax.stop_gradient(codes - latents)


def commitment(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Move latents to their codes, equation 3, third term: [B, h, w, D] twice -> [B]."""
    return _per_example((latents - jax.lax.stop_gradient(codes)) ** 2)


def codebook(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Move codes to their latents, equation 3, second term: [B, h, w, D] twice -> [B]."""
    return _per_example((jax.lax.stop_gradient(latents) - codes) ** 2)


def entropy(
    latents: jax.Array, codebook: jax.Array, valid: jax.Array, temperature: float
) -> jax.Array:
    """Return MaskGIT's entropy loss, one value for the batch: [B, h, w, D], [K, D], [B] -> ().

    With p = softmax(-distance / temperature), it is the mean entropy of p, which rewards clear
    choices, less the entropy of the mean of p over the batch, which rewards an even use of codes.
    Source: google-research/maskgit, vqgan_tokenizer (arXiv 2202.04200).
    """
    distance = codes_lib.distances(latents, codebook)
    log_p = jax.nn.log_softmax(-distance / temperature, axis=-1)
    p = jnp.exp(log_p)
    weight = jnp.broadcast_to((valid / valid.sum())[:, None, None], p.shape[:-1])
    weight = weight / (p.shape[1] * p.shape[2])
    entropy_of_p = -(p * log_p).sum(axis=-1)
    mean_p = (p * weight[..., None]).sum(axis=(0, 1, 2))
    entropy_of_mean = -(mean_p * jnp.log(mean_p + 1e-5)).sum()  # 1e-5 as in the public code
    return (entropy_of_p * weight).sum() - entropy_of_mean


# Adversarial losses, elementwise on logits of any shape.

# name -> (generator's loss of fake logits, discriminator's loss of real and fake logits)
ADVERSARIAL = {
    "non_saturating": (  # "Generative Adversarial Nets", arXiv 1406.2661, section 3 and equation 1
        lambda fake: jax.nn.softplus(-fake),
        lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
    ),
    "hinge": (  # "Geometric GAN", arXiv 1705.02894; halved as in taming-transformers, 2012.09841
        lambda fake: -fake,
        lambda real, fake: 0.5 * (jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)),
    ),
}


def r1(discriminator: Callable[[jax.Array], jax.Array], image: jax.Array) -> jax.Array:
    """Return the squared norm [B] of the logits' gradient (arXiv 1801.04406, equation 9).

    discriminator: [B, S, S, C] -> [B]. An image's effect on the logits of other images, through a
    statistic of the batch, is part of its gradient.
    """
    gradient = jax.grad(lambda x: discriminator(x).sum())(image)
    return (gradient**2).sum(axis=(1, 2, 3))


def lecam(
    real: jax.Array, fake: jax.Array, average_real: jax.Array, average_fake: jax.Array
) -> jax.Array:
    """Keep logits near the other side's average ("GANs under Limited Data", arXiv 2104.03310).

    Equation 3 with the hinge of the public code: only logits beyond the other side's average cost.
    Logits [B, ...] of any shape and two averages () -> the shape of the logits.
    """
    return jax.nn.relu(real - average_fake) ** 2 + jax.nn.relu(average_real - fake) ** 2
