"""Every option of supmim: its default, its unit and one line of meaning; checks and JSON.

Imports neither jax nor flax, so that a wrong config is told in well under a second.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from supmim.errors import ConfigError, DataError

SCHEMA_VERSION = 5
# Options that a version brought, with the values that mean what was done before it.
BROUGHT = {
    2: {
        "accumulation_steps": 1, "data.limit": 0, "mesh.fsdp_splits": "state",
        "optimizer.name": "adamw", "optimizer.moment_dtype": "float32",
    },
    3: {
        "data.holdout": 0.1, "data.tfds_dir": "", "data.max_pixels": 178_956_970,
        "data.bad_share": 0.001, "data.crop": "none", "data.area_min": 0.05,
        "data.area_max": 1.0, "data.aspect_min": 0.75, "data.aspect_max": 4 / 3,
        "data.interpolation": "bilinear", "data.eval_view": "short_side", "data.eval_resize": 0,
        "data.three_augment": False, "data.colour_jitter": 0.0, "data.randaug_num": 0,
        "data.randaug_magnitude": 0.0, "data.erase": 0.0, "data.cutmix": 0.0,
    },
    4: {
        "data.targets": "", "mim.target": "tokens", "tokenizer.path": "",
        "tokenizer.image_size": 0, "tokenizer.filters": 128,
        "tokenizer.channel_multipliers": "1,1,2,2,4", "tokenizer.num_res_blocks": 2,
        "tokenizer.embedding_dim": 256, "tokenizer.dtype": "float32", "tokenizer.microbatch": 64,
        "tokenizer.norm_groups": 32,
        "tokenizer.reconstruction": "l2", "tokenizer.commitment_weight": 0.25,
        "tokenizer.codebook": "gradient", "tokenizer.codebook_decay": 0.99,
        "tokenizer.revive_below": 0.0, "tokenizer.entropy_weight": 0.1,
        "tokenizer.entropy_temperature": 0.01, "tokenizer.perceptual_weight": 0.0,
        "tokenizer.perceptual_weights": "", "tokenizer.perceptual_sha256": "",
        "tokenizer.adversarial_weight": 0.0, "tokenizer.adversarial_loss": "non_saturating",
        "tokenizer.adversarial_start": 0, "tokenizer.discriminator": "stylegan",
        "tokenizer.discriminator_filters": 64, "tokenizer.r1_weight": 10.0,
        "tokenizer.lecam_weight": 0.0, "eval.similarity_mib": 256,
    },
    5: {
        "init.workdir": "", "optimizer.layer_decay": 1.0, "optimizer.frozen": "none",
        "eval.landmarks": "", "eval.real_labels": "",
        "data.ignore_label": -1, "data.mask_classes": 0, "segmentation.head": "linear",
        "segmentation.width": 128, "segmentation.dropout": 0.1, "segmentation.window": 0,
        "segmentation.stride": 0,
    },
}  # fmt: skip
LATER_GROUPS = ("init", "segmentation")  # that version 1 had not

MOST_CODES = 2**16  # that a cache of target ids can tell apart
NORM_GROUPS = 32  # of the norms of published VQGANs
STDDEV_GROUP = 4  # images that the StyleGAN discriminator compares
SMALLEST_PERCEPTUAL = 16  # side of an image that VGG16 halves four times

# Of each task.
EVALUATORS = {
    "supmim": (
        "classification", "knn", "retrieval", "fewshot", "linear", "logistic", "landmarks",
        "maps", "reconstruction",
    ),
    "tokenizer": ("tokenizer",),
    "segmentation": ("segmentation",),
}  # fmt: skip
ALL = "all"  # of the task's
ALWAYS = "classification,knn,reconstruction"
MASKED = ("scenes", "pairs")  # kinds of sources that have masks

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
    "deit3": {"area_min": 0.08, "interpolation": "bicubic", "three_augment": True,
              "colour_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0},
}  # fmt: skip
COLOURS = ("three_augment", "colour_jitter", "randaug_num")
CLASS_VIEW = (*COLOURS, "erase", "mixup", "cutmix")  # whatever is on makes it another view
AUGMENTED = (
    "crop", "area_min", "area_max", "aspect_min", "aspect_max", "interpolation", "flip",
    "randaug_magnitude", *CLASS_VIEW,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: its default (which fixes the type), its meaning and what it may be."""

    default: bool | int | float | str
    meaning: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def problem(self, value: Any) -> str:
        """Why `value` cannot stand here, or an empty string."""
        wanted = type(self.default)
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            return f"is {value!r}, a {type(value).__name__}; it takes a {wanted.__name__}"
        if self.choices and value not in self.choices:
            return f"is {value!r}; it takes one of {', '.join(self.choices)}"
        if not isinstance(value, str) and not self.low <= value <= self.high:
            return f"is {value}; it takes a value from {self.low:g} to {self.high:g}"
        return ""


def _at_least(low, default, meaning):
    return Option(default, meaning, low=low)


def _share(default, meaning, high=1.0):
    return Option(default, meaning, low=0.0, high=high)


def _seed(meaning):
    return Option(0, meaning, low=0, high=2**31 - 1)


