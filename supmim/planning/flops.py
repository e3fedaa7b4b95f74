"""Floating-point operations of a program, counted in its jaxpr, and of a config, by formula.

A multiplication and its addition are 2 FLOPs. Only matrix products and convolutions count.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from supmim import masking
from supmim.config import Config, options
from supmim.tasks import targets
from supmim.tasks.masked_steps import SCOPE


def count(fn: Callable, *args: Any, taken: float = 1.0) -> float:
    """Return the FLOPs of fn(*args) without compiling or running it; args: arrays or their shapes.

    A scan counts as often as it iterates. A while loop, whose length is unknown, counts once. What
    `jax.checkpoint` recomputes counts again, and a cond takes its most expensive branch. taken:
    share of the calls that have a masked pass, for those conds that decide on it.
    """
    return _in_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr, taken)


def _in_jaxpr(jaxpr: core.Jaxpr, taken: float) -> float:
    return float(sum(_in_equation(eqn, taken) for eqn in jaxpr.eqns))


def _in_equation(eqn: core.JaxprEqn, taken: float) -> float:
    name = eqn.primitive.name.removesuffix("_wrapper")
    if name in PRODUCTS:
        return PRODUCTS[name](eqn.params, *(var.aval for var in (eqn.outvars[0], *eqn.invars)))
    inside = [_in_jaxpr(jaxpr, taken) for jaxpr in core.jaxprs_in_params(eqn.params)]
    if name == "cond":
        share = taken if SCOPE in str(eqn.source_info.name_stack) else 1.0
        return share * max(inside) + (1 - share) * min(inside)
    return sum(inside) * (eqn.params["length"] if name == "scan" else 1)


def _dot(params: dict[str, Any], output: Any, left: Any, _right: Any) -> float:
    (contracted, _), _ = params["dimension_numbers"]
    return 2.0 * output.size * math.prod(left.shape[axis] for axis in contracted)


def _convolution(params: dict[str, Any], output: Any, _image: Any, kernel: Any) -> float:
    """Return the FLOPs: each output value sums over the window and its group's input channels."""
    features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * output.size * kernel.size / features


def _attention(products: int, _params: Any, _output: Any, query: Any, key: Any, *_: Any) -> float:
    """Return the FLOPs of cuDNN's kernels on [B, N, H, d], [B, M, H, d]; a product is B H N M d."""
    return 2.0 * products * query.size * key.shape[1]


PRODUCTS: dict[str, Callable[..., float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    # Scores and mix; backward, the scores again and the gradients of both products.
    "dot_product_attention_fwd": functools.partial(_attention, 2),
    "dot_product_attention_bwd": functools.partial(_attention, 5),
}


class PerImage(NamedTuple):
    """Forward FLOPs of one image through each part of a step, as a mean over images and steps."""

    class_pass: float
    masked_pass: float
    classifier: float
    decoder: float

    @property
    def train(self) -> float:
        """FLOPs of a training step: the backward pass costs twice the forward pass."""
        return 3 * sum(self)


def analytic(config: Config) -> PerImage:
    """Return the FLOPs of a config by formula, without recomputation and without the tokenizer.

    A block costs 8 D^2 + 4 D M per token and 4 D per pair of tokens, for width D and MLP size M.
    Images and steps without one of the passes count as 0 in the means over all of them.
    """
    encoder, head, mim = config.encoder, config.classifier, config.mim
    num_tokens = config.grid**2
    unit = mim.unit if mim.masking == "units" else 1
    hidden = masking.num_hidden(num_tokens, mim.mask_ratio, unit)
    entering = num_tokens if mim.hidden == "mask_token" else num_tokens - hidden
    kept = num_tokens - masking.num_hidden(num_tokens, 1 - config.class_pass.keep)
    masked = float(mim.rows) * mim.step_share if config.mim_weight else 0.0
    two = mim.passes == "two" or not masked
    classifies = config.classifies or mim.passes == "one"
    labelled = float(config.labelled_share) if classifies else 0.0
    classified = labelled + masked * (mim.soft_target_weight > 0)
    rep = head.rep_size or encoder.width
    classifier = 2 * rep * (head.num_classes + (encoder.width if head.rep_size else 0))
    return PerImage(
        class_pass=labelled * _encoder(config, kept) if two else 0.0,
        masked_pass=masked * _encoder(config, entering),
        classifier=classified * classifier,
        decoder=masked and masked * _decoder(config, entering, num_tokens, hidden),
    )


def _blocks(group: options.Encoder | options.Decoder, num_tokens: int) -> float:
    per_token = 8 * group.width**2 + 4 * group.width * group.mlp_dim
    return group.depth * (num_tokens * per_token + 4 * num_tokens**2 * group.width)


def _encoder(config: Config, num_tokens: int) -> float:
    encoder = config.encoder
    patch = encoder.patch_size**2 * config.data.channels
    embedding = 2 * num_tokens * patch * encoder.width
    blocks = _blocks(encoder, num_tokens + encoder.extra_tokens)
    if encoder.pool == "map":
        probe = 4 * encoder.width**2 + 4 * encoder.width * encoder.mlp_dim
        pool = num_tokens * (4 * encoder.width**2 + 4 * encoder.width) + probe
        return embedding + blocks + pool
    return embedding + blocks


def _decoder(config: Config, entering: int, num_tokens: int, hidden: int) -> float:
    decoder = config.decoder
    all_of_them = config.mim.masking == "variable" or config.mim.loss_on == "all"
    predicted = num_tokens if all_of_them else hidden
    return (
        2 * entering * config.encoder.width * decoder.width
        + _blocks(decoder, num_tokens)
        + 2 * predicted * decoder.width * targets.create(config).size
    )
