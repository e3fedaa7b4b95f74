"""The classifier of an embedding: an optional tanh layer, then a head that starts at zero."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Classifier(nn.Module):
    """Embeddings [B, D] -> logits [B, C], float32.

    rep_size: size of the tanh layer before the head; 0: none. head_bias: initial value of logits.
    """

    num_classes: int
    rep_size: int = 0
    head_bias: float = 0.0

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        x = embedding.astype(jnp.float32)
        if self.rep_size:
            x = jnp.tanh(nn.Dense(self.rep_size, name="representation")(x))
        return nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(self.head_bias),
            name="head",
        )(x)
