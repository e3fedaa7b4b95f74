"""Published VQGAN weights: MaskGIT's Flax blobs, and safetensors of the PyTorch implementations.

A layout says how a public file names and shapes each of our parameters, so that reading one is a
comparison. Names: google-research/maskgit, as open-muse's converter reads it; MaskGitVQGAN of
huggingface/open-muse; VQModel of LTH14/mage, the same network; VQModel of
CompVis/taming-transformers, another.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from supmim.config import options
from supmim.errors import CheckpointError
from supmim.tokenizers import folder as folder_lib
from supmim.tokenizers import taming, vqgan

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
CONVERT = """\
  python -c "import torch; from safetensors.torch import save_file as s; \\
    w = torch.load('{path}', map_location='cpu', weights_only=True); \\
    w = w.get('state_dict', w); \\
    s({{k: v.clone() for k, v in w.items()}}, 'weights.safetensors')\""""
CONVERT_NUMPY = """\
  python -c "import numpy as n; from safetensors.numpy import save_file as s; \\
    s(dict(n.load('{path}')), 'weights.safetensors')\""""
LISTED = 20  # rows of the table of tensors that do not fit
NAME_WIDTH = 44  # columns of a tensor's name in it
BESIDE = "beside params/"
# Discriminator and perceptual network of a Lightning checkpoint; the rest of a Flax train state.
TRAINING_ONLY = ("loss.", BESIDE)
CODEBOOK = ("quantizer", "codebook")
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}

Shapes = dict[str, tuple[int, ...]]  # by the names of a file
Path_ = tuple[str, ...]  # of one of our parameters


class Layout(NamedTuple):
    """How files hold a network.

    has: a name that only such files have. key: our path and the network -> the file's name.
    sizes: shapes -> sizes. torch: convolutions are [out, in, h, w] instead of [h, w, in, out].
    """

    name: str
    has: str
    network: type[vqgan.Network]
    key: Callable[[Path_, vqgan.Network], str]
    sizes: Callable[[Shapes], dict[str, Any]]
    torch: bool


class Imported(NamedTuple):
    """A tokenizer, the name of the layout it came in, and tensors that only training needs."""

    tokenizer: vqgan.VQGAN
    layout: str
    left_out: list[str]


def read(path: Path) -> Imported:
    """The tokenizer in a public file.

    CheckpointError if that is a pickle, damaged, of no known layout, or does not fit together.
    """
    if (path.parent / folder_lib.NOTE).is_file():
        raise CheckpointError(
            f"{path.parent} is a tokenizer already: --config.tokenizer.path={path.parent}"
        )
    stored = arrays_of(path)
    left_out = [name for name in stored if name.startswith(TRAINING_ONLY)]
    stored = {name: array for name, array in stored.items() if name not in left_out}
    found = {name: array.shape for name, array in stored.items()}
    layout = layout_of(found, path)
    network = layout.network(**layout.sizes(found))
    check_norms(network, path)
    flat = traverse_util.flatten_dict(vqgan.shapes(network))
    keys = {ours: layout.key(ours, network) for ours in flat}
    check(found, {keys[ours]: theirs(layout, leaf.shape) for ours, leaf in flat.items()}, path)
    params = {ours: to_ours(layout, stored[key]) for ours, key in keys.items()}
    if odd := [keys[ours] for ours, array in params.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"{path} has values that are not finite, e.g. in {odd[0]}")
    tokenizer = vqgan.VQGAN(traverse_util.unflatten_dict(params), network)
    return Imported(tokenizer, layout.name, left_out)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a safetensors file or a Flax msgpack blob, told apart by content."""
    if path.is_dir():
        inside = next((file.name for file in sorted(path.iterdir()) if file.is_file()), "FILE")
        raise CheckpointError(f"{path} is a folder: give the file, e.g. --from={path / inside}")
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if path.suffix.lower() == ".npz":
            raise CheckpointError(
                f"{path} is an archive of NumPy; supmim reads safetensors and Flax's msgpack. "
                "Convert it:\n" + CONVERT_NUMPY.format(path=path)
            )
        # A msgpack map that holds anything begins with another byte than a pickle.
        if path.suffix.lower() in PICKLES or head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
            raise CheckpointError(
                f"{path} is a pickle, or named like one: it may run any code, so supmim opens "
                "none. If you trust it, convert it where PyTorch is installed:\n"
                + CONVERT.format(path=path)
            )
        return load_file(path) if head[8:9] == b"{" else blob(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file and no whole Flax msgpack blob: "
            f"{str(error).rstrip('.')}. Download it again, and compare its size"
        ) from error


