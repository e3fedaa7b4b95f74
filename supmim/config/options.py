"""Every option of supmim, typed and in groups: its default, meaning, unit, limits and effects.

This file is the only place where an option is declared; `option.Option` says what the facts mean.
It imports neither jax nor flax, and ml_collections stays outside: reader processes unpickle groups.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from typing import TypeVar

from supmim.config import tasks
from supmim.config.option import Change, Option, Value, group, option

NORM_GROUPS = 32  # groups of the norms of published VQGANs
MAX_LEVELS = 16  # of a tokenizer: one pixel of the last stands for 32,768 a side
MAX_DEPTH = 1000  # blocks, each a part of the program
MAX_WIDTH = 2**16  # of a token: a block's parameters are 50 billion
MAX_IMAGES = 2**20  # of a batch
SSIM_WINDOW = 11  # side of the windows that SSIM compares, in pixels
STDDEV_GROUP = 4  # images that the StyleGAN discriminator compares
REST = "rest"  # as data.unlabelled: the training images whose labels are not kept
NO_PASSES = ("tokenizer", "segmentation")  # tasks without a class pass and a masked one
Group = TypeVar("Group")


@dataclass(frozen=True)
class Data:
    """Images, and the views that are made of them."""

    seed: int = option(0, "seed of sample order, crops and augmentation", low=0, changes=("ids",))
    train: str = option(
        "digits:train",
        "digits:, folder:, records:, TFDS_NAME:SPLIT; with masks scenes:, pairs:",
        may_change="always",  # a folder may have moved: a fingerprint identifies the data
        in_results=True,
        common=True,
    )
    eval: str = option(
        "",
        "evaluation source; empty: what the training source holds out",
        may_change="always",
        in_results=True,
        common=True,
    )
    eval_classes: str = option(
        "",
        "numbers of the classes that are evaluated, e.g. 6,7,8,9; empty: all",
        unused_by=NO_PASSES,
        may_change="in evaluation",
        default_is_before=True,
    )
    labels: float = option(
        0.0,
        "number, or share, of training images that keep their labels; 0: all",
        low=0.0,
        unused_by=NO_PASSES,
        may_change="in evaluation",
        default_is_before=True,
    )
    labelled_classes: str = option(
        "",
        "numbers of the classes whose labels are kept, e.g. 0,1,2; empty: all",
        unused_by=NO_PASSES,
        may_change="in evaluation",
        default_is_before=True,
    )
    unlabelled: str = option(
        "",
        "images for the token loss alone: a source; rest: what data.labels drops",
        unused_by=NO_PASSES,
        two_passes=True,
        may_change="always",  # a fingerprint identifies the data
        in_results=True,
        default_is_before=True,
        common=True,
    )
    unlabelled_batch: int = option(
        0,
        "images without labels per step; 0: as many as batch_size",
        low=0,
        high=MAX_IMAGES,
        unused_by=NO_PASSES,
        default_is_before=True,
    )
    holdout: float = option(
        0.1,
        "share held out of a folder that has no validation part",
        low=0.0,
        high=0.9,
        may_change="in evaluation",
    )
    tfds_dir: str = option(
        "",
        "folder of TFDS's datasets; empty: TFDS's own",
        is_path=True,
        in_bucket=True,
        may_change="always",
    )
    local_copy: str = option(
        "",
        "folder where data that is in a bucket is copied once per host",
        is_path=True,
        may_change="always",
        default_is_before=True,
    )
    image_size: int = option(
        224,
        "side of the square image",
        unit="pixels",
        low=1,
        changes=("crop",),
        may_change="in evaluation",
        common=True,
    )
    channels: int = option(
        3, "channels of an image: 1, grey, or 3", low=1, high=3, changes=("crop", "parameters")
    )
    targets: str = option(
        "",
        "folder of target ids from `supmim data tokens`; empty: none",
        is_path=True,
        in_bucket=True,
        may_change="always",  # a cache identifies what it holds
        unused_by=NO_PASSES,
    )
    ignore_label: int = option(
        -1,
        "masks: id of pixels that are not counted; -1: none",
        low=-1,
        high=2**16 - 1,
        may_change="in evaluation",
    )
    mask_classes: int = option(
        0,
        "masks: number of classes where no classes.txt names them",
        low=0,
        high=2**15 - 1,
        may_change="in evaluation",
    )
    limit: int = option(
        0,
        "images used of each source, evenly spaced; 0: all",
        low=0,
        may_change="in evaluation",
        debug=64,
    )
    workers: int = option(
        -1,
        "reader processes per host; 0: a thread; -1: as many as fit",
        low=-1,
        high=512,
        may_change="always",
    )
    resident: str = option(
        "auto",
        "keep the training images on the devices; auto: if they fit",
        choices=("auto", "on", "off"),
        may_change="always",
        default_is_before=True,
    )
    max_pixels: int = option(
        178_956_970,
        "largest image; a larger one counts as unreadable",
        unit="pixels",
        low=1,
        changes=("ids",),
        may_change="in evaluation",
    )
    exact_decoding: bool = option(
        False,
        "random crops: decode JPEGs exactly; slower, see docs/decoding.md",
        changes=("crop",),
        default_is_before=True,
    )
    bad_share: float = option(
        0.001,
        "share of training images that may be unreadable, rounded up",
        low=0.0,
        high=1.0,
        may_change="on resume",
    )
    crop: str = option(
        "none",
        "training crop: as in evaluation, or a random resized one",
        choices=("none", "inception"),
        changes=("crop",),
        augmentation=True,
    )
    area_min: float = option(
        0.05,
        "smallest crop, as a share of the image",
        low=1e-6,
        high=1.0,
        changes=("crop",),
        augmentation=True,
    )
    area_max: float = option(
        1.0,
        "largest crop, as a share of the image",
        low=1e-6,
        high=1.0,
        changes=("crop",),
        augmentation=True,
    )
    aspect_min: float = option(
        0.75,
        "smallest width / height of a crop",
        low=0.05,
        high=20.0,
        changes=("crop",),
        augmentation=True,
    )
    aspect_max: float = option(
        4 / 3,
        "largest width / height of a crop",
        low=0.05,
        high=20.0,
        changes=("crop",),
        augmentation=True,
    )
    interpolation: str = option(
        "bilinear",
        "resizing of crops, antialiased",
        choices=("bilinear", "bicubic"),
        changes=("crop",),
        augmentation=True,
        may_change="in evaluation",
    )
    eval_view: str = option(
        "short_side",
        "evaluation: resize the short side, or to a square; then crop the centre",
        choices=("short_side", "stretch"),
        changes=("crop",),
        may_change="always",
        in_results=True,
    )
    eval_resize: int = option(
        0,
        "evaluation: side before the central crop; 0: image_size",
        unit="pixels",
        low=0,
        changes=("crop",),
        may_change="always",
        in_results=True,
    )
    flip: bool = option(
        False, "mirror half of the images", changes=("geometry",), augmentation=True
    )
    shift: float = option(0.0, "affine: largest shift", unit="pixels", low=0, changes=("geometry",))
    rotate: float = option(
        0.0, "affine: largest rotation", unit="degrees", low=0, changes=("geometry",)
    )
    scale: float = option(
        0.0, "affine: largest change of size, as a share", low=0.0, high=0.9, changes=("geometry",)
    )
    shear: float = option(
        0.0, "affine: largest shear", unit="degrees", low=0, changes=("geometry",)
    )
    three_augment: bool = option(
        False,
        "class view: one of grey, solarize, blur (3-Augment)",
        changes=("colours",),
        augmentation=True,
        unused_by=("tokenizer",),
    )
    colour_jitter: float = option(
        0.0,
        "class view: largest change of brightness, contrast, colour",
        low=0.0,
        high=1.0,
        changes=("colours",),
        augmentation=True,
        unused_by=("tokenizer",),
    )
    randaug_num: int = option(
        0,
        "class view: operations of RandAugment on each image",
        low=0,
        high=100,
        changes=("colours",),
        augmentation=True,
        unused_by=NO_PASSES,
    )
    randaug_magnitude: float = option(
        0.0, "class view: strength of RandAugment", low=0.0, high=30.0, augmentation=True
    )
    erase: float = option(
        0.0,
        "class view: share of the images that lose a random box",
        low=0.0,
        high=1.0,
        changes=("class view",),
        augmentation=True,
        unused_by=NO_PASSES,
    )
    mixup: float = option(
        0.0,
        "class view: alpha of mixup's Beta(alpha, alpha); 0: no mixup",
        low=0,
        changes=("class view",),
        augmentation=True,
        unused_by=NO_PASSES,
    )
    cutmix: float = option(
        0.0,
        "class view: alpha of CutMix's Beta(alpha, alpha); 0: no CutMix",
        low=0,
        changes=("class view",),
        augmentation=True,
        unused_by=NO_PASSES,
    )


@dataclass(frozen=True)
class Encoder:
    """The ViT."""

    patch_size: int = option(16, "side of a patch", unit="pixels", low=1, changes=("parameters",))
    width: int = option(768, "size of a token", low=1, high=MAX_WIDTH, changes=("parameters",))
    depth: int = option(
        12, "number of blocks", low=1, high=MAX_DEPTH, changes=("parameters",), debug=2
    )
    num_heads: int = option(12, "attention heads per block", low=1, changes=("parameters",))
    mlp_dim: int = option(
        3072, "hidden size of a block's MLP", low=1, high=MAX_WIDTH * 4, changes=("parameters",)
    )
    positions: str = option(
        "sincos2d", "position embedding", choices=("sincos2d", "learned"), changes=("parameters",)
    )
    position_grid: int = option(
        0, "side of the grid that positions are made for; 0: the image's", unit="patches", low=0
    )
    pool: str = option(
        "gap",
        "how tokens are pooled into the embedding",
        choices=("gap", "cls", "map"),
        changes=("parameters",),
    )
    layer_scale: float = option(
        0.0,
        "initial factor of each branch (LayerScale, as in DeiT-III); 0: none",
        low=0.0,
        changes=("parameters",),
        default_is_before=True,
    )
    registers: int = option(
        0,
        "learned tokens beside the patches, dropped at the end, as in DINOv2",
        low=0,
        changes=("parameters",),
        default_is_before=True,
    )
    dropout: float = option(0.0, "dropout rate in every block", low=0.0, high=0.9)
    stochastic_depth: float = option(
        0.0, "drop rate of the last block; grows linearly from 0", low=0.0, high=0.9
    )
    gelu: str = option(
        "tanh",
        "GELU: big_vision's tanh form, or timm's exact one",
        choices=("tanh", "exact"),
        changes=("parameters",),
    )
    attention: str = option(
        "xla",
        "attention kernel, also of the decoder",
        choices=("xla", "cudnn"),
        may_change="in evaluation",  # this device may not have the kernel
    )
    dtype: str = option(
        "float32",
        "compute dtype, also of the decoder",
        choices=("float32", "bfloat16"),
        common=True,
    )
    scan: bool = option(False, "compile one block and scan over the stacked parameters")
    remat: str = option(
        "none", "what the backward pass recomputes", choices=("none", "dots", "full")
    )

    @property
    def extra_tokens(self) -> int:
        """Tokens of a sequence that are no patches: the class token and the registers."""
        return self.registers + (self.pool == "cls")


@dataclass(frozen=True)
class Classifier:
    """The head that predicts the class from the pooled embedding."""

    num_classes: int = option(0, "number of classes; 0: those of the source", low=0)
    rep_size: int = option(
        0, "size of a tanh layer before the head; 0: none", low=0, unused_by=("segmentation",)
    )
    head_bias: float = option(
        0.0, "initial bias of the head, e.g. -6.9 for sigmoid", unused_by=("segmentation",)
    )
    loss: str = option(
        "softmax", "class loss", choices=("softmax", "sigmoid"), unused_by=("segmentation",)
    )
    label_smoothing: float = option(
        0.0,
        "share of the label that is spread over all classes",
        low=0.0,
        high=1.0,
        unused_by=("segmentation",),
    )


@dataclass(frozen=True)
class ClassPass:
    """The pass of the encoder over unmasked images, from which the class is predicted."""

    keep: float = option(
        1.0,
        "share of patches kept, at random, in training (PatchDropout)",
        low=0.0,
        high=1.0,
        two_passes=True,
        default_is_before=True,
    )


@dataclass(frozen=True)
class Decoder:
    """The network that predicts the tokens of hidden patches; inference does not use it."""

    width: int = option(512, "size of a token in the decoder", low=1, high=MAX_WIDTH)
    depth: int = option(2, "number of blocks", low=0, high=MAX_DEPTH, debug=1)
    num_heads: int = option(8, "attention heads per block", low=1)
    mlp_dim: int = option(2048, "hidden size of a block's MLP", low=1, high=MAX_WIDTH * 4)


@dataclass(frozen=True)
class Segmentation:
    """The head that gives each pixel a class; only task=segmentation reads it."""

    head: str = option(
        "linear",
        "a dense layer on the last tokens, or a light pyramid on four blocks",
        choices=("linear", "multiscale"),
    )
    width: int = option(128, "multiscale: channels of the pyramid", low=1)
    dropout: float = option(0.1, "dropout rate before the last layer", low=0.0, high=0.9)
    window: int = option(
        0,
        "evaluation: side of the sliding window; 0: image_size",
        unit="pixels",
        low=0,
        may_change="in evaluation",
    )
    stride: int = option(
        0,
        "evaluation: distance between windows; 0: two thirds of one",
        unit="pixels",
        low=0,
        may_change="in evaluation",
    )


@dataclass(frozen=True)
class Mim:
    """Masked image modelling."""

    passes: str = option(
        "two",
        "full image for the class and masked image for tokens, or one pass",
        choices=("two", "one"),
    )
    hidden: str = option(
        "drop",
        "hidden patches are left out of the encoder, or become a mask token",
        choices=("drop", "mask_token"),
    )
    masking: str = option(
        "random",
        "random patches, BEiT blocks, SimMIM units or MAGE's variable ratio",
        choices=("random", "block", "units", "variable"),
    )
    mask_ratio: float = option(
        0.5,
        "share of patches hidden; variable: the smallest share",
        low=0.0,
        high=1.0,
        common=True,
    )
    block_min: int = option(4, "block: smallest rectangle", unit="patches", low=1)
    unit: int = option(2, "units: side of a unit", unit="patches", low=1)
    ratio_mean: float = option(0.55, "variable: mean of the truncated normal", low=0.0, high=1.0)
    ratio_std: float = option(0.25, "variable: its standard deviation", low=0.01, high=1.0)
    target: str = option(
        "tokens",
        "what is predicted of hidden patches; normalized: within each patch",
        choices=("tokens", "pixels", "normalized_pixels"),
    )
    label_smoothing: float = option(
        0.0, "share of the target id that is spread over the codebook", low=0.0, high=1.0
    )
    loss_on: str = option(
        "hidden",
        "patches that the loss counts: hidden ones, or visible ones too",
        choices=("hidden", "all"),
        default_is_before=True,
    )
    row_share: float = option(
        1.0,
        "share of a batch's images that are masked, e.g. 0.5: every other one",
        low=1e-6,
        high=1.0,
        two_passes=True,
        default_is_before=True,
    )
    start_share: float = option(
        0.0,
        "share of the training's steps before the first with a masked pass",
        low=0.0,
        high=1.0,
        two_passes=True,
        default_is_before=True,
    )
    end_share: float = option(
        1.0,
        "share of the training's steps after which there is no masked pass",
        low=0.0,
        high=1.0,
        two_passes=True,
        default_is_before=True,
    )
    soft_target_weight: float = option(
        0.0,
        "weight of predicting the full pass's classes in the masked one (MaskSub)",
        low=0.0,
        two_passes=True,
        default_is_before=True,
    )

    @property
    def rows(self) -> Fraction:
        """row_share as a fraction, p / q in lowest terms: the first p of every q rows."""
        return Fraction(self.row_share).limit_denominator(MAX_IMAGES)

    @property
    def step_share(self) -> float:
        """Share of the training's steps that have a masked pass."""
        return self.end_share - self.start_share


