"""Published VQGAN weights: MaskGIT's Flax blobs, and safetensors of the PyTorch implementations.

A layout maps each of our parameters to the name and shape that it has in a published file. Names:
google-research/maskgit, as open-muse's converter reads it; MaskGitVQGAN of huggingface/open-muse;
VQModel of LTH14/mage, the same network; VQModel of CompVis/taming-transformers, another network.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from supmim.errors import CheckpointError, counted
from supmim.interop import arrays
from supmim.runtime.streams import printable
from supmim.tokenizers import folder as folder_lib
from supmim.tokenizers import taming, vqgan

# "loss.": discriminator and perceptual network of a Lightning checkpoint.
TRAINING_ONLY = ("loss.", arrays.OUTSIDE_PARAMS)
CODEBOOK = ("quantizer", "codebook")
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
MUSE_LAYERS = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Conv_2": "nin_shortcut",
}

Shapes = dict[str, tuple[int, ...]]  # by the names in a file
ParameterPath = tuple[str, ...]  # of one of our parameters


class Layout(NamedTuple):
    """The names and shapes of a network's parameters in a kind of published file.

    marker: a name that only such files have. name_of: our path and the network -> name in the file.
    sizes_of: shapes -> sizes of the network. torch: whether convolution kernels are [out, in, h, w]
    instead of [h, w, in, out].
    """

    name: str
    marker: str
    network: type[vqgan.Network]
    name_of: Callable[[ParameterPath, vqgan.Network], str]
    sizes_of: Callable[[Shapes], dict[str, Any]]
    torch: bool = True

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that one of our parameters has in a file."""
        is_kernel = self.torch and len(shape) == 4
        return tuple(shape[axis] for axis in (3, 2, 0, 1)) if is_kernel else shape

    def to_parameter(self, stored: np.ndarray) -> np.ndarray:
        """Return a tensor of a file as one of our parameters, float32."""
        array = stored.transpose(2, 3, 1, 0) if self.torch and stored.ndim == 4 else stored
        return np.ascontiguousarray(array, np.float32)


class Imported(NamedTuple):
    """A tokenizer, the name of the layout it came in, and tensors that only training needs."""

    tokenizer: vqgan.VQGAN
    layout: str
    left_out: list[str]


def read(path: Path) -> Imported:
    """Return the tokenizer in a published file.

    CheckpointError if the file is a pickle, is damaged, has no known layout, or lacks tensors.
    """
    if (path.parent / folder_lib.NOTE).is_file():
        raise CheckpointError(
            f"{path.parent} is a tokenizer already: set --config.tokenizer.path={path.parent}"
        )
    stored = arrays.read(path)
    left_out = [name for name in stored if name.startswith(TRAINING_ONLY)]
    stored = {name: array for name, array in stored.items() if name not in left_out}
    found = {name: array.shape for name, array in stored.items()}
    layout = layout_of(found, path)
    network = layout.network(**layout.sizes_of(found))
    try:
        shapes = vqgan.stored_shapes(network, len(found))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    flat: dict[ParameterPath, Any] = traverse_util.flatten_dict(shapes)
    names = {ours: layout.name_of(ours, network) for ours in flat}
    expected = {names[ours]: layout.stored_shape(leaf.shape) for ours, leaf in flat.items()}
    check_shapes(found, expected, path)
    params = {ours: layout.to_parameter(stored[name]) for ours, name in names.items()}
    if odd := [names[ours] for ours, array in params.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"{path} has values that are not finite, e.g. in {printable(odd[0])}")
    tokenizer = vqgan.VQGAN(traverse_util.unflatten_dict(params), network)
    return Imported(tokenizer, layout.name, left_out)


def layout_of(found: Shapes, path: Path) -> Layout:
    """Return the layout whose marker is among the names; CheckpointError if there is none."""
    for layout in LAYOUTS:
        if layout.marker in found:
            return layout
    some = ", ".join(printable(name)[: arrays.NAME_WIDTH] for name in sorted(found)[:4])
    markers = "".join(f"\n  {layout.marker}: {layout.name}" for layout in LAYOUTS)
    raise CheckpointError(
        f"{path} has {counted(len(found), 'tensor')} in no known layout, e.g. {some}. "
        f"Each layout is recognised by one tensor:{markers}"
    )


def check_shapes(found: Shapes, expected: Shapes, path: Path) -> None:
    """Raise CheckpointError with a table if tensors are missing, misshapen or unknown."""
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    if not names:
        return
    table = arrays.table((name, expected.get(name), found.get(name)) for name in names)
    raise CheckpointError(
        f"{path}: {counted(len(names), 'tensor does', 'tensors do')} not fit a network of the "
        f"file's sizes.\n{table}\n"
        "Give the file of one complete, unchanged tokenizer"
    )


# MaskGIT's Flax implementation, whose names are ours.


def flax_name(path: ParameterPath, _: vqgan.Network) -> str:
    """Return e.g. encoder/ResBlock_3/Conv_0/kernel."""
    return "/".join(path)