OPTIONS = {
    "seed": _seed("seed of parameters, masks, dropout and mixing"),
    "task": Option("supmim", "what is trained", choices=("supmim", "tokenizer", "segmentation")),
    "batch_size": _at_least(1, 1024, "images per step, over all devices"),
    "accumulation_steps": _at_least(1, 1, "parts a batch is taken in, one after the other"),
    "total_epochs": _at_least(1, 90, "length of the training, in passes over the training set"),
    "class_weight": _at_least(0, 1.0, "weight of the class loss"),
    "mim_weight": _at_least(0, 1.0, "weight of the token loss; 0 builds no decoder at all"),
    "log_every": _at_least(1, 50, "steps between two lines of metrics"),
    "eval_every": _at_least(0, 0, "steps between two evaluations; 0: at the end only"),
    "save_every": _at_least(0, 1000, "steps between two checkpoints; 0: at the end only"),
    # Data: images and the views made of them.
    "data.seed": _seed("seed of sample order, crops and augmentation"),
    "data.train": Option(
        "digits:train",
        "digits:, folder:, records:, TFDS_NAME:SPLIT; with masks scenes:, pairs:",
    ),
    "data.eval": Option("", "evaluation source; empty: what the training source holds out"),
    "data.holdout": Option(
        0.1, "share held out of a folder that has no validation part", low=0.0, high=0.9
    ),
    "data.tfds_dir": Option("", "folder of TFDS's datasets; empty: TFDS's own"),
    "data.image_size": _at_least(1, 224, "side of the square image, in pixels"),
    "data.channels": Option(3, "channels of an image: 1, grey, or 3", low=1, high=3),
    "data.targets": Option("", "folder of target ids that `supmim data tokens` made; empty: none"),
    "data.ignore_label": Option(
        -1, "masks: id of pixels that do not count; -1: none", low=-1, high=2**16 - 1
    ),
    "data.mask_classes": Option(
        0, "masks: number of classes where no classes.txt names them", low=0, high=2**15 - 1
    ),
    "data.limit": _at_least(0, 0, "images used of each source, evenly taken; 0: all"),
    "data.workers": _at_least(-1, -1, "reader processes per host; 0: a thread; -1: as many as fit"),
    "data.max_pixels": _at_least(
        1, 178_956_970, "largest image, in pixels; a larger one counts as unreadable"
    ),
    "data.bad_share": _share(0.001, "share of unreadable training images that ends the run"),
    "data.crop": Option(
        "none", "training crop: as in evaluation, or a random resized one", ("none", "inception")
    ),
    "data.area_min": Option(0.05, "smallest crop, as a share of the image", low=1e-6, high=1.0),
    "data.area_max": Option(1.0, "largest crop, as a share of the image", low=1e-6, high=1.0),
    "data.aspect_min": Option(0.75, "narrowest crop, width by height", low=0.05, high=20.0),
    "data.aspect_max": Option(4 / 3, "widest crop, width by height", low=0.05, high=20.0),
    "data.interpolation": Option(
        "bilinear", "resize of crops, antialiased", ("bilinear", "bicubic")
    ),
    "data.eval_view": Option(
        "short_side",
        "evaluation: short side resized, or all to a square; then its centre",
        choices=("short_side", "stretch"),
    ),
    "data.eval_resize": _at_least(0, 0, "evaluation: side before the central crop; 0: image_size"),
    "data.flip": Option(False, "mirror half of the images"),
    "data.shift": _at_least(0, 0.0, "affine: largest shift, in pixels"),
    "data.rotate": _at_least(0, 0.0, "affine: largest rotation, in degrees"),
    "data.scale": Option(0.0, "affine: largest change of size, as a share", low=0.0, high=0.9),
    "data.shear": _at_least(0, 0.0, "affine: largest shear, in degrees"),
    "data.three_augment": Option(False, "class view: one of grey, solarize, blur (3-Augment)"),
    "data.colour_jitter": _share(0.0, "class view: largest change of light, contrast, colour"),
    "data.randaug_num": _at_least(0, 0, "class view: operations of RandAugment on each image"),
    "data.randaug_magnitude": Option(0.0, "class view: their strength", low=0.0, high=30.0),
    "data.erase": _share(0.0, "class view: share of the images that lose a random box"),
    "data.mixup": _at_least(0, 0.0, "class view: a of the Beta(a, a) of mixup; 0: no mixup"),
    "data.cutmix": _at_least(0, 0.0, "class view: a of the Beta(a, a) of CutMix; 0: none"),
    # Encoder: one ViT.
    "encoder.patch_size": _at_least(1, 16, "side of a patch, in pixels"),
    "encoder.width": _at_least(1, 768, "size of a token"),
    "encoder.depth": _at_least(1, 12, "number of blocks"),
    "encoder.num_heads": _at_least(1, 12, "attention heads per block"),
    "encoder.mlp_dim": _at_least(1, 3072, "hidden size of a block's MLP"),
    "encoder.positions": Option("sincos2d", "position embedding", choices=("sincos2d", "learned")),
    "encoder.pool": Option("gap", "how tokens become an embedding", choices=("gap", "cls", "map")),
    "encoder.dropout": _share(0.0, "dropout rate in every block", high=0.9),
    "encoder.stochastic_depth": _share(
        0.0, "drop rate of the last block; grows linearly to it", high=0.9
    ),
    "encoder.gelu": Option("tanh", "big_vision's tanh form or timm's exact", ("tanh", "exact")),
    "encoder.attention": Option("xla", "attention kernel, decoder too", ("xla", "cudnn")),
    "encoder.dtype": Option("float32", "compute dtype, decoder too", ("float32", "bfloat16")),
    "encoder.scan": Option(False, "compile one block and scan over the stacked parameters"),
    "encoder.remat": Option("none", "what to recompute in backward", ("none", "dots", "full")),
    # Classifier: on the pooled embedding.
    "classifier.num_classes": _at_least(0, 0, "number of classes; 0: those of the source"),
    "classifier.rep_size": _at_least(0, 0, "size of a tanh layer before the head; 0: none"),
    "classifier.head_bias": Option(0.0, "initial bias of the head, e.g. -6.9 for sigmoid"),
    "classifier.loss": Option("softmax", "class loss", choices=("softmax", "sigmoid")),
    "classifier.label_smoothing": _share(0.0, "share of the label spread over all classes"),
    # Decoder: predicts the tokens of hidden patches, gone at inference.
    "decoder.width": _at_least(1, 512, "size of a token in the decoder"),
    "decoder.depth": _at_least(0, 2, "number of blocks"),
    "decoder.num_heads": _at_least(1, 8, "attention heads per block"),
    "decoder.mlp_dim": _at_least(1, 2048, "hidden size of a block's MLP"),
    # Segmentation: a class for each pixel; read by task=segmentation alone.
    "segmentation.head": Option(
        "linear",
        "a dense layer on the last tokens, or a light pyramid on four blocks'",
        choices=("linear", "multiscale"),
    ),
    "segmentation.width": _at_least(1, 128, "multiscale: channels of the pyramid"),
    "segmentation.dropout": _share(0.1, "dropout rate before the last layer", high=0.9),
    "segmentation.window": _at_least(
        0, 0, "evaluation: side of the sliding window, pixels; 0: data.image_size"
    ),
    "segmentation.stride": _at_least(
        0, 0, "evaluation: pixels from window to window; 0: two thirds of one"
    ),
    # Masked image modelling.
    "mim.passes": Option(
        "two",
        "full image for the class and masked image for tokens, or one pass",
        choices=("two", "one"),
    ),
    "mim.hidden": Option(
        "drop",
        "hidden patches leave the encoder or become a mask token",
        choices=("drop", "mask_token"),
    ),
    "mim.masking": Option(
        "random",
        "random patches, BEiT blocks, SimMIM units or MAGE's variable ratio",
        choices=("random", "block", "units", "variable"),
    ),
    "mim.mask_ratio": _share(0.5, "share of patches hidden; with variable: share always dropped"),
    "mim.block_min": _at_least(1, 4, "block: smallest rectangle, in patches"),
    "mim.unit": _at_least(1, 2, "units: side of a unit, in patches"),
    "mim.ratio_mean": _share(0.55, "variable: mean of the truncated normal"),
    "mim.ratio_std": Option(0.25, "variable: its standard deviation", low=0.01, high=1.0),
    "mim.target": Option(
        "tokens",
        "what is predicted of hidden patches; normalized: within each patch",
        choices=("tokens", "pixels", "normalized_pixels"),
    ),
    "mim.label_smoothing": _share(0.0, "share of the target id spread over the codebook"),
    # Tokenizer: frozen, turns an image into target ids.
    "tokenizer.name": Option(
        "patch_vq",
        "k-means codes of patches, or the VQGAN of MaskGIT or taming-transformers",
        choices=("patch_vq", "vqgan", "taming"),
    ),
    "tokenizer.path": Option("", "folder of a trained or imported one; patch_vq, empty: fitted"),
    "tokenizer.image_size": _at_least(0, 0, "side of the image it sees, pixels; 0: as data's"),
    "tokenizer.codebook_size": _at_least(2, 1024, "number of codes"),
    "tokenizer.patch_size": _at_least(1, 16, "side of the square that one id stands for, pixels"),
    "tokenizer.filters": _at_least(1, 128, "vqgan: channels of the first level"),
    "tokenizer.channel_multipliers": Option(
        "1,1,2,2,4", "vqgan: channels of each level, in filters; all but one halve the side"
    ),
    "tokenizer.num_res_blocks": _at_least(1, 2, "vqgan: residual blocks of a level"),
    "tokenizer.norm_groups": _at_least(
        1, NORM_GROUPS, "vqgan: groups of a norm; one channel a group loses the brightness"
    ),
    "tokenizer.embedding_dim": _at_least(1, 256, "vqgan: size of a code"),
    "tokenizer.dtype": Option(
        "auto",
        "compute dtype; auto: bfloat16 of a frozen network, else float32",
        choices=("auto", "float32", "bfloat16"),
    ),
    "tokenizer.microbatch": _at_least(1, 64, "images that a device turns into ids at once"),
    "tokenizer.fit_images": _at_least(1, 8192, "training images that the codes are fitted on"),
    "tokenizer.fit_steps": _at_least(1, 30, "k-means steps"),
    # How a tokenizer is trained: read by task=tokenizer alone; weights are of losses.
    "tokenizer.reconstruction": Option("l2", "loss of pixels", choices=("l1", "l2")),
    "tokenizer.commitment_weight": _at_least(0, 0.25, "moves latents to their codes"),
    "tokenizer.codebook": Option(
        "gradient", "codes move by gradient, or are averages of latents", ("gradient", "ema")
    ),
    "tokenizer.codebook_decay": _share(0.99, "decay per step of the averages of codes' use"),
    "tokenizer.revive_below": _share(
        0.0, "share of the mean use below which a code becomes a latent; 0: never"
    ),
    "tokenizer.entropy_weight": _at_least(0, 0.1, "clear choices, and all codes used alike"),
    "tokenizer.entropy_temperature": _at_least(1e-6, 0.01, "of the softmax over distances"),
    "tokenizer.perceptual_weight": _at_least(0, 0.0, "distance of VGG16's features, as LPIPS"),
    "tokenizer.perceptual_weights": Option("", "torchvision's VGG16, a safetensors FILE of yours"),
    "tokenizer.perceptual_sha256": Option("", "SHA-256 of that file"),
    "tokenizer.adversarial_weight": _at_least(0, 0.0, "the adversary; 0 builds none"),
    "tokenizer.adversarial_loss": Option(
        "non_saturating", "loss of both sides", choices=("non_saturating", "hinge")
    ),
    "tokenizer.adversarial_start": _at_least(0, 0, "steps in which it learns and is not heeded"),
    "tokenizer.discriminator": Option(
        "stylegan", "PatchGAN's, or StyleGAN2's with blur pooling", choices=("patch", "stylegan")
    ),
    "tokenizer.discriminator_filters": _at_least(1, 64, "channels of its first layer"),
    "tokenizer.r1_weight": _at_least(0, 10.0, "squared gradient of its logits at real images"),
    "tokenizer.lecam_weight": _at_least(0, 0.0, "its logits near the other side's average"),
    # Optimizer: linear warm-up, cosine to zero.
    "optimizer.name": Option(
        "adamw",
        "AdamW, Adam with big_vision's decay, or LAMB (DeiT-III)",
        choices=("adamw", "adam_decoupled", "lamb"),
    ),
    "optimizer.learning_rate": _at_least(1e-12, 1e-3, "peak learning rate at this batch size"),
    "optimizer.warmup_steps": _at_least(0, 10_000, "linear warm-up, in steps"),
    "optimizer.b1": _share(0.9, "decay of Adam's first moment", high=0.99999),
    "optimizer.b2": _share(0.999, "decay of Adam's second moment", high=0.99999),
    "optimizer.moment_dtype": Option(
        "float32", "dtype of the first moment", choices=("float32", "bfloat16")
    ),
    "optimizer.weight_decay": _at_least(
        0, 0.1, "decay of kernels, times learning rate; adam_decoupled: times schedule"
    ),
    "optimizer.clip_norm": _at_least(0, 1.0, "largest global gradient norm; 0: no clipping"),
    "optimizer.layer_decay": Option(
        1.0, "learning rate of an encoder's block, times that of the next", low=0.01, high=1.0
    ),
    "optimizer.frozen": Option("none", "what is not trained", choices=("none", "encoder")),
    "optimizer.ema_decay": Option(
        0.0,
        "decay per step of the averaged parameters, which are evaluated; 0: off",
        low=0.0,
        high=0.999999,
    ),
    # Where parameters come from when a run starts.
    "init.workdir": Option("", "run whose encoder is taken; empty: a new one"),
    # Mesh: devices along each axis.
    "mesh.data": _at_least(-1, -1, "devices that split the batch; -1: the rest"),
    "mesh.fsdp": _at_least(-1, 1, "devices that split batch and parameters; -1: the rest"),
    "mesh.tensor": _at_least(-1, 1, "devices that split heads and MLP; -1: the rest"),
    "mesh.fsdp_splits": Option(
        "state",
        "what fsdp splits: the whole state, or the optimizer's alone (ZeRO-1)",
        choices=("state", "optimizer"),
    ),
    # Evaluation and pictures.
    "eval.evaluators": Option(ALWAYS, "evaluators, separated by commas, or all"),
    "eval.batch_size": _at_least(1, 512, "images per evaluation batch, over all devices"),
    "eval.similarity_mib": _at_least(1, 256, "similarities that a device holds at once, MiB"),
    "eval.landmarks": Option("", "landmarks: JSON file of gallery, queries and what they find"),
    "eval.real_labels": Option(
        "", "JSON file of all labels that fit each evaluation image; empty: none"
    ),
    "eval.pictures": _at_least(1, 8, "fixed images in each picture"),
    # Checkpoints.
    "checkpoint.keep": _at_least(1, 2, "newest checkpoints kept"),
    "checkpoint.keep_best": _at_least(0, 1, "best checkpoints kept besides"),
    "checkpoint.keep_best_metric": Option(
        "knn/recall_at_1", "result that ranks them, higher is better"
    ),
}

