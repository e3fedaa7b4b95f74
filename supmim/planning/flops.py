"""Floating-point operations of a program: counted in its jaxpr, and by formula for a config.

One multiplication with its addition is 2. Only matrix products and convolutions count.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

from supmim import masking
from supmim.config import Config
from supmim.tasks import targets


def count(fn: Callable, *args: Any) -> float:
    """FLOPs of fn(*args), args being arrays or their shapes: nothing runs, nothing is compiled.

    A scan counts as often as it turns, a cond as its dearest branch, a while loop, whose turns no
    program tells, as one turn; what `jax.checkpoint` recomputes counts again.
    """
    return _in_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _in_jaxpr(jaxpr: core.Jaxpr) -> float:
    return float(sum(map(_in_equation, jaxpr.eqns)))


def _in_equation(eqn: core.JaxprEqn) -> float:
    name = eqn.primitive.name.removesuffix("_wrapper")
    if name in PRODUCTS:
        return PRODUCTS[name](eqn)
    inside = [_in_jaxpr(jaxpr) for jaxpr in _inside(eqn.params)]
    if name == "cond":
        return max(inside)
    return sum(inside) * (eqn.params["length"] if name == "scan" else 1)


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs that an equation calls."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot(eqn: core.JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: core.JaxprEqn) -> float:
    """Every output value sums over the window and the input channels of its group."""
    kernel = eqn.invars[1].aval
    features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * eqn.outvars[0].aval.size * kernel.size / features


def _attention(products: int) -> Callable[[core.JaxprEqn], float]:
    """cuDNN's fused attention over [B, N, H, d] and [B, M, H, d]: B H N M d for each product."""

    def flops(eqn):
        query, key = eqn.invars[0].aval, eqn.invars[1].aval
        return 2.0 * products * query.size * key.shape[1]

    return flops


PRODUCTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd": _attention(2),  # scores, mix
    "dot_product_attention_bwd": _attention(5),  # scores again, and the gradients of both products
}


class PerImage(NamedTuple):
    """Forward FLOPs of one image through each part of a training step."""

    class_pass: float
    masked_pass: float
    classifier: float
    decoder: float

    @property
    def train(self) -> float:
        """Of a training step: backward costs twice the forward."""
        return 3 * sum(self)


def analytic(config: Config) -> PerImage:
    """FLOPs of a config by formula, nothing recomputed, the tokenizer left out.

    A block costs 8 D^2 + 4 D M per token and 4 D per pair of tokens, for width D and MLP size M.
    """
    encoder, head, mim = config.encoder, config.classifier, config.mim
    num_tokens = (config.data.image_size // encoder.patch_size) ** 2
    unit = mim.unit if mim.masking == "units" else 1
    hidden = masking.num_hidden(num_tokens, mim.mask_ratio, unit)
    entering = num_tokens if mim.hidden == "mask_token" else num_tokens - hidden
    has_decoder, two = config.mim_weight > 0, mim.passes == "two"
    rep = head.rep_size or encoder.width
    return PerImage(
        class_pass=_encoder(config, num_tokens) if two or not has_decoder else 0.0,
        masked_pass=_encoder(config, entering) if has_decoder else 0.0,
        classifier=2 * rep * (head.num_classes + (encoder.width if head.rep_size else 0)),
        decoder=_decoder(config, entering, num_tokens, hidden) if has_decoder else 0.0,
    )


def _blocks(group: Any, num_tokens: int) -> float:
    per_token = 8 * group.width**2 + 4 * group.width * group.mlp_dim
    return group.depth * (num_tokens * per_token + 4 * num_tokens**2 * group.width)


def _encoder(config: Config, num_tokens: int) -> float:
    encoder = config.encoder
    patch = encoder.patch_size**2 * config.data.channels
    embedding = 2 * num_tokens * patch * encoder.width
    if encoder.pool == "map":
        probe = 4 * encoder.width**2 + 4 * encoder.width * encoder.mlp_dim
        pool = num_tokens * (4 * encoder.width**2 + 4 * encoder.width) + probe
        return embedding + _blocks(encoder, num_tokens) + pool
    return embedding + _blocks(encoder, num_tokens + (encoder.pool == "cls"))


def _decoder(config: Config, entering: int, num_tokens: int, hidden: int) -> float:
    decoder = config.decoder
    predicted = num_tokens if config.mim.masking == "variable" else hidden
    return (
        2 * entering * config.encoder.width * decoder.width
        + _blocks(decoder, num_tokens)
        + 2 * predicted * decoder.width * targets.create(config).size
    )