def blob(data: bytes) -> dict[str, np.ndarray]:
    """Arrays of a Flax msgpack blob, the parameters under `params` or at its top."""
    tree = serialization.msgpack_restore(data)
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not a tree of parameters")
    flat = traverse_util.flatten_dict(tree, sep="/")
    if "params" in tree:
        flat = {
            name.removeprefix("params/") if name.startswith("params/") else BESIDE + name: leaf
            for name, leaf in flat.items()
        }
    return {name: np.asarray(leaf) for name, leaf in flat.items()}


def layout_of(found: Shapes, path: Path) -> Layout:
    """The layout whose mark is among the names; CheckpointError if there is none."""
    for layout in LAYOUTS:
        if layout.has in found:
            return layout
    marks = "".join(f"\n  {layout.has}: {layout.name}" for layout in LAYOUTS)
    names = ", ".join(sorted(found)[:4])
    raise CheckpointError(
        f"{path} has {len(found)} tensors in no known layout, e.g. {names}. A layout is known by "
        f"a tensor:{marks}"
    )


def check(found: Shapes, expected: Shapes, path: Path) -> None:
    """CheckpointError with a table of what is missing, misshapen or unknown."""
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    if not names:
        return
    rows = [("tensor", "expected", "found")]
    for name in names[:LISTED]:
        shapes = [by_name.get(name) for by_name in (expected, found)]
        rows.append((shortened(name), *("-" if s is None else str(list(s)) for s in shapes)))
    more = f"\n  and {len(names) - LISTED} more" if len(names) > LISTED else ""
    table = "".join(f"\n  {a:<{NAME_WIDTH}} {b:<16} {c}".rstrip() for a, b, c in rows)
    raise CheckpointError(
        f"{path}: {len(names)} tensors are not those of a network of its sizes.{table}{more}\n"
        "Give the file of one whole, unchanged tokenizer"
    )


def shortened(name: str) -> str:
    """A name that fits its column: the middle goes."""
    half = NAME_WIDTH // 2 - 2
    return name if len(name) <= NAME_WIDTH else f"{name[:half]}...{name[-half:]}"


def check_norms(network: vqgan.Network, path: Path) -> None:
    """CheckpointError if a level's channels do not divide into the groups of its norms."""
    groups, filters = options.NORM_GROUPS, network.filters
    if odd := [m for m in network.channel_multipliers if m < 1 or filters * m % groups]:
        raise CheckpointError(
            f"{path}: a level of {filters} x {odd[0]} channels does not divide into {groups} groups"
        )