# May differ between a workdir's config.json and the config of a resumed run.
FREE_ON_RESUME = (
    "data.train",  # a folder may have moved: the fingerprint of a checkpoint knows the data
    "data.eval",
    "data.targets",  # a cache knows what it holds
    "mesh.",
    "data.workers",
    "data.tfds_dir",
    "data.bad_share",
    "eval.real_labels",
    "tokenizer.perceptual_weights",  # its SHA-256 is what may not change
    "tokenizer.path",  # moves as data do: the fingerprint of a checkpoint knows the tokenizer
    "eval.landmarks",  # hold no part in training
    "checkpoint.keep",
    "log_every",
    "eval_every",
    "save_every",
)


def get_config() -> ConfigDict:
    """The defaults, locked: a preset is a short diff over them."""
    config = ConfigDict()
    for path, option in OPTIONS.items():
        group, _, name = path.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        (config[group] if group else config)[name] = option.default
    return config.lock()


def variant(name: str) -> dict[str, int]:
    """Encoder sizes of a standard name with a patch size, e.g. `B/14`."""
    size, _, patch = name.partition("/")
    if size not in VARIANTS or not patch.isdigit():
        raise ConfigError(
            f"encoder variant {name!r} is not known; write SIZE/PATCH with SIZE one of "
            f"{', '.join(VARIANTS)}, e.g. B/14"
        )
    width, depth, mlp_dim, num_heads = VARIANTS[size]
    return {
        "patch_size": int(patch), "width": width, "depth": depth,
        "mlp_dim": mlp_dim, "num_heads": num_heads,
    }  # fmt: skip


