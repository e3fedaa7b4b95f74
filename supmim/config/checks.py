"""Checks of options, alone and together: each problem comes with the nearest valid value."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from supmim.config import options, tasks
from supmim.config.flat import build, flatten
from supmim.config.option import NO_COPY, Option, Value
from supmim.config.options import NORM_GROUPS, OPTIONS, REST, SSIM_WINDOW, STDDEV_GROUP, Config
from supmim.errors import counted
from supmim.storage.schemes import on_bucket

MOST_CODES = 2**16  # codes that a cache of target ids can tell apart
SMALLEST_PERCEPTUAL = 16  # side of an image that VGG16 halves four times
WITH_MASKS = ("scenes", "pairs")  # kinds of sources
CONVOLUTIONAL = ("vqgan", "taming")  # tokenizers whose stride follows from their levels


def problems(flat: dict[str, Any]) -> list[str]:
    """Return every problem of `group.option` -> value; one wrong name or value makes one problem.

    Options are also checked against each other, with the default in place of an option that is
    missing or wrong by itself. A problem is reported only if no other value there would solve it.
    """
    found, missing, flat = _name_problems(flat)
    wrong = {path: why for path, option in OPTIONS.items() if (why := option.problem(flat[path]))}
    found += [f"config.{path} {why}" for path, why in wrong.items()]
    sound = {path: flat[path] for path in OPTIONS} | {p: OPTIONS[p].default for p in wrong}
    together = _joint_problems(sound)
    for path in (*missing, *wrong):
        for value in _other_values(OPTIONS[path]):
            again = _joint_problems(sound | {path: value})
            together = [problem for problem in together if problem in again]
    return found + together


def _name_problems(flat: dict[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return problems of names, the options that are missing, and all options with a value.

    A missing option gets the value of a wrong name that is close to its own, or else its default.
    """
    found, missing = [], [path for path in OPTIONS if path not in flat]
    values = {path: flat.get(path, option.default) for path, option in OPTIONS.items()}
    for path in [path for path in flat if path not in OPTIONS]:
        close = difflib.get_close_matches(path, missing, n=1)
        for meant in close:
            missing.remove(meant)
            values[meant] = flat[path]
        close += difflib.get_close_matches(path, OPTIONS, n=1)
        hint = f"; did you mean config.{close[0]}?" if close else ""
        found.append(f"config.{path} does not exist{hint}")
    return found + [f"config.{path} is missing" for path in missing], missing, values


def _other_values(option: Option) -> list[Value]:
    """Return allowed values of an option besides its default, if they are easily found."""
    default = option.default
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, str):
        return [value for value in option.choices or ("", "x") if value != default]
    numbers = {type(default)(x) for x in (option.low, option.high, default + 1) if abs(x) < 2**31}
    return [x for x in sorted(numbers - {default}) if not option.problem(x)]


def _joint_problems(values: dict[str, Value]) -> list[str]:
    """Return the problems of options together, given that each value alone is allowed."""
    config = build(values)
    checks = (_size_problems, _view_problems, _list_problems)
    return [problem for check in checks for problem in check(config)]


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
    if _in_whole_patches(config) and 0 < config.data.eval_resize < config.data.image_size:
        yield (
            f"config.data.eval_resize={config.data.eval_resize} is smaller than the crop of "
            f"config.data.image_size={config.data.image_size}; set it to 0 or at least that"
        )
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
    unused = [
        f"config.{path}={values[path]}"
        for path, option in OPTIONS.items()
        if config.task in option.unused_by and values[path] != option.default
    ]
    if unused:
        be, them = ("is", "it") if len(unused) == 1 else ("are", "them")
        yield f"{', '.join(unused)} {be} not for config.task={config.task}: leave {them} out"


def _in_whole_patches(config: Config) -> bool:
    """Return whether images split into whole patches; their number is not known otherwise."""
    network = config.tokenizer if config.task == "tokenizer" else config.encoder
    return config.data.image_size % network.patch_size == 0


