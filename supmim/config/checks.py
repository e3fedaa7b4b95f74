"""What options cannot be, alone or together: problems, each with the nearest valid value."""

import difflib
from collections.abc import Iterator
from typing import Any

from supmim.config.options import (
    ALL,
    CLASS_VIEW,
    COLOURS,
    EVALUATORS,
    MASKED,
    MOST_CODES,
    NORM_GROUPS,
    OPTIONS,
    SMALLEST_PERCEPTUAL,
    STDDEV_GROUP,
    evaluator_names,
    flatten,
    has_decoder,
    has_tokenizer,
    multipliers,
    tokenizer_size,
    window,
)


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
    for name in ("encoder", "decoder") if has_decoder(config) else ("encoder",):
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
    drops = has_decoder(config) and mim.hidden == "drop"
    kept = round(num_tokens // unit * (1 - mim.mask_ratio)) * unit if drops else num_tokens
    cls = config.encoder.pool == "cls"
    lengths = {num_tokens + cls, kept + cls, num_tokens if has_decoder(config) else 0}
    return " or ".join(str(length) for length in sorted(lengths) if length % 2)


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
                f"With task={config.task} it takes {', '.join(known)}, separated by commas, or "
                f"{ALL}"
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


def problems(config: Any, defaults: Any) -> list[str]:
    """Every problem with its nearest valid value; `defaults` stand in for what is wrong alone."""
    flat = flatten(config)
    sound = {path: value for path, value in flat.items() if path in OPTIONS and not
             OPTIONS[path].problem(value)}  # fmt: skip
    defaults.update_from_flattened_dict(sound)
    wrong = [f"config.{path}=" for path in OPTIONS if path not in sound]
    return _option_problems(flat) + [
        problem
        for check in (_size_problems, _view_problems, _list_problems)
        for problem in check(defaults)
        if not any(path in problem for path in wrong)  # told already
    ]