def flax_sizes(found: Shapes) -> dict[str, Any]:
    """Return the sizes; the decoder has a convolution at either end and one between two levels."""
    levels = arrays.highest(found, r"decoder/Conv_(\d+)/kernel")
    blocks = (1 + arrays.highest(found, r"encoder/ResBlock_(\d+)/.*")) // max(levels + 1, 1)
    widths = []
    for level in range(levels):
        numbers = "|".join(map(str, range(level * blocks, (level + 1) * blocks)))
        widths.append(_shape(found, rf"encoder/ResBlock_(?:{numbers})/Conv_\d/kernel")[-1:])
    stem = _shape(found, "encoder/Conv_0/kernel")[2:]
    return _sizes(stem, widths, blocks, found["/".join(CODEBOOK)])


# The PyTorch implementations, whose codebook is an embedding.


def torch_name(path: ParameterPath, _: vqgan.Network) -> str:
    """Return the name in taming-transformers: our path with dots."""
    if path == CODEBOOK:
        return "quantize.embedding.weight"
    return ".".join((*path[:-1], TORCH_LEAVES[path[-1]]))


def muse_name(path: ParameterPath, network: vqgan.Network) -> str:
    """Return the name in open-muse, where the side of level L is S / 2^L."""
    if path == CODEBOOK:
        return torch_name(path, network)
    side, module, *rest = path
    name = _muse_module(side, module, network)
    return torch_name((side, name, *(MUSE_LAYERS.get(layer, layer) for layer in rest)), network)


def mage_name(path: ParameterPath, network: vqgan.Network) -> str:
    """Return the name in MAGE: open-muse's in the terms of taming-transformers."""
    name = muse_name(path, network).replace(".upsample_conv.", ".upsample.conv.")
    return re.sub(r"\.mid\.(\d+)\.", lambda match: f".mid.block_{int(match[1]) + 1}.", name)


def _muse_module(side: str, module: str, network: vqgan.Network) -> str:
    """Return open-muse's name of a module of the encoder or decoder, e.g. down.1.block.0."""
    kind, digits = module.split("_")
    number, levels = int(digits), len(network.channel_multipliers)
    if kind == "GroupNorm":
        return "norm_out"
    if kind == "Conv":
        if number == 0:
            return "conv_in"
        is_last = side == "encoder" or number == levels
        return "conv_out" if is_last else f"up.{levels - number}.upsample_conv"
    # The encoder ends with the middle blocks; the decoder begins with them and goes down.
    level, block = divmod(number, network.num_res_blocks)
    direction, level = ("down", level) if side == "encoder" else ("up", levels - level)
    return f"mid.{block}" if level == levels else f"{direction}.{level}.block.{block}"


def torch_sizes(found: Shapes) -> dict[str, Any]:
    """Return the sizes of any of the PyTorch layouts."""
    levels = 1 + arrays.highest(found, r"encoder\.down\.(\d+)\..*")
    blocks = 1 + arrays.highest(found, r"encoder\.down\.\d+\.block\.(\d+)\..*")
    widths = [
        _shape(found, rf"encoder\.down\.{level}\.block\.\d+\.conv\d\.weight")[:1]
        for level in range(levels)
    ]
    stem = _shape(found, r"encoder\.conv_in\.weight")[1::-1]
    return _sizes(stem, widths, blocks, _shape(found, r"quantize\.embedding\.weight"))


def _shape(found: Shapes, pattern: str) -> tuple[int, ...]:
    """Return the first shape whose name matches, or ()."""
    return next((shape for name, shape in found.items() if re.fullmatch(pattern, name)), ())


def _sizes(
    stem: tuple[int, ...], widths: list[tuple[int, ...]], blocks: int, codebook: tuple[int, ...]
) -> dict[str, Any]:
    """Return the sizes that the shapes reveal; the others default to MaskGIT's.

    A network of default sizes makes `check_shapes` list what is missing.
    stem: [C, filters]. widths: [channels] of each level. codebook: [K, D].
    """
    sizes = {}
    if len(codebook) == 2:
        sizes |= {"codebook_size": codebook[0], "embedding_dim": codebook[1]}
    if len(stem) != 2 or not all(stem):
        stem = (3, *(widths[0] if widths else ()))
    if blocks and widths and all(stem) and all(widths):
        sizes |= {"channels": stem[0], "filters": stem[1], "num_res_blocks": blocks}
        sizes["channel_multipliers"] = tuple(width[0] // stem[1] for width in widths)
    return sizes


MASKGIT, TAMING = vqgan.Network, taming.Network
MUSE_MARKER, MAGE_MARKER = "quantize.embedding.weight", "encoder.mid.block_1.norm1.weight"
LAYOUTS = (
    Layout("MaskGIT (Flax)", "/".join(CODEBOOK), MASKGIT, flax_name, flax_sizes, torch=False),
    Layout("taming-transformers (PyTorch)", "quant_conv.weight", TAMING, torch_name, torch_sizes),
    Layout("MAGE (PyTorch)", MAGE_MARKER, MASKGIT, mage_name, torch_sizes),
    Layout("open-muse (PyTorch)", MUSE_MARKER, MASKGIT, muse_name, torch_sizes),
)
