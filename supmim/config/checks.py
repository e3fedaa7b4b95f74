"""Checks of options, alone and together: each problem comes with the nearest valid value."""

import difflib
import math
from collections.abc import Iterator
from typing import Any

from supmim.config import options, tasks
from supmim.config.flat import build, flatten
from supmim.config.options import NORM_GROUPS, OPTIONS, SSIM_WINDOW, STDDEV_GROUP, Config

MOST_CODES = 2**16  # codes that a cache of target ids can tell apart
SMALLEST_PERCEPTUAL = 16  # side of an image that VGG16 halves four times
MASKED = ("scenes", "pairs")  # kinds of sources that have masks


def problems(flat: dict[str, Any]) -> list[str]:
    """Return every problem of `group.option` -> value.

    An option that is wrong by itself is replaced by its default before options are checked against
    each other, and problems of that check that name it are left out: it is reported once.
    """
    sound = {
        path: flat[path] if path in flat and not option.problem(flat[path]) else option.default
        for path, option in OPTIONS.items()
    }
    wrong = [f"config.{path}=" for path in OPTIONS if path not in flat or sound[path] != flat[path]]
    config = build(sound)
    return [*_option_problems(flat)] + [
        problem
        for check in (_size_problems, _view_problems, _list_problems)
        for problem in check(config)
        if not any(path in problem for path in wrong)
    ]


def _option_problems(flat: dict[str, Any]) -> Iterator[str]:
    """Options that do not exist, have an impossible value, or are missing."""
    for path, value in flat.items():
        if path not in OPTIONS:
            close = difflib.get_close_matches(path, OPTIONS, n=1)
            hint = f"; did you mean config.{close[0]}?" if close else ""
            yield f"config.{path} does not exist{hint}"
        elif problem := OPTIONS[path].problem(value):
            yield f"config.{path} {problem}"
    yield from (f"config.{path} is missing" for path in OPTIONS if path not in flat)


