"""What presets are made of: encoder sizes, kinds of augmentation, arms, and the debug size."""

from pathlib import Path

from ml_collections import ConfigDict

from supmim.config import convert, flat, pyfile
from supmim.config.options import OPTIONS, Config
from supmim.errors import ConfigError, suggestion
from supmim.storage.schemes import on_bucket

# width, depth, mlp_dim, num_heads: mu to L and g as in big_vision and "Scaling Vision
# Transformers" (arXiv 2106.04560), So400m as in SigLIP (arXiv 2303.15343).
VARIANTS = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
}
# A preset's arms, and what each changes of it.
ARMS = {
    "supmim": {},
    "baseline": {"mim_weight": 0.0, "data": {"unlabelled": ""}},
    "efficient": {
        "class_pass": {"keep": 0.75},
        "mim": {"mask_ratio": 0.75, "row_share": 0.5},
    },
}
BATCHES_AND_RATES = {
    "mu": (64, 3e-3),
    "Ti": (256, 2e-3),
    "S": (256, 1e-3),
    "B": (256, 5e-4),
    "L": (256, 3e-4),
    "So400m": (256, 3e-4),
    "H": (256, 2e-4),
    "g": (256, 2e-4),
}
# What each kind of augmentation has besides inception crop and flip: AugReg's (arXiv 2106.10270)
# as in big_vision's vit_i1k, deit3 as in facebookresearch/deit.
AUGMENTATIONS = {
    "none": {"crop": "none", "flip": False},
    "inception": {},
    "light1": {"randaug_num": 2},
    "light2": {"randaug_num": 2, "randaug_magnitude": 10.0, "mixup": 0.2},
    "medium1": {"randaug_num": 2, "randaug_magnitude": 15.0, "mixup": 0.2},
    "medium2": {"randaug_num": 2, "randaug_magnitude": 15.0, "mixup": 0.5},
    "strong1": {"randaug_num": 2, "randaug_magnitude": 20.0, "mixup": 0.5},
    "strong2": {"randaug_num": 2, "randaug_magnitude": 20.0, "mixup": 0.8},
    "deit3": {
        "area_min": 0.08,
        "interpolation": "bicubic",
        "three_augment": True,
        "colour_jitter": 0.3,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}


def preset(spec: str) -> ConfigDict:
    """Return a preset by name or path, such as `imagenet_s16:baseline`, to make another from it."""
    return pyfile.preset(Path(), spec)


def variant(name: str) -> dict[str, int]:
    """Return the encoder sizes of a standard name with a patch size, e.g. `B/14`."""
    size, _, patch = name.partition("/")
    if size not in VARIANTS or not patch.isdecimal():
        raise ConfigError(
            f"encoder variant {name!r} is not known; write SIZE/PATCH with SIZE one of "
            f"{', '.join(VARIANTS)}, e.g. B/14"
        )
    sizes = zip(("width", "depth", "mlp_dim", "num_heads"), VARIANTS[size], strict=True)
    return {"patch_size": int(patch), **dict(sizes)}


def augmentation(name: str) -> dict[str, bool | int | float | str]:
    """Return the data options of a kind of augmentation, e.g. `medium2`; for config.data.update."""
    if name not in AUGMENTATIONS:
        raise ConfigError(
            f"augmentation {name!r} is not known; it takes one of {', '.join(AUGMENTATIONS)}"
        )
    off = {
        path.removeprefix("data."): option.default
        for path, option in OPTIONS.items()
        if option.augmentation
    }
    return off | {"crop": "inception", "flip": True} | AUGMENTATIONS[name]


def size_and_arm(arguments: str, size: str, others: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return the size and the arm in a preset's arguments, such as `Ti/16,baseline`.

    size: the default; others: names of sizes without a patch size.
    """
    arm, example = "supmim", size
    for word in filter(None, arguments.split(",")):
        if word in ARMS:
            arm = word
        elif "/" in word or word in others:
            size = word
        else:
            known = (*others, *ARMS)
            raise ConfigError(
                f"{word!r} is not an argument of this preset: it takes an encoder such as "
                f"{example}, or {', '.join(known)}, separated by commas{suggestion(word, known)}"
            )
    return size, arm


def sized(config: ConfigDict, name: str) -> ConfigDict:
    """Set the encoder of a standard name, and the decoder, batch size and rate that go with it.

    The decoder is as wide as the encoder, at most 512, with heads of 64. Batch sizes and learning
    rates are ours, for AdamW and pictures of one's own; none was tuned.
    """
    encoder = variant(name)
    width = min(512, encoder["width"])
    batch_size, learning_rate = BATCHES_AND_RATES[name.partition("/")[0]]
    config.update(
        batch_size=batch_size,
        encoder=encoder,
        decoder={"width": width, "num_heads": max(1, width // 64), "mlp_dim": 4 * width},
        tokenizer={"patch_size": encoder["patch_size"]},
        optimizer={"learning_rate": learning_rate},
    )
    return config


def arm(config: ConfigDict, name: str) -> ConfigDict:
    """Return the preset as it is (`supmim`), or as another arm.

    `baseline` has no masked image modelling, and no images without labels. In `efficient` the class
    pass keeps 75 % of the patches, and every other image is masked, of which 25 % are kept.
    """
    if name not in ARMS:
        *others, last = ARMS
        raise ConfigError(f"a preset's arm is {', '.join(others)} or {last}, not {name!r}")
    config.update(ARMS[name])
    return config


def debug(config: Config) -> Config:
    """Return the config at a size that runs in seconds: 2 blocks, 4 x 4 patches, 64 images."""
    sizes = {
        path: option.debug
        for path, option in OPTIONS.items()
        if option.debug is not None and config.task not in option.unused_by
    }
    patched = config.tokenizer if config.task == "tokenizer" else config.encoder
    image_size = min(config.data.image_size, 4 * patched.patch_size)
    path = config.tokenizer.path
    if config.data.targets and not path and not on_bucket(config.data.targets):
        path = str(Path(config.data.targets) / "tokenizer")
    small = flat.flatten(config) | sizes
    small |= {"data.image_size": image_size, "tokenizer.path": path}
    # These belong to other images or sizes.
    small |= {"data.targets": "", "eval.real_labels": "", "init.model": ""}
    if path:  # a tokenizer that exists keeps its size
        small["tokenizer.codebook_size"] = config.tokenizer.codebook_size
    if config.data.labels:
        small["data.labels"] = 0.5
    if config.row_group > 1:
        small |= {"mim.row_share": 0.5, "batch_size": 32}  # two rows for each of 16 devices
    if config.task == "segmentation":
        small |= {"data.eval_resize": 0, "segmentation.window": 0, "segmentation.stride": 0}
    if config.tokenizer.image_size:
        grid = image_size // config.encoder.patch_size
        small["tokenizer.image_size"] = grid * config.tokenizer.patch_size
    return convert.validate(small)
