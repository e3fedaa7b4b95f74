"""big_vision's ViTs: one npz of the parameters; also AugReg's and older layouts of it."""

import math
import re

import numpy as np

from supmim.config import Config, options
from supmim.errors import CheckpointError
from supmim.interop import arrays, vit
from supmim.interop.vit import Layout, Params, Tensors

WORDS = (
    ("classifier/", ""), ("encoder/norm/", "Transformer/encoder_norm/"), ("encoder/", ""),
    ("map_pool/norm", "MAPHead_0/LayerNorm_0"), ("map_pool/", "MAPHead_0/"),
    ("blocks/block_", "Transformer/encoderblock_"),
    ("attention_norm", "LayerNorm_0"), ("mlp_norm", "LayerNorm_1"),
    ("attention/", "MultiHeadDotProductAttention_0/"),
    ("mlp/up", "MlpBlock_0/Dense_0"), ("mlp/down", "MlpBlock_0/Dense_1"),
    ("positions", "pos_embedding"), ("representation", "pre_logits"),
)  # fmt: skip
OLDER = (
    (r"^(opt/target|params)/", ""),
    (r"^Transformer/posembed_input/", ""),
    (r"LayerNorm_2/", "LayerNorm_1/"),
    (r"MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
    (r"MlpBlock_3/", "MlpBlock_0/"),
    (r"^(probe$|(MlpBlock|MultiHeadDotProductAttention|LayerNorm)_0/)", r"MAPHead_0/\1"),
)
STACKED = "Transformer/encoderblock/"
WEIGHTS = "model.npz"  # in a folder of supmim export
SIDE = 224  # of images, where fixed positions leave it open


def to_big_vision(name: str, array: np.ndarray, patch_size: int) -> np.ndarray:
    """Return one of our parameters in big_vision's shape."""
    if name == "encoder/embedding/kernel":
        return array.reshape(patch_size, patch_size, -1, array.shape[-1])
    return array[None] if name == "encoder/positions" else array


LAYOUT = Layout(
    lambda name: vit.renamed(name, WORDS),
    to_big_vision,
    lambda name, array, shape: array.reshape(shape),
    ("head/", "pre_logits/", "MAPHead_0/"),
)


def tensors_of(params: Params, patch_size: int) -> Tensors:
    """Return the arrays of a big_vision npz.

    params: with `encoder/positions`, also where they are fixed: timm reads no npz without them.
    CheckpointError for LayerScale and registers, which big_vision does not have.
    """
    if odd := [name for name in params if name.endswith(("_scale", "registers"))]:
        raise CheckpointError(f"big_vision's ViT has no place for {odd[0]}; export with --to=timm")
    tensors = vit.exported(params, LAYOUT, patch_size)
    return {f"params/{name}": array for name, array in tensors.items()}


def plain(tensors: Tensors) -> Tensors:
    """Return the tensors of any layout of big_vision in the form that LAYOUT names.

    Positions of a class token are added to the token.
    """
    renamed = {}
    for name, array in tensors.items():
        for old, new in OLDER:
            name = re.sub(old, new, name)
        if name.startswith(STACKED):
            for i, leaf in enumerate(array):
                renamed[name.replace(STACKED, f"Transformer/encoderblock_{i}/")] = leaf
        else:
            renamed[name] = array
    positions = renamed.get("pos_embedding", np.zeros((1, 0, 0)))
    if "cls" in renamed and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1] - 1:
        renamed["cls"] = vit.with_positions(renamed["cls"], positions[:, :1])
        renamed["pos_embedding"] = positions[:, 1:]
    return renamed


def options_of(tensors: Tensors) -> Config:
    """Return the config of a ViT from its `plain` tensors; CheckpointError if not a ViT's."""
    kernel = tensors.get("embedding/kernel")
    query = tensors.get("Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel")
    up = tensors.get("Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel")
    shapes = [array.shape for array in (kernel, query, up) if array is not None]
    if kernel is None or query is None or up is None or list(map(len, shapes)) != [4, 3, 2]:
        raise CheckpointError("it lacks tensors of big_vision's ViT, e.g. embedding/kernel")
    patch_size, _, channels, width = kernel.shape
    positions = tensors.get("pos_embedding")
    side = SIDE if positions is None else math.isqrt(positions.shape[1]) * patch_size
    pool = "cls" if "cls" in tensors else "map" if "MAPHead_0/probe" in tensors else "gap"
    encoder = options.Encoder(
        patch_size=patch_size,
        width=width,
        depth=1 + arrays.highest(tensors, r"Transformer/encoderblock_(\d+)/.*"),
        num_heads=query.shape[1],
        mlp_dim=up.shape[1],
        positions="sincos2d" if positions is None else "learned",
        pool=pool,
    )
    head = tensors.get("head/bias", np.zeros(0))
    representation = tensors.get("pre_logits/bias", np.zeros(0))
    return Config(
        data=options.changed(options.Data(), train="", image_size=side, channels=channels),
        encoder=encoder,
        classifier=options.Classifier(num_classes=len(head), rep_size=len(representation)),
        mim_weight=0.0,
    )