def augmentation(name: str) -> dict[str, bool | int | float | str]:
    """Data options of a known kind of augmentation, e.g. `medium2`; for `config.data.update`."""
    if name not in AUGMENTATIONS:
        raise ConfigError(
            f"augmentation {name!r} is not known; it takes one of {', '.join(AUGMENTATIONS)}"
        )
    off = {option: OPTIONS[f"data.{option}"].default for option in AUGMENTED}
    return off | {"crop": "inception", "flip": True} | AUGMENTATIONS[name]


def arm(config: ConfigDict, name: str) -> ConfigDict:
    """`supmim` leaves a preset as it is; `baseline` trains the same encoder on labels alone."""
    if name not in ("supmim", "baseline"):
        raise ConfigError(f"a preset's arm is supmim or baseline, not {name!r}")
    if name == "baseline":
        config.mim_weight = 0.0
    return config


DEBUG_SIZES = {
    "accumulation_steps": 1, "batch_size": 16, "total_epochs": 5, "log_every": 1, "eval_every": 0,
    "save_every": 10, "data.limit": 64, "encoder.depth": 2, "decoder.depth": 1, "eval.batch_size":
    16, "tokenizer.codebook_size": 64, "tokenizer.fit_images": 64, "optimizer.warmup_steps": 2,
    "tokenizer.adversarial_start": 0,
}  # fmt: skip