@dataclass(frozen=True)
class Tokenizer:
    """Frozen in a SupMIM run, where it turns images into target ids; trained by task=tokenizer.

    From `reconstruction` on, only task=tokenizer reads the options; weights are those of losses.
    """

    name: str = option(
        "patch_vq",
        "codes of patches or of features, or a VQGAN: MaskGIT's or taming's",
        choices=("patch_vq", "feature_codes", "vqgan", "taming"),
    )
    path: str = option(
        "",
        "folder of a tokenizer; empty: patch_vq and feature_codes are fitted",
        is_path=True,
        in_bucket=True,
        may_change="always",  # a checkpoint's fingerprint identifies the tokenizer
        in_results=True,
        unused_by=("tokenizer",),
        common=True,
    )
    image_size: int = option(
        0,
        "side of the image that the tokenizer sees; 0: data.image_size",
        unit="pixels",
        low=0,
        changes=("ids",),
        unused_by=("tokenizer",),
    )
    codebook_size: int = option(1024, "number of codes", low=2, changes=("ids",), debug=64)
    patch_size: int = option(16, "side of the square that one id stands for", unit="pixels", low=1)
    filters: int = option(
        128, "vqgan, feature_codes: channels of the first level", low=1, high=MAX_WIDTH
    )
    channel_multipliers: str = option(
        "1,1,2,2,4", "vqgan: channels of each level, in filters; all but one halve the side"
    )
    num_res_blocks: int = option(2, "vqgan: residual blocks of a level", low=1, high=MAX_DEPTH)
    norm_groups: int = option(
        NORM_GROUPS, "vqgan: groups of a norm; one channel per group loses the brightness", low=1
    )
    embedding_dim: int = option(256, "vqgan: size of a code", low=1)
    dtype: str = option(
        "auto",
        "compute dtype; auto: bfloat16 for a frozen network, else float32",
        choices=("auto", "float32", "bfloat16"),
        changes=("ids",),
    )
    microbatch: int = option(
        64, "images that a device turns into ids at once", low=1, changes=("ids",)
    )
    fit_images: int = option(8192, "training images that the codes are fitted on", low=1, debug=64)
    fit_steps: int = option(30, "k-means steps", low=1)
    network_steps: int = option(
        1000,
        "feature_codes: steps of the small network, if there is no path",
        low=1,
        debug=20,
        default_is_before=True,
    )
    reconstruction: str = option("l2", "pixel loss", choices=("l1", "l2"))
    commitment_weight: float = option(0.25, "commitment loss: moves latents to their codes", low=0)
    codebook: str = option(
        "gradient",
        "codes move by gradient, or are averages of latents",
        choices=("gradient", "ema"),
    )
    codebook_decay: float = option(
        0.99, "decay per step of the averages of codes' use", low=0.0, high=1.0
    )
    revive_below: float = option(
        0.0, "codes used less than this share of the mean are replaced; 0: none", low=0.0, high=1.0
    )
    entropy_weight: float = option(0.1, "entropy loss: clear choices, an even use of codes", low=0)
    entropy_temperature: float = option(0.01, "temperature of the softmax over distances", low=1e-6)
    perceptual_weight: float = option(0.0, "perceptual loss on VGG16's features, as LPIPS", low=0)
    perceptual_weights: str = option(
        "",
        "safetensors FILE with the weights of torchvision's VGG16",
        is_path=True,
        may_change="on resume",  # its SHA-256 is what must not change
    )
    perceptual_sha256: str = option("", "SHA-256 of that file")
    adversarial_weight: float = option(0.0, "adversarial loss; 0 builds no discriminator", low=0)
    adversarial_loss: str = option(
        "non_saturating", "loss of tokenizer and discriminator", choices=("non_saturating", "hinge")
    )
    adversarial_start: int = option(
        0, "steps in which only the discriminator learns", low=0, debug=0
    )
    discriminator: str = option(
        "stylegan", "PatchGAN's, or StyleGAN2's with blur pooling", choices=("patch", "stylegan")
    )
    discriminator_filters: int = option(64, "channels of the discriminator's first layer", low=1)
    r1_weight: float = option(
        10.0, "R1 penalty: squared gradient of the discriminator at real images", low=0
    )
    lecam_weight: float = option(
        0.0, "LeCam: keeps logits of real and decoded images near each other's mean", low=0
    )