def theirs(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one of our parameters in a file."""
    return tuple(shape[axis] for axis in (3, 2, 0, 1)) if _is_turned(layout, shape) else shape


def to_ours(layout: Layout, array: np.ndarray) -> np.ndarray:
    """A tensor of a file as our parameter, float32."""
    turned = array.transpose(2, 3, 1, 0) if _is_turned(layout, array.shape) else array
    return np.ascontiguousarray(turned, np.float32)


def _is_turned(layout: Layout, shape: tuple[int, ...]) -> bool:
    return layout.torch and len(shape) == 4


# The Flax implementation: our names.


def flax_key(path: Path_, _: vqgan.Network) -> str:
    """encoder/ResBlock_3/Conv_0/kernel."""
    return "/".join(path)


def flax_sizes(found: Shapes) -> dict[str, Any]:
    """Levels from the decoder's convolutions: one in, one out, one between two levels."""
    levels = _highest(found, r"decoder/Conv_(\d+)/kernel")
    blocks = (1 + _highest(found, r"encoder/ResBlock_(\d+)/.*")) // max(levels + 1, 1)
    widths = []
    for level in range(levels):
        of_level = "|".join(map(str, range(level * blocks, (level + 1) * blocks)))
        widths.append(_shape(found, rf"encoder/ResBlock_(?:{of_level})/Conv_\d/kernel")[-1:])
    stem = _shape(found, "encoder/Conv_0/kernel")[2:]
    return _sizes(stem, widths, blocks, found["/".join(CODEBOOK)])


# PyTorch: the codebook is an embedding, weights are `weight`.


def torch_key(path: Path_, _: vqgan.Network) -> str:
    """taming-transformers: our names, with points."""
    if path == CODEBOOK:
        return "quantize.embedding.weight"
    return ".".join((*path[:-1], TORCH_LEAVES[path[-1]]))


def muse_key(path: Path_, network: vqgan.Network) -> str:
    """open-muse: the middle's blocks, and those of level L, whose side is S / 2^L."""
    if path == CODEBOOK:
        return torch_key(path, network)
    side, module, *rest = path
    kind, number = module.split("_")
    name = MUSE_MODULES[kind](side, int(number), network)
    return torch_key((side, name, *(MUSE_LAYERS.get(layer, layer) for layer in rest)), network)


def mage_key(path: Path_, network: vqgan.Network) -> str:
    """MAGE: as open-muse, in taming-transformers' words."""
    key = muse_key(path, network).replace(".upsample_conv.", ".upsample.conv.")
    return re.sub(r"\.mid\.(\d+)\.", lambda match: f".mid.block_{int(match[1]) + 1}.", key)


def muse_convolution(side: str, number: int, network: vqgan.Network) -> str:
    """Of the decoder all but the first and the last follow a doubling of the side."""
    levels = len(network.channel_multipliers)
    if number == 0:
        return "conv_in"
    if side == "encoder" or number == levels:
        return "conv_out"
    return f"up.{levels - number}.upsample_conv"


def muse_block(side: str, number: int, network: vqgan.Network) -> str:
    """The encoder ends with the middle, the decoder begins with it and goes down the levels."""
    levels = len(network.channel_multipliers)
    level, block = divmod(number, network.num_res_blocks)
    if level == (levels if side == "encoder" else 0):
        return f"mid.{block}"
    place = f"down.{level}" if side == "encoder" else f"up.{levels - level}"
    return f"{place}.block.{block}"


MUSE_MODULES = {
    "Conv": muse_convolution,
    "GroupNorm": lambda side, number, network: "norm_out",
    "ResBlock": muse_block,
}
MUSE_LAYERS = {
    "GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2",
    "Conv_2": "nin_shortcut",
}  # fmt: skip


def torch_sizes(found: Shapes) -> dict[str, Any]:
    """Of all PyTorch layouts."""
    levels = 1 + _highest(found, r"encoder\.down\.(\d+)\..*")
    blocks = 1 + _highest(found, r"encoder\.down\.\d+\.block\.(\d+)\..*")
    widths = [
        _shape(found, rf"encoder\.down\.{level}\.block\.\d+\.conv\d\.weight")[:1]
        for level in range(levels)
    ]
    stem = _shape(found, r"encoder\.conv_in\.weight")[1::-1]
    return _sizes(stem, widths, blocks, _shape(found, r"quantize\.embedding\.weight"))


def _highest(found: Shapes, pattern: str) -> int:
    """The highest number in the names; -1 if there is none."""
    matches = (re.fullmatch(pattern, name) for name in found)
    return max((int(match[1]) for match in matches if match), default=-1)


def _shape(found: Shapes, pattern: str) -> tuple[int, ...]:
    """The first shape of such a name; () if there is none."""
    return next((shape for name, shape in found.items() if re.fullmatch(pattern, name)), ())


def _sizes(
    stem: tuple[int, ...], widths: list[tuple[int, ...]], blocks: int, codebook: tuple[int, ...]
) -> dict[str, Any]:
    """Sizes from shapes. What cannot be told is MaskGIT's, so that a table shows what lacks.

    stem: [C, filters]. widths: [channels] of each level. codebook: [K, D].
    """
    sizes = {}
    if len(codebook) == 2:
        sizes |= {"codebook_size": codebook[0], "embedding_dim": codebook[1]}
    if len(stem) != 2 or not all(stem):
        stem = (3, *widths[0]) if widths else ()
    if blocks and widths and all(stem) and all(widths):
        sizes |= {"channels": stem[0], "filters": stem[1], "num_res_blocks": blocks}
        sizes["channel_multipliers"] = tuple(width[0] // stem[1] for width in widths)
    return sizes


LAYOUTS = (
    Layout(
        "MaskGIT (Flax)", "/".join(CODEBOOK), vqgan.Network, flax_key, flax_sizes, torch=False
    ),
    Layout(
        "taming-transformers (PyTorch)", "quant_conv.weight", taming.Network, torch_key,
        torch_sizes, torch=True,
    ),
    Layout(
        "MAGE (PyTorch)", "encoder.mid.block_1.norm1.weight", vqgan.Network, mage_key,
        torch_sizes, torch=True,
    ),
    Layout(
        "open-muse (PyTorch)", "quantize.embedding.weight", vqgan.Network, muse_key, torch_sizes,
        torch=True,
    ),
)  # fmt: skip