def _tokenizer_training_problems(config: Config) -> Iterator[str]:
    """Sizes that no tokenizer can be trained with."""
    tokenizer = config.tokenizer
    image_size, parts = config.data.image_size, config.accumulation_steps
    if tokenizer.name not in CONVOLUTIONAL:
        yield (
            "config.task=tokenizer trains VQGANs only (patch_vq is fitted when a run starts, and "
            "feature_codes by supmim tokenizer fit): set config.tokenizer.name=vqgan"
        )
        return
    yield from _tokenizer_problems(tokenizer)
    if not _stride_problem(tokenizer) and image_size % tokenizer.patch_size:
        yield (
            f"config.data.image_size={image_size} is not divisible by "
            f"config.tokenizer.patch_size={tokenizer.patch_size}; nearest image sizes: "
            + _nearest(image_size, multiple_of=tokenizer.patch_size)
        )
    yield from _perceptual_problems(tokenizer, image_size)
    if config.batch_size % parts:
        return
    if tokenizer.entropy_weight and parts > 1:
        yield (
            f"config.tokenizer.entropy_weight={tokenizer.entropy_weight:g} needs the codes of a "
            f"whole batch, which config.accumulation_steps={parts} splits into parts; set "
            "config.tokenizer.entropy_weight=0 or config.accumulation_steps=1"
        )
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
    if image_size < SMALLEST_PERCEPTUAL:
        yield (
            f"config.tokenizer.perceptual_weight needs images of {SMALLEST_PERCEPTUAL} pixels or "
            f"more, not config.data.image_size={image_size}; set "
            "config.tokenizer.perceptual_weight=0"
        )
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


def _segmentation_problems(config: Config) -> Iterator[str]:
    """Sources without masks, windows that do not fit, and views that the masks cannot follow."""
    yield from _encoder_problems(config)
    without = [
        f"config.data.{name}={source}"
        for name, source in (("train", config.data.train), ("eval", config.data.eval))
        if source and source.partition(":")[0] not in WITH_MASKS
    ]
    if without:
        yield (
            f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} no masks, which "
            f"config.task=segmentation needs: it takes {' or '.join(f'{x}:' for x in WITH_MASKS)}"
        )
    if _in_whole_patches(config):
        yield from _window_problems(config)