@dataclass(frozen=True)
class Optimizer:
    """Linear warm-up, then cosine to zero."""

    name: str = option(
        "adamw",
        "AdamW, Adam with big_vision's decay, LAMB (DeiT-III) or Muon",
        choices=("adamw", "adam_decoupled", "lamb", "muon"),
    )
    learning_rate: float = option(
        1e-3, "peak learning rate at this batch size", low=1e-12, common=True
    )
    warmup_steps: int = option(10_000, "linear warm-up", unit="steps", low=0, debug=2)
    warmup_share: float = option(
        0.0,
        "with warmup_steps=0: warm-up, as a share of the training",
        low=0.0,
        high=0.9,
        debug=0.0,
        default_is_before=True,
    )
    b1: float = option(0.9, "decay of Adam's first moment", low=0.0, high=0.99999)
    b2: float = option(0.999, "decay of Adam's second moment", low=0.0, high=0.99999)
    moment_dtype: str = option(
        "float32", "dtype of the first moment", choices=("float32", "bfloat16")
    )
    weight_decay: float = option(
        0.1, "decay of kernels, times learning rate; adam_decoupled: times schedule", low=0
    )
    clip_norm: float = option(1.0, "largest global gradient norm; 0: no clipping", low=0)
    layer_decay: float = option(
        1.0,
        "learning rate of an encoder block, as a share of the next block's",
        low=0.01,
        high=1.0,
        unused_by=("tokenizer",),
    )
    frozen: str = option(
        "none", "what is not trained", choices=("none", "encoder"), unused_by=("tokenizer",)
    )
    spike_sigmas: float = option(
        6.0,
        "spike: a loss or gradient norm this many deviations above the usual",
        low=1.0,
        default_is_before=True,
    )
    skip_spikes: bool = option(
        False, "leave out the update of a spike; it is counted anyway", default_is_before=True
    )
    ema_decay: float = option(
        0.0,
        "decay per step of the averaged parameters, which are evaluated; 0: off",
        low=0.0,
        high=0.999999,
    )


