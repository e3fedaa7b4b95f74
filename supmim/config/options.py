"""Every option of supmim: its default, its unit and one line of meaning.

Imports neither jax nor flax, as all of the config.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

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
        "encoder.position_grid": 0,
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
COLOURS = ("three_augment", "colour_jitter", "randaug_num")
CLASS_VIEW = (*COLOURS, "erase", "mixup", "cutmix")  # whatever is on makes it another view


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
    "data.workers": Option(
        -1, "reader processes per host; 0: a thread; -1: as many as fit", low=-1, high=512
    ),
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
    "encoder.position_grid": _at_least(
        0, 0, "side of the grid, in patches, that positions are made for; 0: the image's"
    ),
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
        "", "JSON file of all labels that fit each image, as real.json; empty: none"
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

# May differ between a workdir's config.json and the config of its evaluation: what is read, how it
# is seen, where it runs. All else is the run.
OF_EVALUATION = (
    "eval.",
    "mesh.",
    "data.train",
    "data.eval",  # the source, and what of an image is shown
    "data.image_size",
    "data.interpolation",
    "data.holdout",
    "data.limit",
    "data.ignore_label",
    "data.mask_classes",
    "data.max_pixels",
    "data.tfds_dir",
    "data.workers",
    "data.targets",  # a cache, for the tokenizer in it
    "segmentation.window",
    "segmentation.stride",
    "tokenizer.path",
    "encoder.attention",  # a kernel that this device may not have
    "checkpoint.keep_best",  # nothing is kept
)


def has_tokenizer(config: Any) -> bool:
    """Whether ids are what is predicted."""
    return has_decoder(config) and config.mim.target == "tokens"


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


def has_decoder(config: Any) -> bool:
    """Whether there is a decoder."""
    return config.task == "supmim" and bool(config.mim_weight)


def multipliers(text: str) -> tuple[int, ...]:
    """config.tokenizer.channel_multipliers as numbers; none if it is no list of such."""
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    return tuple(numbers) if all(numbers) else ()


def evaluator_names(config: Any) -> list[str]:
    """The evaluators asked for, in order; without a decoder there is nothing to reconstruct.

    All of them are those for which there are images.
    """
    names = [name for name in config.eval.evaluators.split(",") if name]
    if names == [ALL]:
        without = () if config.eval.landmarks else ("landmarks",)
        names = [name for name in EVALUATORS[config.task] if name not in without]
    return [name for name in names if name != "reconstruction" or config.mim_weight]