def _window_problems(config: Config) -> Iterator[str]:
    """A window that splits a patch, is larger than the images, or smaller than its stride."""
    (side, stride), patch = config.window, config.encoder.patch_size
    image, resize = config.data.image_size, config.data.eval_resize or config.data.image_size
    above = -(-side // patch) * patch
    if side > resize >= image:
        yield (
            f"config.segmentation.window={side} exceeds the short side of "
            f"{counted(resize, 'pixel')} that evaluation images have: set "
            f"config.data.eval_resize={above} or a smaller window"
        )
    elif side % patch:
        yield (
            f"config.segmentation.window={side} is not divisible by config.encoder.patch_size="
            f"{patch}; nearest: " + _nearest(side, multiple_of=patch)
        )
    if stride > above:
        yield (
            f"config.segmentation.stride={stride} exceeds the window of "
            f"{counted(side, 'pixel')}: some pixels would be in no window; set it to at most {side}"
        )


def _supmim_problems(config: Config) -> Iterator[str]:
    """Sources with masks, losses that are all off, and sizes of masked image modelling."""
    yield from _encoder_problems(config)
    masked = [
        f"config.data.{name}={source}"
        for name, source in (("train", config.data.train), ("eval", config.data.eval))
        if source.partition(":")[0] in WITH_MASKS
    ]
    if masked:
        yield (
            f"{', '.join(masked)} {'has' if len(masked) == 1 else 'have'} classes of pixels, but "
            "config.task=supmim needs classes of images: set config.task=segmentation or another "
            "source"
        )
    if not config.class_weight and not config.mim_weight:
        yield "config.class_weight and config.mim_weight are both 0: nothing would be trained"
    whole, keep = _in_whole_patches(config), config.class_pass.keep
    num_tokens = config.grid**2
    if whole and _kept(num_tokens, keep) < 1:
        yield (
            f"config.class_pass.keep={keep:g} keeps none of {counted(num_tokens, 'token')}; the "
            f"smallest share here is {1 / num_tokens:.4g}"
        )
    yield from _unlabelled_problems(config)
    if config.mim_weight:
        yield from _mim_problems(config)
        yield from _pass_problems(config)


TASK_PROBLEMS = {
    "supmim": _supmim_problems,
    "tokenizer": _tokenizer_training_problems,
    "segmentation": _segmentation_problems,
}


def _encoder_problems(config: Config) -> Iterator[str]:
    """Sizes that no encoder, or decoder if there is one, can have."""
    image_size, encoder = config.data.image_size, config.encoder
    if not _in_whole_patches(config):
        yield (
            f"config.data.image_size={image_size} is not divisible by "
            f"config.encoder.patch_size={encoder.patch_size}; nearest image sizes: "
            + _nearest(image_size, multiple_of=encoder.patch_size)
            + "; nearest patch sizes: "
            + _nearest(encoder.patch_size, divisor_of=image_size)
        )
    yield from _width_problems("encoder", encoder, encoder.positions == "sincos2d")
    if config.has_decoder:
        yield from _width_problems("decoder", config.decoder, True)
    if encoder.attention == "cudnn" and encoder.dtype != "bfloat16":
        yield "config.encoder.attention=cudnn works in bfloat16: set config.encoder.dtype=bfloat16"
    even = encoder.attention != "cudnn" or not _in_whole_patches(config)
    if not even and (odd := _odd_lengths(config)):
        yield (
            f"config.encoder.attention=cudnn trains on even numbers of tokens, not on {odd}: set "
            "config.encoder.attention=xla, or an even grid, mask_ratio and pool=gap or map"
        )


def _width_problems(
    name: str, group: options.Encoder | options.Decoder, sincos: bool
) -> Iterator[str]:
    """A width that does not split into heads, or into the parts of sin-cos positions."""
    width, heads = group.width, group.num_heads
    if sincos and width % 4:
        also = f" and by config.{name}.num_heads={heads}" if width % heads else ""
        yield (
            f"config.{name}.width={width} is not divisible by 4, as sin-cos positions need,{also}; "
            "nearest widths: " + _nearest(width, multiple_of=math.lcm(4, heads))
        )
    elif width % heads:
        yield (
            f"config.{name}.width={width} is not divisible by config.{name}.num_heads={heads}; "
            "nearest numbers of heads: " + _nearest(heads, divisor_of=width)
        )


def _data_problems(data: options.Data) -> Iterator[str]:
    """Limits in the wrong order, sizes that no image has, and folders that nothing can read."""
    for name, folder in (("tfds_dir", data.tfds_dir), ("targets", data.targets)):
        if on_bucket(folder) and not data.local_copy:
            yield f"config.data.{name}={NO_COPY.format(folder)}"
    limits = (("area", data.area_min, data.area_max), ("aspect", data.aspect_min, data.aspect_max))
    for name, low, high in limits:
        if low > high:
            yield f"config.data.{name}_min={low:g} exceeds config.data.{name}_max={high:g}"
    if data.labels > 1 and data.labels % 1:
        yield (
            f"config.data.labels={data.labels:g} is neither a share below 1 nor a whole number; "
            f"nearest: {data.labels // 1:g} or {data.labels // 1 + 1:g}"
        )
    if data.channels == 2:
        yield "config.data.channels=2: an image has 1 channel, grey, or 3; nearest: 1 or 3"


def _kept(num_tokens: int, share: float) -> int:
    """Return how many tokens a share keeps, as masking.keep_some does."""
    return round(num_tokens * (1 - (1 - share)))


def _odd_lengths(config: Config) -> str:
    """Return the odd ones among the numbers of tokens that encoder and decoder see."""
    mim, num_tokens = config.mim, config.grid**2
    unit = mim.unit**2 if mim.masking == "units" else 1
    drops = config.has_decoder and mim.hidden == "drop"
    kept = round(num_tokens // unit * (1 - mim.mask_ratio)) * unit if drops else num_tokens
    extra = config.encoder.extra_tokens
    seen = _kept(num_tokens, config.class_pass.keep) if config.task == "supmim" else num_tokens
    lengths = {tokens + extra for tokens in (num_tokens, kept, seen)}
    lengths |= {num_tokens} if config.has_decoder else set()
    return " or ".join(str(length) for length in sorted(lengths) if length % 2)


def _tokenizer_problems(tokenizer: options.Tokenizer) -> Iterator[str]:
    """Sizes of a convolutional tokenizer that no network can have."""
    if tokenizer.name == "patch_vq" and tokenizer.dtype == "bfloat16":
        yield "config.tokenizer.dtype=bfloat16: patch_vq computes in float32 only; set it to auto"
    if tokenizer.name not in CONVOLUTIONAL:
        return
    levels = options.multipliers(tokenizer.channel_multipliers)
    if not levels:
        yield (
            f"config.tokenizer.channel_multipliers={tokenizer.channel_multipliers!r} is not a list "
            f"of at most {options.MAX_LEVELS} whole numbers from 1 to 9999, e.g. 1,1,2,2,4"
        )
        return
    if problem := _stride_problem(tokenizer):
        yield problem
    groups = tokenizer.norm_groups
    if tokenizer.name == "taming" and groups != NORM_GROUPS:
        yield f"config.tokenizer.norm_groups={groups}: taming has {NORM_GROUPS}; set it to that"
    unit = math.lcm(*(groups // math.gcd(groups, level) for level in levels))
    if tokenizer.filters % unit:
        yield (
            f"config.tokenizer.filters={tokenizer.filters} times a multiplier is not divisible "
            f"by the {counted(groups, 'group')} of a norm; nearest: "
            + _nearest(tokenizer.filters, multiple_of=unit)
        )


def _stride_problem(tokenizer: options.Tokenizer) -> str:
    """Return why a convolutional tokenizer cannot have its patch size, "" if it can."""
    levels = options.multipliers(tokenizer.channel_multipliers)
    stride = 2 ** (len(levels) - 1) if levels else 0
    fixed = tokenizer.name in CONVOLUTIONAL
    if not fixed or tokenizer.patch_size == stride or not levels:
        return ""
    return (
        f"config.tokenizer.patch_size={tokenizer.patch_size} is not the stride of the "
        f"{counted(len(levels), 'level')} of config.tokenizer.channel_multipliers; set "
        f"config.tokenizer.patch_size={stride}, or another number of levels"
    )


def _mim_problems(config: Config) -> Iterator[str]:
    """Masks, targets and tokenizers that do not fit the encoder's grid."""
    mim, whole = config.mim, _in_whole_patches(config)
    if config.has_tokenizer:
        yield from _tokenizer_problems(config.tokenizer)
        if whole and not _stride_problem(config.tokenizer):
            yield from _grid_problems(config)
    yield from _target_problems(config)
    grid = config.grid if whole else max(2, config.grid + 1)  # that of a larger image
    num_tokens = grid * grid
    units = num_tokens // mim.unit**2 if mim.masking == "units" else num_tokens
    if units and round(units * (1 - mim.mask_ratio)) < 1:
        yield (
            f"config.mim.mask_ratio={mim.mask_ratio} leaves none of "
            f"{counted(num_tokens, 'token')} visible; the largest ratio here is {1 - 1 / units:.4g}"
        )
    hides = units - round(units * (1 - mim.mask_ratio)) or mim.masking == "variable"
    if units and mim.mask_ratio and not hides and mim.loss_on == "hidden":
        yield (
            f"config.mim.mask_ratio={mim.mask_ratio:g} hides none of "
            f"{counted(num_tokens, 'token')}, so that no token would be learned; a ratio "
            f"of {1 / units:.4g} hides one"
        )
    if mim.masking == "units" and whole and grid % mim.unit:
        yield (
            f"config.mim.unit={mim.unit} does not divide the {grid} x {grid} grid; nearest: "
            + _nearest(mim.unit, divisor_of=grid)
        )
    if mim.masking == "block" and mim.block_min > num_tokens:
        tokens = counted(num_tokens, "token")
        yield f"config.mim.block_min={mim.block_min} exceeds the {tokens} of an image"


def _pass_problems(config: Config) -> Iterator[str]:
    """Savings and losses that need two passes, or images, rows and steps that do not fit them."""
    values, mim = flatten(config), config.mim
    asked = [path for path, o in OPTIONS.items() if o.two_passes and values[path] != o.default]
    if asked and mim.passes == "one":
        off = ", ".join(f"config.{path}={OPTIONS[path].default}" for path in asked)
        yield (
            "with config.mim.passes=one, every image needs the single pass in every step: set "
            f"{off} or config.mim.passes=two"
        )
        return
    mixed = [f"config.data.{name}=0.0" for name in ("mixup", "cutmix") if values[f"data.{name}"]]
    if mim.soft_target_weight and mixed:
        yield (
            "with config.mim.soft_target_weight, the full pass teaches the masked pass, whose "
            f"images are not mixed: set {', '.join(mixed)} or config.mim.soft_target_weight=0.0"
        )
    if mim.start_share >= mim.end_share:
        yield (
            f"config.mim.start_share={mim.start_share:g} is not below config.mim.end_share="
            f"{mim.end_share:g}: no step would have a masked pass"
        )
    devices = max(1, config.mesh.data) * max(1, config.mesh.fsdp)  # -1: those are not known here
    unit = config.row_group * config.accumulation_steps * devices
    if config.row_group > 1 and config.batch_size % unit:
        why = " with this mesh and accumulation_steps" if unit > config.row_group else ""
        yield (
            f"config.mim.row_share={mim.row_share:g} takes {counted(mim.rows.numerator, 'row')} of "
            f"every {config.row_group}, so config.batch_size={config.batch_size} must be "
            f"divisible by {unit}{why}; nearest: " + _nearest(config.batch_size, multiple_of=unit)
        )


def _unlabelled_problems(config: Config) -> Iterator[str]:
    """Images without labels that nothing would use, or that have no part in a pass."""
    data, mim = config.data, config.mim
    if not data.unlabelled:
        if data.unlabelled_batch:
            yield (
                f"config.data.unlabelled_batch={data.unlabelled_batch} is set, but "
                "config.data.unlabelled is empty: set it too, or config.data.unlabelled_batch=0"
            )
        return
    asked = f"config.data.unlabelled={data.unlabelled}"
    if data.unlabelled == REST and not (data.labels or data.labelled_classes):
        yield (
            f"{asked} means the images that lose their labels, and none do: set config.data.labels "
            "or config.data.labelled_classes"
        )
    if not config.mim_weight:
        yield f"{asked} is for the token loss: set config.mim_weight above 0 or leave it empty"
        return
    if mim.row_share < 1:
        yield (
            f"config.mim.row_share={mim.row_share:g} lets the masked pass skip images, but those "
            f"of {asked} have no other pass: set config.mim.row_share=1.0 and a smaller "
            "config.data.unlabelled_batch"
        )
    if mim.soft_target_weight:
        yield (
            f"config.mim.soft_target_weight={mim.soft_target_weight:g} needs the full pass of each "
            f"masked image, which those of {asked} do not have: set "
            "config.mim.soft_target_weight=0.0"
        )
    parts = config.accumulation_steps
    if config.unlabelled_rows % parts:
        yield (
            f"config.data.unlabelled_batch={config.unlabelled_rows} is not divisible by "
            f"config.accumulation_steps={parts}; nearest: "
            + _nearest(config.unlabelled_rows, multiple_of=parts)
        )


def _target_problems(config: Config) -> Iterator[str]:
    """Targets that these images, or a cache of ids, do not allow."""
    target, targets = config.mim.target, config.data.targets
    if targets and target != "tokens":
        yield (
            f"config.data.targets={targets} holds target ids, but config.mim.target={target} "
            "predicts none: set config.mim.target=tokens, or leave config.data.targets empty"
        )
    if targets and config.tokenizer.codebook_size > MOST_CODES:
        yield (
            f"config.tokenizer.codebook_size={config.tokenizer.codebook_size} exceeds the "
            f"{MOST_CODES} codes that 16-bit ids can name: leave config.data.targets empty"
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
    elif size != grid * patch:
        free = config.tokenizer.name not in CONVOLUTIONAL and size % grid == 0
        fitting = f"config.tokenizer.patch_size={size // grid} or " if free else ""
        yield (
            f"the tokenizer's grid differs from the encoder's {grid} x {grid} tokens: "
            f"config.tokenizer.patch_size={patch} at {counted(size, 'pixel')}; set {fitting}"
            f"config.tokenizer.image_size={grid * patch}"
        )


def _view_problems(config: Config) -> Iterator[str]:
    """Augmentations that images or passes do not allow."""
    values = flatten(config)
    asked = [path for path in options.that_change("colours", "class view") if values[path]]
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
    unknown = [name for name in config.evaluator_names if name not in known]
    close = [match for name in unknown for match in difflib.get_close_matches(name, known, n=1)]
    if unknown:
        hint = f"; did you mean {', '.join(close)}?" if close else "."
        yield (
            f"config.eval.evaluators names {', '.join(map(repr, unknown))}, which task="
            f"{config.task} does not have{hint} It takes {', '.join(known)}, separated by commas, "
            f"or {tasks.ALL}"
        )
    if "landmarks" in config.evaluator_names and not config.eval.landmarks:
        yield (
            "config.eval.evaluators asks for landmarks: name their JSON file, "
            "--config.eval.landmarks=FILE.json"
        )
    if config.eval.evaluators in tasks.USE_CLASSIFIER and not config.classifies:
        yield (
            f"config.eval.evaluators={config.eval.evaluators} leaves nothing to evaluate: "
            "class_weight=0 trains no classifier"
        )
    # An unknown name may stand for any evaluator of the task.
    names = [*config.evaluator_names, *(config.facts.evaluators if unknown else ())]
    metric, known = config.checkpoint.keep_best_metric, rankings(config, names)
    of_class = re.sub("/iou/.*", "/iou/NAME", metric) in known
    if config.checkpoint.keep_best and metric not in known and not of_class:
        close = difflib.get_close_matches(metric, known, n=1)
        hint = f"did you mean {close[0]}? It takes" if close else "it takes"
        taken = f"{hint} {', '.join(known)}. Or" if known else "there is none:"
        yield (
            f"config.checkpoint.keep_best_metric={metric} is not a higher-is-better result of "
            f"config.eval.evaluators={config.eval.evaluators}; {taken} set "
            "config.checkpoint.keep_best=0"
        )


def rankings(config: Config, evaluators: Iterable[str]) -> list[str]:
    """Return the results that can rank checkpoints, as far as the config determines them."""
    tokens, real = config.mim.target == "tokens", bool(config.eval.real_labels)
    set_aside = config.data.labels or config.data.labelled_classes
    absent = {
        "reconstruction/pixels_explained" if tokens else "reconstruction/token_accuracy",
        "" if real else "classification/real_top1",
        "" if config.eval.all_labels and set_aside else "knn/all_labels_recall_at_1",
        "tokenizer/ssim" if config.data.image_size < SSIM_WINDOW else "",
    }
    names = [f"{name}/{of}" for name in evaluators for of in tasks.RESULTS.get(name, ())]
    return [name for name in names if name not in absent]