@dataclass(frozen=True)
class Init:
    """Where parameters come from when a run starts."""

    model: str = option(
        "",
        "where the encoder is taken from: a workdir, timm folder, big_vision npz",
        is_path=True,
        in_bucket=True,
        common=True,
    )


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis."""

    data: int = option(
        -1, "devices that split the batch; -1: the rest", low=-1, may_change="always"
    )
    fsdp: int = option(
        1, "devices that split batch and parameters; -1: the rest", low=-1, may_change="always"
    )
    tensor: int = option(
        1, "devices that split heads and MLP; -1: the rest", low=-1, may_change="always"
    )
    fsdp_splits: str = option(
        "state",
        "what fsdp splits: the whole state, or the optimizer's alone (ZeRO-1)",
        choices=("state", "optimizer"),
        may_change="always",
    )


@dataclass(frozen=True)
class Eval:
    """Evaluation and pictures."""

    evaluators: str = option(
        "classification,knn,reconstruction",
        "evaluators, separated by commas, or all",
        may_change="in evaluation",
        common=True,
    )
    batch_size: int = option(
        512,
        "images per evaluation batch, over all devices",
        low=1,
        high=MAX_IMAGES,
        may_change="in evaluation",
        debug=16,
    )
    similarity_mib: int = option(
        256,
        "similarities that a device holds at once",
        unit="MiB",
        low=1,
        may_change="in evaluation",
    )
    landmarks: str = option(
        "",
        "landmarks: JSON file of gallery, queries and their matches",
        is_path=True,
        may_change="always",
        in_results=True,
        unused_by=NO_PASSES,
    )
    real_labels: str = option(
        "",
        "JSON file of all labels that fit each image, as real.json; empty: none",
        is_path=True,
        may_change="always",
        in_results=True,
        unused_by=NO_PASSES,
    )
    all_labels: bool = option(
        False,
        "knn also searches the images whose labels data.labels sets aside",
        may_change="in evaluation",
        default_is_before=True,
        unused_by=NO_PASSES,
    )
    pictures: int = option(8, "fixed images in each picture", low=1, may_change="in evaluation")


@dataclass(frozen=True)
class Checkpoint:
    """Which checkpoints stay."""

    keep: int = option(2, "newest checkpoints kept", low=1, may_change="on resume")
    keep_best: int = option(
        1, "checkpoints of the best evaluations kept too; saved at once", low=0, may_change="always"
    )
    keep_best_metric: str = option(
        "knn/recall_at_1", "result that ranks them, higher is better", may_change="always"
    )


@dataclass(frozen=True)
class Runtime:
    """How a run deals with the machine that it runs on."""

    stall_minutes: float = option(
        10.0,
        "longest wait for a step, at least 10 x the usual; 0: no limit",
        unit="minutes",
        low=0,
        may_change="always",
        default_is_before=True,
    )


@dataclass(frozen=True)
class Config:
    """The whole config of a run, and the facts that follow from several of its options."""

    seed: int = option(0, "seed of parameters, masks, dropout and mixing", low=0, common=True)
    task: str = option("supmim", "what is trained", choices=tuple(tasks.FACTS))
    batch_size: int = option(
        1024, "images per step, over all devices", low=1, high=MAX_IMAGES, debug=16, common=True
    )
    accumulation_steps: int = option(
        1, "parts that a batch is split into, computed one after the other", low=1, debug=1
    )
    steps_per_call: int = option(
        0,
        "steps in one call of the program; 0: as many as take 0.5 s",
        low=0,
        high=1000,
        may_change="always",
        default_is_before=True,
    )
    total_epochs: int = option(
        90, "length of the training, in passes over the training set", low=1, debug=5, common=True
    )
    total_steps: int = option(
        0,
        "length of the training, in steps; 0: total_epochs",
        low=0,
        debug=0,
        default_is_before=True,
    )
    class_weight: float = option(
        1.0,
        "weight of the class loss; 0: no class pass, unless a soft target needs one",
        low=0,
        unused_by=NO_PASSES,
    )
    mim_weight: float = option(
        1.0,
        "weight of the token loss; 0 builds no decoder",
        low=0,
        unused_by=NO_PASSES,
        common=True,
    )
    log_every: int = option(
        50, "steps between two lines of metrics", low=1, may_change="on resume", debug=1
    )
    eval_every: int = option(
        0,
        "steps between two evaluations; 0: only at the end",
        low=0,
        may_change="on resume",
        debug=0,
    )
    save_every: int = option(
        1000,
        "steps between two checkpoints; 0: only at the end",
        low=0,
        may_change="on resume",
        debug=10,
    )
    data: Data = Data()
    encoder: Encoder = group(Encoder(), unused_by=("tokenizer",))
    classifier: Classifier = group(Classifier(), unused_by=("tokenizer",))
    class_pass: ClassPass = group(ClassPass(), unused_by=NO_PASSES)
    decoder: Decoder = group(Decoder(), unused_by=NO_PASSES)
    segmentation: Segmentation = group(Segmentation(), unused_by=("tokenizer", "supmim"))
    mim: Mim = group(Mim(), unused_by=NO_PASSES)
    tokenizer: Tokenizer = group(Tokenizer(), unused_by=("segmentation",))
    optimizer: Optimizer = Optimizer()
    init: Init = group(Init(), unused_by=("tokenizer",))
    mesh: Mesh = Mesh()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    runtime: Runtime = Runtime()

    @property
    def facts(self) -> tasks.Facts:
        """The facts about the task that are known without its code."""
        return tasks.FACTS[self.task]

    @property
    def has_decoder(self) -> bool:
        """Whether a decoder is built."""
        return self.task == "supmim" and bool(self.mim_weight)

    @property
    def classifies(self) -> bool:
        """Whether a classifier is trained; if not, only the masked one of two passes remains."""
        return bool(self.class_weight or self.mim.soft_target_weight)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the decoder predicts ids of a tokenizer."""
        return self.has_decoder and self.mim.target == "tokens"

    @property
    def row_group(self) -> int:
        """Number of rows of which mim.row_share takes some; it divides each device's part."""
        return self.mim.rows.denominator if self.has_decoder else 1

    @property
    def unlabelled_rows(self) -> int:
        """Images without labels in a step."""
        return (self.data.unlabelled_batch or self.batch_size) if self.data.unlabelled else 0

    @property
    def step_images(self) -> int:
        """Images in a step, with and without labels."""
        return self.batch_size + self.unlabelled_rows

    @property
    def labelled_share(self) -> Fraction:
        """Share of a step's images that have labels, p / q: the first p of every q rows."""
        return Fraction(self.batch_size, self.step_images)

    def num_steps(self, num_images: int) -> int:
        """Return the length of the training, in steps, on this many images with labels."""
        return self.total_steps or self.total_epochs * num_images // self.batch_size

    def num_epochs(self, num_images: int) -> int:
        """Return the number of epochs, rounded up, over this many images with labels."""
        if not self.total_steps:
            return self.total_epochs
        return -(-self.total_steps * self.batch_size // num_images)

    @property
    def grid(self) -> int:
        """Side of the encoder's grid, in patches."""
        return self.data.image_size // self.encoder.patch_size

    @property
    def tokenizer_size(self) -> int:
        """Side of the images that the tokenizer sees, in pixels."""
        return self.tokenizer.image_size or self.data.image_size

    @property
    def tokenizer_dtype(self) -> str:
        """The dtype in which the tokenizer computes: patch_vq always takes float32."""
        if self.tokenizer.dtype != "auto":
            return self.tokenizer.dtype
        frozen_network = self.task == "supmim" and self.tokenizer.name != "patch_vq"
        return "bfloat16" if frozen_network else "float32"

    @property
    def window(self) -> tuple[int, int]:
        """Side and stride of segmentation's sliding window, in pixels."""
        side = self.segmentation.window or self.data.image_size
        return side, self.segmentation.stride or max(1, 2 * side // 3)

    @property
    def evaluator_names(self) -> tuple[str, ...]:
        """The requested evaluators, in order; `all` leaves out landmarks if it has no images.

        Evaluators are also left out if they need a decoder or a trained classifier that the run
        does not have.
        """
        names = [name for name in self.eval.evaluators.split(",") if name]
        if names == [tasks.ALL]:
            without = () if self.eval.landmarks else ("landmarks",)
            names = [name for name in self.facts.evaluators if name not in without]
        missing = () if self.has_decoder else ("reconstruction",)
        missing += () if self.classifies else tasks.USE_CLASSIFIER
        return tuple(name for name in names if name not in missing)


def leaves(group: type, prefix: str = "") -> Iterator[tuple[str, Option]]:
    """Yield (`group.option`, its Option) for every option of a group and of the groups in it."""
    for field in fields(group):
        if isinstance(field.type, type) and is_dataclass(field.type):
            others = field.metadata["unused_by"] if field.metadata else ()
            for path, one in leaves(field.type, f"{prefix}{field.name}."):
                yield path, replace(one, unused_by=(*one.unused_by, *others))
        else:
            yield prefix + field.name, field.metadata["option"]


OPTIONS: dict[str, Option] = dict(leaves(Config))


def changed(group: Group, **changes: Value) -> Group:
    """Return a group of options with some of them set to other values."""
    return type(group)(**vars(group) | changes)


def that_change(*what: Change) -> tuple[str, ...]:
    """Return the paths of the options that change one of these, as declared."""
    return tuple(path for path, option in OPTIONS.items() if set(option.changes) & set(what))


def identity(values: Mapping[str, Value], *what: Change) -> dict[str, Value]:
    """Return path -> value of the options that change one of these, for a record on disk.

    An option with `default_is_before` is left out while it has its default, so that older records
    still match.
    """
    return {
        path: values[path]
        for path in that_change(*what)
        if not (OPTIONS[path].default_is_before and values[path] == OPTIONS[path].default)
    }


def multipliers(text: str) -> tuple[int, ...]:
    """Return config.tokenizer.channel_multipliers as numbers; empty if it is no list of numbers."""
    words = [word.strip() for word in text.split(",")]
    sound = len(words) <= MAX_LEVELS and all(
        re.fullmatch("[1-9][0-9]{0,3}", word) for word in words
    )
    return tuple(map(int, words)) if sound else ()
