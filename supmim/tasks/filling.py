"""Hidden patches filled in with predictions, on whole images with one fixed mask each.

Shapes: B batch, N patches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from supmim.data.augment import views
from supmim.masking import TokenMask
from supmim.models.supmim import Network
from supmim.tasks.targets import Target


class Filled(NamedTuple):
    """target: [B, N, ...]; filled: the same, with predictions if hidden; mask: [B, N]."""

    target: jax.Array
    filled: jax.Array
    mask: jax.Array


def fill_in(
    model: Network,
    params: Any,
    target: Target,
    image: jax.Array,
    target_ids: jax.Array | None,
    token_mask: TokenMask,
) -> Filled:
    """Predict the hidden patches of images [B, S, S, C] in [0, 1]; target_ids: [B, N]."""
    predicted: Any = model.apply(
        {"params": params}, views.to_input(image), token_mask, method="predict_tokens"
    )
    expected, rows = target.of(image, target_ids), jnp.arange(len(image))[:, None]
    answers = expected.at[rows, token_mask.ids_predict].set(target.answer(predicted))
    hidden = token_mask.mask.reshape(token_mask.mask.shape + (1,) * (expected.ndim - 2)) > 0
    return Filled(expected, jnp.where(hidden, answers, expected), token_mask.mask)
