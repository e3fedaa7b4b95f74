"""timm's ViTs: a folder of config.json and model.safetensors, which transformers loads too."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from supmim.config import Config, options
from supmim.config.presets import VARIANTS
from supmim.errors import CheckpointError
from supmim.interop import arrays, vit
from supmim.interop.vit import Layout, Params, Tensors
from supmim.workdir.files import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
POOLS = {"gap": "avg", "cls": "token", "map": "map"}
GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "gelu_pytorch_tanh": "tanh"}
VIEWS = {"center": "short_side", "squash": "stretch"}
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic"}
LARGEST_MEAN, SMALLEST_STD = 1e6, 1e-6  # so that the first layer stays finite
INDEPENDENT = "multi_label_classification"  # transformers' word for a sigmoid loss
# timm's defaults for what pretrained_cfg does not say.
DEFAULT_VIEW = {
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
# Heads by width, of the ViTs that timm knows by name alone; its own have no width of 32.
HEADS = {width: num_heads for width, _, _, num_heads in VARIANTS.values() if width > 32}
HEADS |= {256: 4, 320: 5, 512: 8, 640: 10, 896: 14, 1664: 16}
OTHER_HEADS = {"vit_base_patch16_gap_224": 16}
AXES = {  # of tensors whose shapes say what the network is
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "pos_embed": 3,
    "cls_token": 3,
    "reg_token": 3,
    "head.weight": 2,
}
# Parts of the names of ViTs with other activations or norms.
OTHER_MODELS = ("clip", "siglip", "quickgelu", "samvit", "eva", "naflex")
WORDS = (
    ("encoder/", ""), ("classifier/", ""),
    ("map_pool/attention/", "attn_pool/"), ("map_pool/", "attn_pool/"), ("probe", "latent"),
    ("blocks/block_", "blocks/"), ("attention_norm", "norm1"), ("mlp_norm", "norm2"),
    ("attention_scale", "ls1/gamma"), ("mlp_scale", "ls2/gamma"), ("attention/", "attn/"),
    ("query/", "q/"), ("key/", "k/"), ("value/", "v/"), ("out/", "proj/"),
    ("mlp/up", "mlp/fc1"), ("mlp/down", "mlp/fc2"), ("embedding/", "patch_embed/proj/"),
    ("positions", "pos_embed"), ("cls", "cls_token"), ("registers", "reg_token"),
    ("kernel", "weight"), ("scale", "weight"), ("/", "."),
)  # fmt: skip
FUSED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "attn_pool.kv": ("attn_pool.k", "attn_pool.v")}


def to_torch(name: str, array: np.ndarray, patch_size: int) -> np.ndarray:
    """Return one of our parameters in PyTorch's shape: outputs first."""
    if name == "encoder/embedding/kernel":
        square = array.reshape(patch_size, patch_size, -1, array.shape[-1])
        return square.transpose(3, 2, 0, 1)
    if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
        return array.reshape(len(array), -1).T
    if name.endswith("kernel"):
        return array.reshape(-1, array.shape[-1]).T
    return array[None] if name == "encoder/positions" else array.reshape(_torch_shape(name, array))


def _torch_shape(name: str, array: np.ndarray) -> tuple[int, ...]:
    return array.shape if array.ndim == 3 else (array.size,)


