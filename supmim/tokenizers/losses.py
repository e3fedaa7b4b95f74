"""Losses of tokenizers: pure functions, one value per example unless said.

Shapes: B batch, S image side, C channels, h w latent grid, D size of a code, K codes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from supmim.tokenizers import codes as codes_lib


def _per_example(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


def l1(image: jax.Array, decoded: jax.Array) -> jax.Array:
    """[B, S, S, C], [B, S, S, C] -> [B], mean absolute error."""
    return _per_example(jnp.abs(image - decoded))


def l2(image: jax.Array, decoded: jax.Array) -> jax.Array:
    """[B, S, S, C], [B, S, S, C] -> [B], mean squared error."""
    return _per_example((image - decoded) ** 2)


RECONSTRUCTION = {"l1": l1, "l2": l2}


# Quantization: "Neural Discrete Representation Learning", arXiv 1711.00937.


def straight_through(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """The codes, with the gradient of the latents: section 3.2."""
    return latents + jax.lax.stop_gradient(codes - latents)


def commitment(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """[B, h, w, D] twice -> [B]: equation 3, third term; moves latents to their codes."""
    return _per_example((latents - jax.lax.stop_gradient(codes)) ** 2)


def codebook(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """[B, h, w, D] twice -> [B]: equation 3, second term; moves codes to their latents."""
    return _per_example((jax.lax.stop_gradient(latents) - codes) ** 2)


def entropy(
    latents: jax.Array, codebook: jax.Array, valid: jax.Array, temperature: float
) -> jax.Array:
    """MaskGIT's entropy loss, one value: [B, h, w, D], [K, D], [B] -> ().

    With p = softmax(-distance / temperature): the mean entropy of p, which makes every choice
    clear, less the entropy of the mean p, which makes the codes used alike (google-research/
    maskgit, vqgan_tokenizer; after arXiv 2202.04200). The second is taken over the whole batch.
    """
    distance = codes_lib.distances(latents, codebook)
    log_p = jax.nn.log_softmax(-distance / temperature, axis=-1)
    p = jnp.exp(log_p)
    weight = jnp.broadcast_to((valid / valid.sum())[:, None, None], p.shape[:-1])
    weight = weight / (p.shape[1] * p.shape[2])
    of_each = -(p * log_p).sum(axis=-1)
    mean_p = (p * weight[..., None]).sum(axis=(0, 1, 2))
    of_mean = -(mean_p * jnp.log(mean_p + 1e-5)).sum()  # 1e-5 as in the public code
    return (of_each * weight).sum() - of_mean


# Adversaries: losses of logits of any shape, each for itself.


def non_saturating_generator(fake: jax.Array) -> jax.Array:
    """-log sigmoid(D(fake)): "Generative Adversarial Nets", arXiv 1406.2661, section 3."""
    return jax.nn.softplus(-fake)


def non_saturating_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """-log sigmoid(D(real)) - log(1 - sigmoid(D(fake))): the same, equation 1."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def hinge_generator(fake: jax.Array) -> jax.Array:
    """-D(fake): "Geometric GAN", arXiv 1705.02894."""
    return -fake


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Half the sum of both hinges, as in taming-transformers: arXiv 1705.02894, 2012.09841."""
    return 0.5 * (jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))


# name -> (generator's loss of fake logits, discriminator's of real and fake ones)
ADVERSARIAL = {
    "non_saturating": (non_saturating_generator, non_saturating_discriminator),
    "hinge": (hinge_generator, hinge_discriminator),
}


def r1(discriminator: Callable[[jax.Array], jax.Array], image: jax.Array) -> jax.Array:
    """[B]: squared norm of the logits' gradient at real images (arXiv 1801.04406, equation 9).

    discriminator: [B, S, S, C] -> [B]. What an image does to the logits of others, through a
    statistic of the batch, counts too.
    """
    gradient = jax.grad(lambda x: discriminator(x).sum())(image)
    return (gradient**2).sum(axis=(1, 2, 3))


def lecam(
    real: jax.Array, fake: jax.Array, average_real: jax.Array, average_fake: jax.Array
) -> jax.Array:
    """Regularisation towards the other side's average logit, "GANs under Limited Data".

    arXiv 2104.03310, equation 3, with the hinge of the public code: only logits beyond the
    other's average cost. Logits of any shape [B, ...] and two averages () -> the logits' shape.
    """
    return jax.nn.relu(real - average_fake) ** 2 + jax.nn.relu(average_real - fake) ** 2