def debug(config: Any) -> FrozenConfigDict:
    """The same arrangement at a size that runs in seconds: 2 blocks, 4 x 4 patches, 64 images."""
    small = ConfigDict(config.to_dict())
    small.update_from_flattened_dict(DEBUG_SIZES)
    patch = config.tokenizer if config.task == "tokenizer" else config.encoder
    small.data.image_size = min(config.data.image_size, 4 * patch.patch_size)
    if config.data.targets and not config.tokenizer.path:
        small.tokenizer.path = str(Path(config.data.targets) / "tokenizer")
    if small.tokenizer.path:  # it has the size it has
        small.tokenizer.codebook_size = config.tokenizer.codebook_size
    small.data.targets = small.eval.real_labels = ""  # of other images
    small.init.workdir = ""  # of another size
    if config.task == "segmentation":
        small.data.eval_resize = small.segmentation.window = small.segmentation.stride = 0
    if config.tokenizer.image_size:
        grid = small.data.image_size // config.encoder.patch_size
        small.tokenizer.image_size = grid * config.tokenizer.patch_size
    validate(small)
    return FrozenConfigDict(small)


def settle(config: Any, class_names: Sequence[str], where: str) -> FrozenConfigDict:
    """The config with the number of classes of its source; ConfigError if it promises another.

    DataError if there is but one.
    """
    if not has_labels(config):
        return config
    found = len(class_names)
    if not found:
        raise DataError(
            f"nothing says how many classes the masks of {where} have: write their names into "
            "classes.txt in its folder, a line each, or set --config.data.mask_classes=N"
        )
    if found < 2:
        raise DataError(f"{where} has images of one class, {class_names[0]}; this takes two")
    if config.classifier.num_classes not in (0, found):
        raise ConfigError(
            f"{where} has {found} classes, config.classifier.num_classes is "
            f"{config.classifier.num_classes}; set --config.classifier.num_classes={found}, or 0 "
            "for those of the source"
        )
    if config.classifier.num_classes == found:
        return config
    settled = ConfigDict(config.to_dict())
    settled.classifier.num_classes = found
    return FrozenConfigDict(settled)


def has_tokenizer(config: Any) -> bool:
    """Whether ids are what is predicted."""
    return _decodes(config) and config.mim.target == "tokens"