def from_torch(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Invert to_torch, for our shape."""
    if name == "encoder/embedding/kernel":
        return array.transpose(2, 3, 1, 0).reshape(shape)
    return (array.T if name.endswith("kernel") else array).reshape(shape)


OPTIONAL = ("head.", "attn_pool.")
LAYOUT = Layout(lambda name: vit.renamed(name, WORDS), to_torch, from_torch, OPTIONAL)


def fused(tensors: Tensors) -> Tensors:
    """Return the tensors with queries, keys and values in one, as timm has them."""
    tensors = dict(tensors)
    for whole, parts in FUSED.items():
        for first in [name for name in tensors if f"{parts[0]}." in name]:
            names = [first.replace(parts[0], part) for part in parts]
            arrays = [tensors.pop(name) for name in names]
            tensors[first.replace(parts[0], whole)] = np.concatenate(arrays)
    return tensors


def split(tensors: Tensors) -> Tensors:
    """Invert fused."""
    tensors = dict(tensors)
    for whole, parts in FUSED.items():
        for name in [name for name in tensors if f"{whole}." in name]:
            arrays = np.array_split(tensors.pop(name), len(parts))
            for part, array in zip(parts, arrays, strict=True):
                tensors[name.replace(whole, part)] = array
    return tensors


def tensors_of(params: Params, patch_size: int) -> Tensors:
    """Return timm's tensors of an encoder with its head.

    params: with `encoder/positions`, also where they are fixed. A representation layer before the
    head has no place in timm: leave out the classifier then.
    """
    return fused(vit.exported(params, LAYOUT, patch_size))


def config_of(config: Config, class_names: tuple[str, ...], licence: str) -> dict[str, Any]:
    """Return config.json of an exported folder.

    class_names: empty for one without a head. licence: empty if it is not known.
    """
    sizes, data, num_classes = config.encoder, config.data, len(class_names)
    pool, side = POOLS[sizes.pool], data.image_size
    resize = max(data.eval_resize or side, side)
    model = {
        "img_size": side,
        "patch_size": sizes.patch_size,
        "in_chans": data.channels,
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "mlp_ratio": sizes.mlp_dim / sizes.width,
        "class_token": sizes.pool == "cls",
        "no_embed_class": True,
        "global_pool": pool,
        "fc_norm": False,
        "act_layer": "gelu_tanh" if sizes.gelu == "tanh" else "gelu",
    }
    if sizes.layer_scale:
        model["init_values"] = sizes.layer_scale
    if sizes.registers:
        model["reg_tokens"] = sizes.registers
    return {
        "architecture": "vit_base_patch16_224",  # any plain ViT: model_args says the rest
        "num_classes": num_classes,
        "num_features": sizes.width,
        "global_pool": pool,
        **({"label_names": list(class_names)} if num_classes else {}),
        **({"problem_type": INDEPENDENT} if config.classifier.loss == "sigmoid" else {}),
        "model_args": model,
        "pretrained_cfg": {
            "input_size": [data.channels, side, side],
            "fixed_input_size": True,
            "interpolation": data.interpolation,
            "crop_pct": crop_share(side, resize),
            "crop_mode": "squash" if data.eval_view == "stretch" else "center",
            "mean": [0.5] * data.channels,
            "std": [0.5] * data.channels,
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **({"license": licence} if licence else {}),
            "tag": "supmim",
        },
    }


def crop_share(side: int, resize: int) -> float:
    """Return timm's crop_pct, from which it computes floor(side / crop_pct) = resize."""
    share = side / resize
    return share if math.floor(side / share) == resize else float(np.nextafter(share, 0))


def options_of(tensors: Tensors, stored: dict[str, Any]) -> Config:
    """Return the config of a timm ViT from its tensors and config.json.

    CheckpointError if it is no ViT, or of a kind that supmim does not have.
    """
    view, model = view_of(stored), stored.get("model_args") or {}
    architecture = str(stored.get("architecture", ""))
    first = tensors.get("patch_embed.proj.weight")
    up = tensors.get("blocks.0.mlp.fc1.weight")
    if not architecture.startswith(("vit_", "deit")) or first is None or up is None:
        raise CheckpointError(
            f"its architecture, {architecture!r}, is not a plain ViT of timm", fault="S4"
        )
    if any(word in architecture for word in OTHER_MODELS):
        raise CheckpointError(f"supmim does not have what timm's {architecture!r} adds to a ViT")
    for name, count in AXES.items():
        if name in tensors and tensors[name].ndim != count:
            raise CheckpointError(
                f"its {name} has the shape {list(tensors[name].shape)}, not {count} axes"
            )
    width, channels, patch_size = first.shape[:3]
    by_name = OTHER_HEADS.get(architecture) or HEADS.get(width)
    num_heads = model.get("num_heads") or by_name
    if not num_heads:
        raise CheckpointError(f"config.json does not say model_args.num_heads, for width {width}")
    if not isinstance(num_heads, int):
        raise CheckpointError(f"its num_heads, {num_heads!r}, is not a whole number")
    asked = model.get("global_pool") or stored.get("global_pool") or "token"
    pool = ours({theirs: pool for pool, theirs in POOLS.items()}, "pooling", asked)
    if model.get("pool_include_prefix") and pool != "cls":
        raise CheckpointError("it pools its class token and registers too (pool_include_prefix)")
    scaled = "blocks.0.ls1.gamma" in tensors
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    head, side = tensors.get("head.weight"), side_of(model.get("img_size") or view["input_size"])
    encoder = options.Encoder(
        patch_size=patch_size,
        width=width,
        depth=1 + arrays.highest(tensors, r"blocks\.(\d+)\..*"),
        num_heads=num_heads,
        mlp_dim=len(up),
        positions="learned",
        pool=pool,
        gelu=ours(GELUS, "activation", model.get("act_layer") or "gelu"),
        layer_scale=float(model.get("init_values") or 1e-5) if scaled else 0.0,
        registers=registers + ("cls_token" in tensors and pool != "cls"),
    )
    share = float(view["crop_pct"])
    if not 0 < share <= 1:
        raise CheckpointError(f"its crop_pct is {share:g}, not between 0 and 1")
    resize = math.floor(side / share)
    data = options.changed(
        options.Data(),
        train="",
        image_size=side,
        channels=channels,
        eval_resize=resize if resize != side else 0,
        eval_view=ours(VIEWS, "crop_mode", view["crop_mode"]),
        interpolation=ours(INTERPOLATIONS, "interpolation", view["interpolation"]),
    )
    classifier = options.Classifier(
        num_classes=0 if head is None else len(head),
        loss="sigmoid" if stored.get("problem_type") == INDEPENDENT else "softmax",
    )
    return Config(data=data, encoder=encoder, classifier=classifier, mim_weight=0.0)


def ours(kinds: dict[str, str], what: str, asked: Any) -> str:
    """Return our name for one of timm's kinds of `what`; CheckpointError for unknown kinds."""
    if str(asked) not in kinds:
        raise CheckpointError(
            f"its {what}, {str(asked)!r}, is not one of {', '.join(kinds)}", fault="S4"
        )
    return kinds[str(asked)]


def side_of(size: Any) -> int:
    """Return the side of images from img_size, which may be a list, or from input_size."""
    return int(size[-1] if isinstance(size, list) else size)


def describes(path: Path) -> bool:
    """Return whether a config.json is timm's."""
    try:
        return "pretrained_cfg" in read_json(path)
    except (OSError, ValueError, TypeError):  # such a file is not timm's
        return False


def view_of(stored: dict[str, Any]) -> dict[str, Any]:
    """Return pretrained_cfg of a config.json with timm's defaults for what it does not say."""
    if "pretrained_cfg" not in stored:
        raise CheckpointError("config.json has no pretrained_cfg, so it is not one of timm's")
    return DEFAULT_VIEW | {name: x for name, x in stored["pretrained_cfg"].items() if x}


def mean_and_std(stored: dict[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """Return mean and std of each channel, of images in [0, 1]; ValueError if invalid."""
    view = view_of(stored)
    mean, std = (np.array(view[name], np.float64) for name in ("mean", "std"))
    are_sane = (np.abs(mean) < LARGEST_MEAN).all() and (std > SMALLEST_STD).all()
    if not mean.shape == std.shape == (channels,) or not are_sane:
        raise ValueError(f"mean {mean} and std {std} do not fit channels={channels}")
    return mean.tolist(), std.tolist()


def class_names_of(stored: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in a config.json; empty if there are none."""
    names = stored.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def plain(tensors: Tensors, config: Config) -> Tensors:
    """Return the tensors of any ViT of timm in the form that LAYOUT names. config: options_of it.

    Positions of class and register tokens are added to these tokens; a class token that pooling
    ignores becomes a register, since it acts as one.
    """
    tensors = split(tensors)
    prefix = [name for name in ("cls_token", "reg_token") if name in tensors]
    count = sum(tensors[name].shape[1] for name in prefix)
    positions = tensors.get("pos_embed", np.zeros((1, 0, 0)))
    if count and positions.shape[1] == config.grid**2 + count:
        start = 0
        for name in prefix:
            end = start + tensors[name].shape[1]
            tensors[name] = vit.with_positions(tensors[name], positions[:, start:end])
            start = end
        tensors["pos_embed"] = positions[:, count:]
    if "cls_token" in tensors and config.encoder.pool != "cls":
        parts = [tensors.pop(name) for name in prefix]
        tensors["reg_token"] = np.concatenate(parts, axis=1)
    return tensors