def _nearest(number: int, *, divisor_of: int = 0, multiple_of: int = 1) -> str:
    """Return the nearest divisors of a number, or multiples of one, below and above `number`."""
    if divisor_of:
        small = [n for n in range(1, math.isqrt(divisor_of) + 1) if divisor_of % n == 0]
        fitting = {*small, *(divisor_of // n for n in small)}
    else:
        fitting = {number // multiple_of * multiple_of, (number // multiple_of + 1) * multiple_of}
    below = max((n for n in fitting if 0 < n < number), default=None)
    above = min((n for n in fitting if n > number), default=None)
    return " or ".join(str(n) for n in (below, above) if n is not None)


def _size_problems(config: Config) -> Iterator[str]:
    """Sizes that do not fit together, with the nearest ones that do."""
    yield from _data_problems(config.data)
    if config.batch_size % config.accumulation_steps:
        yield (
            f"config.batch_size={config.batch_size} is not divisible by "
            f"config.accumulation_steps={config.accumulation_steps}; nearest: "
            + _nearest(config.accumulation_steps, divisor_of=config.batch_size)
        )
    if config.optimizer.frozen == "encoder" and config.optimizer.layer_decay != 1:
        yield (
            f"config.optimizer.layer_decay={config.optimizer.layer_decay} has nothing to act on "
            "with config.optimizer.frozen=encoder: set it to 1.0, or frozen to none"
        )
    if config.optimizer.warmup_steps and config.optimizer.warmup_share:
        yield (
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} and "
            f"config.optimizer.warmup_share={config.optimizer.warmup_share:g} both set the "
            "warm-up: set one of them to 0"
        )
    yield from _unused_problems(config)
    if config.task in TASK_PROBLEMS:
        yield from TASK_PROBLEMS[config.task](config)


def _unused_problems(config: Config) -> Iterator[str]:
    """Options that were set although the task does not read them."""
    values = flatten(config)
    for path, option in OPTIONS.items():
        if config.task in option.unused_by and values[path] != option.default:
            yield (
                f"config.{path}={values[path]} is not for config.task={config.task}: leave it out"
            )


def _tokenizer_training_problems(config: Config) -> Iterator[str]:
    """Sizes that no tokenizer can be trained with."""
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
            + _nearest(image_size, multiple_of=tokenizer.patch_size)
        )
    if tokenizer.entropy_weight and parts > 1:
        yield (
            f"config.tokenizer.entropy_weight={tokenizer.entropy_weight:g} counts codes over a "
            f"whole batch, which config.accumulation_steps={parts} splits into parts; set "
            "config.tokenizer.entropy_weight=0 or config.accumulation_steps=1"
        )
    yield from _perceptual_problems(tokenizer, image_size)
    group = STDDEV_GROUP * parts
    grouped = tokenizer.adversarial_weight and tokenizer.discriminator == "stylegan"
    if grouped and config.batch_size % group:
        yield (
            f"config.batch_size={config.batch_size} does not split into parts ({parts}) of groups "
            f"of {STDDEV_GROUP} images, which the StyleGAN discriminator compares; nearest: "
            + _nearest(config.batch_size, multiple_of=group)
        )


def _perceptual_problems(tokenizer: options.Tokenizer, image_size: int) -> Iterator[str]:
    """A perceptual loss without weights, or on images that are too small."""
    if not tokenizer.perceptual_weight:
        return
    named = {
        "perceptual_weights": tokenizer.perceptual_weights,
        "perceptual_sha256": tokenizer.perceptual_sha256,
    }
    if not all(named.values()):
        flags = " and ".join(f"--config.tokenizer.{name}" for name in named)
        missing = ", ".join(
            f"config.tokenizer.{name}" for name, value in named.items() if not value
        )
        yield (
            f"config.tokenizer.perceptual_weight={tokenizer.perceptual_weight:g} needs the weights "
            f"of VGG16 in a file of yours, and {missing} is empty: set {flags}, or "
            "config.tokenizer.perceptual_weight=0"
        )
    if image_size < SMALLEST_PERCEPTUAL:
        yield (
            f"config.tokenizer.perceptual_weight needs images of {SMALLEST_PERCEPTUAL} pixels or "
            f"more, not config.data.image_size={image_size}; set "
            "config.tokenizer.perceptual_weight=0"
        )


def _segmentation_problems(config: Config) -> Iterator[str]:
    """Sources without masks, windows that do not fit, and views that the masks cannot follow."""
    yield from _encoder_problems(config)
    for name, source in (("train", config.data.train), ("eval", config.data.eval)):
        if source and source.partition(":")[0] not in MASKED:
            yield (
                f"config.data.{name}={source} has no masks, which config.task=segmentation needs: "
                f"it takes {' or '.join(f'{kind}:' for kind in MASKED)}"
            )
    side, stride = config.window
    patch, resize = config.encoder.patch_size, config.data.eval_resize or config.data.image_size
    if side % patch:
        yield (
            f"config.segmentation.window={side} is not divisible by config.encoder.patch_size="
            f"{patch}; nearest: " + _nearest(side, multiple_of=patch)
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


def _supmim_problems(config: Config) -> Iterator[str]:
    """Sources with masks, losses that are all off, and sizes of masked image modelling."""
    yield from _encoder_problems(config)
    for name, source in (("train", config.data.train), ("eval", config.data.eval)):
        if source.partition(":")[0] in MASKED:
            yield (
                f"config.data.{name}={source} has classes of pixels, none of images, which "
                "config.task=supmim needs: set config.task=segmentation or another source"
            )
    if not config.class_weight and not config.mim_weight:
        yield "config.class_weight and config.mim_weight are both 0: nothing would be trained"
    if config.mim_weight:
        yield from _mim_problems(config)


TASK_PROBLEMS = {
    "supmim": _supmim_problems,
    "tokenizer": _tokenizer_training_problems,
    "segmentation": _segmentation_problems,
}


def _encoder_problems(config: Config) -> Iterator[str]:
    """Sizes that no encoder, or decoder if there is one, can have."""
    image_size, encoder = config.data.image_size, config.encoder
    if image_size % encoder.patch_size:
        yield (
            f"config.data.image_size={image_size} is not divisible by "
            f"config.encoder.patch_size={encoder.patch_size}; nearest image sizes: "
            + _nearest(image_size, multiple_of=encoder.patch_size)
        )
    yield from _width_problems("encoder", encoder, encoder.positions == "sincos2d")
    if config.has_decoder:
        yield from _width_problems("decoder", config.decoder, True)
    if encoder.attention == "cudnn" and encoder.dtype != "bfloat16":
        yield "config.encoder.attention=cudnn works in bfloat16: set config.encoder.dtype=bfloat16"
    if encoder.attention == "cudnn" and (odd := _odd_lengths(config)):
        yield (
            f"config.encoder.attention=cudnn trains on even numbers of tokens, not on {odd}: set "
            "config.encoder.attention=xla, or an even grid, mask_ratio and pool=gap or map"
        )


def _width_problems(
    name: str, group: options.Encoder | options.Decoder, sincos: bool
) -> Iterator[str]:
    """A width that does not split into heads, or into the parts of sin-cos positions."""
    if group.width % group.num_heads:
        yield (
            f"config.{name}.width={group.width} is not divisible by "
            f"config.{name}.num_heads={group.num_heads}; nearest numbers of heads: "
            + _nearest(group.num_heads, divisor_of=group.width)
        )
    if sincos and group.width % 4:
        yield (
            f"config.{name}.width={group.width} is not divisible by 4, as sin-cos positions "
            "need; nearest widths: " + _nearest(group.width, multiple_of=4)
        )


def _data_problems(data: options.Data) -> Iterator[str]:
    """Limits in the wrong order, and sizes that no image has."""
    limits = (("area", data.area_min, data.area_max), ("aspect", data.aspect_min, data.aspect_max))
    for name, low, high in limits:
        if low > high:
            yield f"config.data.{name}_min={low:g} exceeds config.data.{name}_max={high:g}"
    if 0 < data.eval_resize < data.image_size:
        yield (
            f"config.data.eval_resize={data.eval_resize} is smaller than the crop of "
            f"config.data.image_size={data.image_size}; set it to 0 or at least that"
        )
    if data.channels == 2:
        yield "config.data.channels=2: an image has 1 channel, grey, or 3; nearest: 1 or 3"


def _odd_lengths(config: Config) -> str:
    """Return the odd ones among the numbers of tokens that encoder and decoder see."""
    mim, num_tokens = config.mim, config.grid**2
    unit = mim.unit**2 if mim.masking == "units" else 1
    drops = config.has_decoder and mim.hidden == "drop"
    kept = round(num_tokens // unit * (1 - mim.mask_ratio)) * unit if drops else num_tokens
    cls = config.encoder.pool == "cls"
    lengths = {num_tokens + cls, kept + cls, num_tokens if config.has_decoder else 0}
    return " or ".join(str(length) for length in sorted(lengths) if length % 2)


def _tokenizer_problems(tokenizer: options.Tokenizer) -> Iterator[str]:
    """Sizes of a convolutional tokenizer that no network can have."""
    if tokenizer.name == "patch_vq":
        if tokenizer.dtype == "bfloat16":
            yield "config.tokenizer.dtype: patch_vq works in float32 alone"
        return
    levels = options.multipliers(tokenizer.channel_multipliers)
    if not levels:
        yield (
            f"config.tokenizer.channel_multipliers={tokenizer.channel_multipliers!r} is no list of "
            f"whole numbers from 1 to 9999, {options.MAX_LEVELS} at most, e.g. 1,1,2,2,4"
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

    unit = math.lcm(*(groups // math.gcd(groups, level) for level in levels))
    if tokenizer.filters % unit:
        yield (
            f"config.tokenizer.filters={tokenizer.filters} times a multiplier is not divisible "
            f"by the {groups} groups of a norm; nearest: "
            + _nearest(tokenizer.filters, multiple_of=unit)
        )


def _mim_problems(config: Config) -> Iterator[str]:
    """Masks, targets and tokenizers that do not fit the encoder's grid."""
    mim, grid = config.mim, config.grid
    if config.has_tokenizer:
        yield from _tokenizer_problems(config.tokenizer)
        yield from _grid_problems(config)
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
            + _nearest(mim.unit, divisor_of=grid)
        )
    if mim.masking == "block" and mim.block_min > num_tokens:
        yield f"config.mim.block_min={mim.block_min} exceeds the {num_tokens} tokens of an image"


def _target_problems(config: Config) -> Iterator[str]:
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


def _grid_problems(config: Config) -> Iterator[str]:
    """A tokenizer whose ids do not each stand for one patch of the encoder."""
    size, patch, grid = config.tokenizer_size, config.tokenizer.patch_size, config.grid
    name = "tokenizer.image_size" if config.tokenizer.image_size else "data.image_size"
    if size % patch:
        yield (
            f"config.{name}={size} is not divisible by config.tokenizer.patch_size={patch}; "
            f"nearest: {_nearest(size, multiple_of=patch)}; the encoder's grid of {grid} x "
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


def _view_problems(config: Config) -> Iterator[str]:
    """Augmentations that images or passes do not allow."""
    values = flatten(config)
    coloured = [path for path in options.that_change("colours") if values[path]]
    asked = [path for path in options.that_change("colours", "class view") if values[path]]
    if coloured and config.data.channels not in (1, 3):
        yield (
            f"config.{coloured[0]} changes grey or RGB images, not those of "
            f"config.data.channels={config.data.channels}; nearest: 1 or 3"
        )
    if config.task == "tokenizer":
        return
    if asked and config.mim_weight and config.mim.passes == "one":
        off = [f"config.{path}={OPTIONS[path].default}" for path in asked]
        yield (
            "config.mim.passes=one predicts the tokens of images that are only flipped and moved: "
            f"set {', '.join(off)} or config.mim.passes=two"
        )


def _list_problems(config: Config) -> Iterator[str]:
    """Evaluators that the task does not have, and a metric that none of them computes."""
    known = config.facts.evaluators
    for name in config.evaluator_names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            yield (
                f"config.eval.evaluators names {name!r}, which task={config.task} does not have"
                f"{hint} It takes {', '.join(known)}, separated by commas, or {tasks.ALL}"
            )
    if "landmarks" in config.evaluator_names and not config.eval.landmarks:
        yield (
            "config.eval.evaluators asks for landmarks: name their JSON file, "
            "--config.eval.landmarks=FILE.json"
        )
    metric, known = config.checkpoint.keep_best_metric, rankings(config)
    of_class = metric.startswith("segmentation/iou/") and "segmentation/iou/NAME" in known
    if config.checkpoint.keep_best and metric not in known and not of_class:
        close = difflib.get_close_matches(metric, known, n=1)
        hint = f"did you mean {close[0]}? It takes" if close else "it takes"
        taken = f"{hint} {', '.join(known)}. Or" if known else "there is none:"
        yield (
            f"config.checkpoint.keep_best_metric={metric} is no result of which more is better of "
            f"config.eval.evaluators={config.eval.evaluators}; {taken} set "
            "config.checkpoint.keep_best=0"
        )


def rankings(config: Config) -> list[str]:
    """Return the results that can rank checkpoints, as far as the config says which there are."""
    tokens, real = config.mim.target == "tokens", bool(config.eval.real_labels)
    absent = {
        "reconstruction/pixels_explained" if tokens else "reconstruction/token_accuracy",
        "" if real else "classification/real_top1",
        "tokenizer/ssim" if config.data.image_size < SSIM_WINDOW else "",
    }
    names = [
        f"{name}/{of}" for name in config.evaluator_names for of in tasks.RESULTS.get(name, ())
    ]
    return [name for name in names if name not in absent]