def window(config: Any) -> tuple[int, int]:
    """Side and stride of the sliding window, in pixels."""
    side = config.segmentation.window or config.data.image_size
    return side, config.segmentation.stride or max(1, 2 * side // 3)


def has_labels(config: Any) -> bool:
    """Whether images must come with classes: a tokenizer has no use for them."""
    return config.task != "tokenizer"


def tokenizer_dtype(config: Any) -> str:
    """What the tokenizer computes in: no choice but float32 for patch_vq."""
    if config.tokenizer.dtype != "auto":
        return config.tokenizer.dtype
    frozen_network = config.task == "supmim" and config.tokenizer.name != "patch_vq"
    return "bfloat16" if frozen_network else "float32"


def tokenizer_size(config: Any) -> int:
    """Side of the images that the tokenizer sees, in pixels."""
    return config.tokenizer.image_size or config.data.image_size


def flatten(config: Any) -> dict[str, Any]:
    """`group.option` -> value."""

    def leaves(prefix, node) -> Iterator[tuple[str, Any]]:
        for name, value in node.items():
            if isinstance(value, ConfigDict | FrozenConfigDict | dict):
                yield from leaves(f"{prefix}{name}.", value)
            else:
                yield prefix + name, value

    return dict(leaves("", config))


def _nearest(number: int, fits) -> str:
    """The nearest values below and above `number` for which `fits` holds."""
    below = next((n for n in range(number - 1, 0, -1) if fits(n)), None)
    above = next((n for n in range(number + 1, 4 * number + 2) if fits(n)), None)
    return " or ".join(str(n) for n in (below, above) if n is not None)


def _option_problems(flat: dict[str, Any]) -> list[str]:
    problems = []
    for path, value in flat.items():
        if path not in OPTIONS:
            close = difflib.get_close_matches(path, OPTIONS, n=1)
            hint = f"; did you mean config.{close[0]}?" if close else ""
            problems.append(f"config.{path} does not exist{hint}")
        elif problem := OPTIONS[path].problem(value):
            problems.append(f"config.{path} {problem}")
    problems += [f"config.{path} is missing" for path in OPTIONS if path not in flat]
    return problems


def _size_problems(config: Any) -> Iterator[str]:
    """What does not fit together, with the nearest values that do."""
    yield from _data_problems(config.data)
    if config.batch_size % config.accumulation_steps:
        yield (
            f"config.batch_size={config.batch_size} is not divisible by "
            f"config.accumulation_steps={config.accumulation_steps}; nearest: "
            + _nearest(config.accumulation_steps, lambda n: config.batch_size % n == 0)
        )
    if config.optimizer.frozen == "encoder" and config.optimizer.layer_decay != 1:
        yield (
            f"config.optimizer.layer_decay={config.optimizer.layer_decay} has nothing to act on "
            "with config.optimizer.frozen=encoder: set it to 1.0, or frozen to none"
        )
    problems = {
        "supmim": _supmim_problems, "tokenizer": _training_problems,
        "segmentation": _segmentation_problems,
    }  # fmt: skip
    yield from problems[config.task](config)


def _training_problems(config: Any) -> Iterator[str]:
    """What no tokenizer can be trained with."""
    tokenizer = config.tokenizer
    image_size, parts = config.data.image_size, config.accumulation_steps
    if tokenizer.name == "patch_vq":
        yield (
            "config.task=tokenizer trains networks, and patch_vq is fitted where it is needed: set "
            "config.tokenizer.name=vqgan"
        )
        return
    yield from _tokenizer_problems(tokenizer)
    if image_size % tokenizer.patch_size:
        yield (
            f"config.data.image_size={image_size} is not divisible by "
            f"config.tokenizer.patch_size={tokenizer.patch_size}; nearest image sizes: "
            + _nearest(image_size, lambda n: n % tokenizer.patch_size == 0)
        )
    if tokenizer.entropy_weight and parts > 1:
        yield (
            f"config.tokenizer.entropy_weight={tokenizer.entropy_weight:g} counts codes over a "
            f"whole batch, which config.accumulation_steps={parts} takes in parts; set one of them "
            "to 0 or 1"
        )
    named = {name: tokenizer[name] for name in ("perceptual_weights", "perceptual_sha256")}
    if tokenizer.perceptual_weight and not all(named.values()):
        flags = " and ".join(f"--config.tokenizer.{name}" for name in named)
        lacking = ", ".join(f"config.tokenizer.{name}" for name in named if not named[name])
        yield (
            f"config.tokenizer.perceptual_weight={tokenizer.perceptual_weight:g} takes VGG16's "
            f"weights from a file of yours, and {lacking} is empty: set {flags}, or "
            "config.tokenizer.perceptual_weight=0"
        )
    if tokenizer.perceptual_weight and image_size < SMALLEST_PERCEPTUAL:
        yield (
            f"config.tokenizer.perceptual_weight needs images of {SMALLEST_PERCEPTUAL} pixels or "
            f"more, not config.data.image_size={image_size}; set it to 0"
        )
    yield from _unread(
        config, "tokenizer.path", "tokenizer.image_size", "data.targets", "init.workdir",
        "optimizer.layer_decay", "optimizer.frozen",
    )  # fmt: skip
    group = STDDEV_GROUP * parts
    grouped = tokenizer.adversarial_weight and tokenizer.discriminator == "stylegan"
    if grouped and config.batch_size % group:
        yield (
            f"config.batch_size={config.batch_size} does not split into parts ({parts}) of groups "
            f"of {STDDEV_GROUP} images, which the StyleGAN discriminator compares; nearest: "
            + _nearest(config.batch_size, lambda n: n % group == 0)
        )


def _unread(config: Any, *names: str) -> Iterator[str]:
    """Options that were set and that the task has no use for."""
    flat = flatten(config)
    for name in names:
        if flat[name] != OPTIONS[name].default:
            yield f"config.{name}={flat[name]} is not for config.task={config.task}: leave it out"


def _segmentation_problems(config: Any) -> Iterator[str]:
    """Sources without masks; windows that do not fit; views that would leave the masks behind."""
    yield from _encoder_problems(config)
    for name in ("train", "eval"):
        source = config.data[name]
        if source and source.partition(":")[0] not in MASKED:
            yield (
                f"config.data.{name}={source} has no masks, which config.task=segmentation needs: "
                f"it takes {' or '.join(f'{kind}:' for kind in MASKED)}"
            )
    side, stride = window(config)
    patch, resize = config.encoder.patch_size, config.data.eval_resize or config.data.image_size
    if side % patch:
        yield (
            f"config.segmentation.window={side} is not divisible by config.encoder.patch_size="
            f"{patch}; nearest: " + _nearest(side, lambda n: n % patch == 0)
        )
    if side > resize:
        yield (
            f"config.segmentation.window={side} exceeds the short side of {resize} pixels that "
            f"evaluation images have: set config.data.eval_resize={side} or a smaller window"
        )
    if stride > side:
        yield (
            f"config.segmentation.stride={stride} exceeds the window of {side} pixels: some pixels "
            f"would be in no window; set it to at most {side}"
        )
    yield from _unread(config, "data.targets", "data.randaug_num", "data.erase", "data.mixup",
                       "data.cutmix")  # fmt: skip


def _supmim_problems(config: Any) -> Iterator[str]:
    yield from _encoder_problems(config)
    for name in ("train", "eval"):
        source = config.data[name]
        if source.partition(":")[0] in MASKED:
            yield (
                f"config.data.{name}={source} has classes of pixels, none of images, which "
                "config.task=supmim needs: set config.task=segmentation or another source"
            )
    if not config.class_weight and not config.mim_weight:
        yield "config.class_weight and config.mim_weight are both 0: nothing would be trained"
    if config.mim_weight:
        grid = config.data.image_size // config.encoder.patch_size
        yield from _mim_problems(config, grid, config.mim)


def _encoder_problems(config: Any) -> Iterator[str]:
    """Sizes that no encoder, or decoder if there is one, can have."""
    image_size, encoder = config.data.image_size, config.encoder
    if image_size % encoder.patch_size:
        yield (
            f"config.data.image_size={image_size} is not divisible by "
            f"config.encoder.patch_size={encoder.patch_size}; nearest image sizes: "
            + _nearest(image_size, lambda n: n % encoder.patch_size == 0)
        )
    for name in ("encoder", "decoder") if _decodes(config) else ("encoder",):
        group = config[name]
        if group.width % group.num_heads:
            yield (
                f"config.{name}.width={group.width} is not divisible by "
                f"config.{name}.num_heads={group.num_heads}; nearest numbers of heads: "
                + _nearest(group.num_heads, lambda n, g=group: g.width % n == 0)
            )
        if (name == "decoder" or encoder.positions == "sincos2d") and group.width % 4:
            yield (
                f"config.{name}.width={group.width} is not divisible by 4, as sin-cos positions "
                "need; nearest widths: " + _nearest(group.width, lambda n: n % 4 == 0)
            )
    if encoder.attention == "cudnn" and encoder.dtype != "bfloat16":
        yield "config.encoder.attention=cudnn works in bfloat16: set config.encoder.dtype=bfloat16"
    if encoder.attention == "cudnn" and (odd := _odd_lengths(config)):
        yield (
            f"config.encoder.attention=cudnn trains on even numbers of tokens, not on {odd}: set "
            "config.encoder.attention=xla, or an even grid, mask_ratio and pool=gap or map"
        )


def _decodes(config: Any) -> bool:
    """Whether there is a decoder."""
    return config.task == "supmim" and bool(config.mim_weight)


def _data_problems(data: Any) -> Iterator[str]:
    for name in ("area", "aspect"):
        low, high = data[f"{name}_min"], data[f"{name}_max"]
        if low > high:
            yield f"config.data.{name}_min={low:g} exceeds config.data.{name}_max={high:g}"
    if 0 < data.eval_resize < data.image_size:
        yield (
            f"config.data.eval_resize={data.eval_resize} is smaller than the crop of "
            f"config.data.image_size={data.image_size}; set it to 0 or at least that"
        )
    if data.channels == 2:
        yield "config.data.channels=2: an image has 1 channel, grey, or 3; nearest: 1 or 3"


def _odd_lengths(config: Any) -> str:
    """The odd ones among the numbers of tokens that encoder and decoder see."""
    mim, num_tokens = config.mim, (config.data.image_size // config.encoder.patch_size) ** 2
    unit = mim.unit**2 if mim.masking == "units" else 1
    drops = _decodes(config) and mim.hidden == "drop"
    kept = round(num_tokens // unit * (1 - mim.mask_ratio)) * unit if drops else num_tokens
    cls = config.encoder.pool == "cls"
    lengths = {num_tokens + cls, kept + cls, num_tokens if _decodes(config) else 0}
    return " or ".join(str(length) for length in sorted(lengths) if length % 2)


def multipliers(text: str) -> tuple[int, ...]:
    """config.tokenizer.channel_multipliers as numbers; none if it is no list of such."""
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    return tuple(numbers) if all(numbers) else ()


def _tokenizer_problems(tokenizer: Any) -> Iterator[str]:
    """Sizes of a convolutional tokenizer that no network can have."""
    if tokenizer.name == "patch_vq":
        if tokenizer.dtype == "bfloat16":
            yield "config.tokenizer.dtype: patch_vq works in float32 alone"
        return
    levels = multipliers(tokenizer.channel_multipliers)
    if not levels:
        yield (
            f"config.tokenizer.channel_multipliers={tokenizer.channel_multipliers!r} is no list of "
            "whole numbers from 1, e.g. 1,1,2,2,4"
        )
        return
    stride = 2 ** (len(levels) - 1)
    if tokenizer.patch_size != stride:
        yield (
            f"config.tokenizer.patch_size={tokenizer.patch_size} is not the stride of the "
            f"{len(levels)} levels of config.tokenizer.channel_multipliers; set "
            f"config.tokenizer.patch_size={stride}, or another number of levels"
        )

    groups = tokenizer.norm_groups
    if tokenizer.name == "taming" and groups != NORM_GROUPS:
        yield f"config.tokenizer.norm_groups={groups}: taming has {NORM_GROUPS}"

    def fits(filters: int) -> bool:
        return all(filters * level % groups == 0 for level in levels)

    if not fits(tokenizer.filters):
        yield (
            f"config.tokenizer.filters={tokenizer.filters} times a multiplier is not divisible "
            f"by the {groups} groups of a norm; nearest: " + _nearest(tokenizer.filters, fits)
        )


def _mim_problems(config: Any, grid: int, mim: Any) -> Iterator[str]:
    if has_tokenizer(config):
        yield from _tokenizer_problems(config.tokenizer)
        yield from _grid_problems(config, grid)
    yield from _target_problems(config)
    num_tokens = grid * grid
    units = num_tokens // mim.unit**2 if mim.masking == "units" else num_tokens
    if units and round(units * (1 - mim.mask_ratio)) < 1:
        yield (
            f"config.mim.mask_ratio={mim.mask_ratio} leaves none of {num_tokens} tokens visible; "
            f"the largest ratio here is {1 - 1 / units:.4g}"
        )
    if mim.masking == "units" and grid % mim.unit:
        yield (
            f"config.mim.unit={mim.unit} does not divide the {grid} x {grid} grid; nearest: "
            + _nearest(mim.unit, lambda n: grid % n == 0)
        )
    if mim.masking == "block" and mim.block_min > num_tokens:
        yield f"config.mim.block_min={mim.block_min} exceeds the {num_tokens} tokens of an image"


def _target_problems(config: Any) -> Iterator[str]:
    """Targets that these images, or a cache of ids, do not allow."""
    target, targets = config.mim.target, config.data.targets
    if targets and target != "tokens":
        yield (
            f"config.data.targets={targets} holds ids, config.mim.target={target} predicts none: "
            "set config.mim.target=tokens or config.data.targets="
        )
    if targets and config.tokenizer.codebook_size > MOST_CODES:
        yield (
            f"config.tokenizer.codebook_size={config.tokenizer.codebook_size} exceeds the "
            f"{MOST_CODES} codes that a cache of 16-bit ids can hold: set config.data.targets="
        )
    if target == "normalized_pixels" and config.encoder.patch_size**2 * config.data.channels < 2:
        yield "config.mim.target=normalized_pixels: a patch of one value has no spread; set pixels"


def _grid_problems(config: Any, grid: int) -> Iterator[str]:
    """One id must stand for what one patch of the encoder shows."""
    size, patch = tokenizer_size(config), config.tokenizer.patch_size
    name = "tokenizer.image_size" if config.tokenizer.image_size else "data.image_size"
    if size % patch:
        yield (
            f"config.{name}={size} is not divisible by config.tokenizer.patch_size={patch}; "
            f"nearest: {_nearest(size, lambda n: n % patch == 0)}; the encoder's grid of {grid} x "
            f"{grid} tokens asks for config.tokenizer.image_size={grid * patch}"
        )
    elif grid and size != grid * patch:
        free = config.tokenizer.name == "patch_vq" and size % grid == 0
        fitting = f"config.tokenizer.patch_size={size // grid} or " if free else ""
        yield (
            f"the tokenizer's grid differs from the encoder's {grid} x {grid} tokens: "
            f"config.tokenizer.patch_size={patch} at {size} pixels; set {fitting}"
            f"config.tokenizer.image_size={grid * patch}"
        )


def _view_problems(config: Any) -> Iterator[str]:
    """Augmentations that images or passes do not allow."""
    asked = [option for option in CLASS_VIEW if config.data[option]]
    coloured = [option for option in asked if option in COLOURS]
    if coloured and config.data.channels not in (1, 3):
        yield (
            f"config.data.{coloured[0]} changes grey or RGB images, not those of "
            f"config.data.channels={config.data.channels}; nearest: 1 or 3"
        )
    if config.task == "tokenizer":
        return
    if asked and config.mim_weight and config.mim.passes == "one":
        off = [f"config.data.{option}={OPTIONS[f'data.{option}'].default}" for option in asked]
        yield (
            "config.mim.passes=one predicts the tokens of images that are only flipped and moved: "
            f"set {', '.join(off)} or config.mim.passes=two"
        )


def _list_problems(config: Any) -> Iterator[str]:
    known = EVALUATORS[config.task]
    for name in evaluator_names(config):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            yield (
                f"config.eval.evaluators names {name!r}; {hint}"
                f"With task={config.task} it takes {ALL}, or of these, separated by commas: "
                f"{', '.join(known)}"
            )
    if "landmarks" in evaluator_names(config) and not config.eval.landmarks:
        yield (
            "config.eval.evaluators asks for landmarks: name their JSON file, "
            "--config.eval.landmarks=FILE.json"
        )
    metric = config.checkpoint.keep_best_metric
    if config.checkpoint.keep_best and metric.split("/")[0] not in evaluator_names(config):
        yield (
            f"config.checkpoint.keep_best_metric={metric} comes from no evaluator of "
            f"config.eval.evaluators={config.eval.evaluators}; choose one of theirs or set "
            "config.checkpoint.keep_best=0"
        )


def evaluator_names(config: Any) -> list[str]:
    """The evaluators asked for, in order; without a decoder there is nothing to reconstruct.

    All of them are those for which there are images.
    """
    names = [name for name in config.eval.evaluators.split(",") if name]
    if names == [ALL]:
        without = () if config.eval.landmarks else ("landmarks",)
        names = [name for name in EVALUATORS[config.task] if name not in without]
    return [name for name in names if name != "reconstruction" or config.mim_weight]


def validate(config: Any) -> None:
    """Raises one ConfigError that lists every problem with its nearest valid value."""
    flat = flatten(config)
    problems = _option_problems(flat)
    sound = {path: value for path, value in flat.items() if path in OPTIONS and not
             OPTIONS[path].problem(value)}  # fmt: skip
    repaired = get_config()
    repaired.update_from_flattened_dict(sound)
    wrong = [f"config.{path}=" for path in OPTIONS if path not in sound]
    problems += [
        problem
        for check in (_size_problems, _view_problems, _list_problems)
        for problem in check(repaired)
        if not any(path in problem for path in wrong)  # told already
    ]
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"the config has {count}:{lines}")


def to_json(config: Any) -> str:
    """The resolved config as JSON text, with the version of its schema."""
    options = FrozenConfigDict(config).to_dict() if not isinstance(config, dict) else config
    return json.dumps({"schema_version": SCHEMA_VERSION, "config": options}, indent=1) + "\n"


def from_json(text: str, where: str) -> FrozenConfigDict:
    """Reads `to_json`'s text back, validated and frozen; `where` is named in errors."""
    try:
        document = json.loads(text)
        version, options = document["schema_version"], dict(document["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is not a supmim config: {error!r}") from error
    if version not in range(1, SCHEMA_VERSION + 1):
        raise ConfigError(
            f"{where} has schema version {version}; this supmim reads 1 to {SCHEMA_VERSION}. "
            "Use the supmim that wrote it"
        )
    config = ConfigDict({group: {} for group in LATER_GROUPS} | options)
    try:
        for newer in range(version + 1, SCHEMA_VERSION + 1):
            config.update_from_flattened_dict(BROUGHT[newer])
    except (KeyError, AttributeError) as error:
        raise ConfigError(f"{where} is not a supmim config: {error!r}") from error
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return FrozenConfigDict(config)


def differences(stored: Any, wanted: Any) -> list[str]:
    """Lines for the options in which a resumed run may not differ from its workdir, but does."""
    stored, wanted = (
        flatten(config) | {"tokenizer.dtype": tokenizer_dtype(config)}
        for config in (stored, wanted)
    )
    return [
        f"config.{path}: the workdir has {stored[path]!r}, you ask for {wanted[path]!r}"
        for path in OPTIONS
        if stored[path] != wanted[path]
        and not path.startswith(FREE_ON_RESUME)
        and (path, wanted[path]) != ("classifier.num_classes", 0)  # not settled yet
    ]


def describe() -> str:
    """All options as text of at most 80 columns, for `supmim train --help`."""
    lines, group = [], None
    for path, option in OPTIONS.items():
        if (head := path.rpartition(".")[0]) != group:
            group = head
            lines.append("")
        default = option.default if option.default != "" else "''"
        lines.append(f"  --config.{path}={default}")
        lines.append(f"      {option.meaning}")
        if option.choices:
            lines.append(f"      one of: {', '.join(option.choices)}")
    return "\n".join(lines)
