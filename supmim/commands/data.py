"""`supmim data`: check, prepare and convert images before any training."""

import functools
import json
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl.flags import FlagValues

from supmim import config as config_lib
from supmim.config import Config, options
from supmim.data import bad_records, convert, inspection, prepare, sources
from supmim.data.images import Bad
from supmim.data.sources import base, folders
from supmim.data.sources.base import Source, printable
from supmim.errors import ConfigError, DataError, Interrupted, SupmimError, counted
from supmim.runtime import host_memory
from supmim.runtime.progress import doing
from supmim.workdir import lock

MAX_LISTED = 20  # lines of a list that are printed; --json has all
WIDTH = 80
DEFAULT_QUALITY = "90"
GIB = 2**30
ALL_SHARED = "all its held-out images are in train too"
ACTION_FLAGS = {  # flags that only one action takes
    "convert": ("out", "size", "quality", "raw"),
    "check": ("json", "mask_classes", "ignore_label"),
}
Report = tuple[dict[str, Any], Iterable[str], list[str]]  # results as JSON, lines, faults

log = functools.partial(print, flush=True)  # shows a line at once, also through a pipe


def run(_: Config | None, flags: FlagValues) -> None:
    for action, names in ACTION_FLAGS.items():
        for name in names if flags.action != action else ():
            if flags[name].value:
                raise ConfigError(f"--{name} is a flag of supmim data {action}")
    try:
        ACTIONS[flags.action](flags.source, data_options(flags), flags)
    except SupmimError as error:
        # The sources name options of a training; these are flags here.
        names = "|".join(name for name in flags if f"data.{name}" in config_lib.OPTIONS)
        told = re.sub(rf"(--)?(config\.)?data\.({names})\b", flag_of, str(error))
        raise type(error)(told) from error
    except KeyboardInterrupt as error:
        then = "continues it" if flags.action == "convert" else "starts it again"
        raise Interrupted(f"{flags.action} was interrupted; the same command {then}") from error


def flag_of(option: re.Match) -> str:
    """Return the flag for an option in a text."""
    return "--" + option[3].replace("_", "-")


def data_options(flags: FlagValues) -> options.Data:
    """Return config.data as the flags set it, with the crops of a usual training."""
    values = {"data.crop": "inception", "data.tfds_dir": flags.tfds_dir}
    values["data.local_copy"] = flags.local_copy
    if flags.holdout:
        values["data.holdout"] = number("holdout", flags.holdout, float, 0, 0.9)
    for name in ("mask_classes", "ignore_label"):
        if text := flags[name].value:
            values[f"data.{name}"] = number(name.replace("_", "-"), text, int, -1)
    return config_lib.validate(config_lib.flatten(config_lib.get_config()) | values).data


def number(flag: str, text: str, kind: type, low: float = 0, high: float = 10**6) -> Any:
    """Return the value of a flag; ConfigError if it is not a number from low to high."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ConfigError(f"--{flag}={text} is not a number from {low:g} to {high:g}")
    return value


def parts_of(spec: str, data: options.Data) -> dict[str, Source]:
    """Return train and val of a source, or "" -> all of it if it holds nothing out.

    A NAME without a split means its training split.
    """
    spec = spec if ":" in spec else f"{spec}:train"
    try:
        return dict(zip(("train", "val"), sources.find_both(spec, data), strict=True))
    except base.NothingHeldOut:
        return {"": sources.find(spec, base.WHOLE, data)}


def check(spec: str, data: options.Data, flags: FlagValues) -> None:
    """Decode every image and print what is there; DataError if training would refuse it."""
    report = report_pairs if spec.startswith("pairs:") else report_images
    found, lines, faults = report(spec, data)
    log(json.dumps(found, indent=1) if flags.json else "\n".join(lines))
    if faults:
        raise DataError(f"{spec} should not be trained on: " + "; ".join(faults))


def report_images(spec: str, data: options.Data) -> Report:
    parts = parts_of(spec, data)
    summaries = {
        name or "all": inspection.source_summary(part, data.max_pixels)
        for name, part in parts.items()
    }
    differences = list(sources.class_differences(*parts.values())) if len(parts) == 2 else []
    found = {"source": spec, "parts": summaries, "class_differences": differences}
    found |= {"unused_parts": folders.unused(spec), "shared": num_shared(parts)}
    if not next(iter(summaries.values()))["wrong_labels"]:
        speed = inspection.images_per_second(next(iter(parts.values())), data)
        found["images_per_second_and_core"] = speed
    return found, check_lines(found, data), list(check_faults(found, data.bad_share))


def check_faults(found: dict[str, Any], bad_share: float) -> Iterator[str]:
    """Yield why training would refuse a source of images."""
    for name, part in found["parts"].items():
        unreadable, wrong = len(part["unreadable"]), len(part["wrong_labels"])
        if why := bad_records.excess(unreadable, part["images"], bad_share, "image", name):
            yield why
        if wrong:
            told = counted(wrong, f"label of {name} names", f"labels of {name} name")
            yield f"{told} no class"
    if found["class_differences"]:
        yield "its parts have different classes"
    if found["shared"] and found["shared"] == found["parts"]["val"]["images"]:
        yield ALL_SHARED


def num_shared(parts: dict[str, Source]) -> int:
    return sources.num_shared(*parts.values()) if len(parts) == 2 else 0


def check_lines(found: dict[str, Any], data: options.Data) -> Iterator[str]:
    """Yield the report of a source of images, at most 80 columns wide."""
    for name, part in found["parts"].items():
        yield from part_lines(name, part, found["source"])
    for line in found["class_differences"]:
        yield cut(f"classes differ: {line}")
    if len(next(iter(found["parts"].values()))["class_names"]) == 1:
        yield "one class   enough for a tokenizer; training of a classifier needs two"
    yield from held_out_lines(found["parts"], found["unused_parts"], found["shared"])
    if speed := found.get("images_per_second_and_core"):
        yield from resource_lines(next(iter(found["parts"].values())), speed, data.image_size)


def held_out_lines(parts: dict[str, Any], unused: Sequence[str], shared: int) -> Iterator[str]:
    if shared:
        yield f"shared      {shared:,} of the held-out images are in train too"
    if unused:
        yield from wrapped(f"not used    {', '.join(unused)}")
    if len(parts) == 1:
        yield "held out    nothing: to train on this alone, set --config.data.eval=SOURCE"


def part_lines(name: str, part: dict[str, Any], spec: str) -> Iterator[str]:
    size = (
        f"{part['bytes'] / 1e9:.2f} GB" if part["bytes"] > 1e8 else f"{part['bytes'] / 1e6:.2f} MB"
    )
    images, classes = counted(part["images"], "image"), counted(part["classes"], "class")
    yield cut(f"{name:<12}{images}, {size}, {classes}")
    yield from wrapped(f"  source    {printable(part['name'])}")
    yield cut(f"  names     {', '.join(map(printable, part['class_names']))}")
    if part["largest"]:
        yield cut(f"  classes   {sizes_of_classes(part['smallest'], part['largest'])}")
    for title, counts in (("formats", part["formats"]), ("modes", part["modes"])):
        yield cut(f"  {title:<10}" + ", ".join(f"{kind} {n:,}" for kind, n in counts.items()))
    for title in ("width", "height", "short_side"):
        if part[title]:
            yield f"  {title.replace('_', ' '):<12}{range_of_pixels(*part[title])}"
    if empty := part["without_images"] + part["empty_folders"]:
        classes = counted(part["classes"] + len(part["empty_folders"]), "class")
        told = f"{len(empty):,} of {classes}"
        yield cut(f"  no images of {told}: {', '.join(map(printable, empty))}")
    yield from left_out_lines(part["left_out"])
    yield from list_lines("links to a folder above them, not followed", part["loops"])
    yield from list_lines("labels that name no class", part["wrong_labels"])
    yield from list_lines("unreadable", bad_lines([Bad(**bad) for bad in part["unreadable"]], spec))


def sizes_of_classes(smallest: tuple[str, int], largest: tuple[str, int]) -> str:
    """Describe how many images the smallest and the largest class have: (name, number) of each."""
    (least, few), (most, many) = smallest, largest
    if few == many:
        return f"{counted(few, 'image')} in each"
    return f"{few:,} ({printable(least)}) to {many:,} ({printable(most)}) images"


def range_of_pixels(least: int, median: int, most: int) -> str:
    if least == most:
        return f"{counted(most, 'pixel')} each"
    return f"{least:,} to {most:,} pixels, median {median:,}"


def left_out_lines(counts: dict[str, int]) -> Iterator[str]:
    if counts:
        told = ", ".join(f"{printable(kind)} {count:,}" for kind, count in counts.items())
        yield cut(f"  left out  {told}")


def list_lines(title: str, items: Sequence[str]) -> Iterator[str]:
    """Yield how many items there are, and the first of them."""
    if items:
        yield f"  {title}: {len(items):,}"
        for item in items[:MAX_LISTED]:
            yield from wrapped(f"    {printable(item)}")
    if len(items) > MAX_LISTED:
        yield f"    and {len(items) - MAX_LISTED:,} more: --json lists all"


def resource_lines(part: dict[str, Any], speed: float, image_size: int) -> Iterator[str]:
    """Yield the time and the memory that training would take on this machine."""
    cores = len(os.sched_getaffinity(0))
    seconds = part["images"] / speed / cores
    yield cut(
        f"speed       {speed:,.0f} images/s a core, cropped to {image_size}; with "
        f"{counted(cores, 'core')} {duration(seconds)} an epoch"
    )
    files, pixels = part["bytes"] / GIB, part["images"] * 3 * image_size**2 / GIB
    free = host_memory.available()
    fit = "files fit into" if files < free / 2 else "files exceed"
    yield cut(
        f"memory      files {files:,.2f} GiB, as pixels {pixels:,.2f} GiB; {fit} the "
        f"{free:,.1f} GiB free"
    )
    if part["short_side"] and part["short_side"][1] > 256:
        yield "faster      supmim data convert SOURCE --out=DIR --size=256 shrinks them first"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def report_pairs(spec: str, data: options.Data) -> Report:
    parts = parts_of(spec, data)
    with doing("decoding", sum(map(len, parts.values()))) as advance:
        found = {
            part.name: inspection.pairs_summary(part, data, advance) for part in parts.values()
        }
    lines, faults = [], []
    for name, part in found.items():
        lines += pairs_lines(name, part, spec)
        faults += pairs_faults(name, part, data.bad_share)
    if (shared := num_shared(parts)) and shared == len(parts["val"]):
        faults.append(ALL_SHARED)
    return found, [*lines, *held_out_lines(found, folders.unused(spec), shared)], faults


def pairs_lines(name: str, part: dict[str, Any], spec: str) -> Iterator[str]:
    pairs = counted(part["pairs"], "image with its mask", "images with masks")
    yield from wrapped(f"{printable(name)}: {pairs}")
    yield from wrapped(f"  ids of the masks: {inspection.ranges(part['ids'])}")
    if not part["classes"]:
        yield from wrapped(
            "  no file says which of these ids are classes: write classes.txt, or give the "
            "--mask-classes=N and --ignore-label=ID that the training will have"
        )
    yield from left_out_lines(part["left_out"])
    classes = part["classes"]
    yield from list_lines(f"classes without a pixel, of {classes}", part["without_pixels"])
    yield from list_lines("masks of which no pixel counts", below(part["all_ignored"], spec))
    yield from list_lines("unreadable", below(part["unreadable"], spec))
    yield from list_lines("masks of another size", below(part["wrong_sizes"], spec))
    yield from list_lines("masks with ids that are no class", below(part["wrong_ids"], spec))


def pairs_faults(name: str, part: dict[str, Any], bad_share: float) -> Iterator[str]:
    """Yield why training would refuse images with masks."""
    unreadable = len(part["unreadable"])
    if why := bad_records.excess(unreadable, part["pairs"], bad_share, "pair", name):
        yield why
    if wrong := len(part["wrong_sizes"]):
        told = counted(wrong, f"mask of {name} differs", f"masks of {name} differ")
        yield f"{told} in size from the image"
    if wrong := len(part["wrong_ids"]):
        told = counted(wrong, f"mask of {name} has", f"masks of {name} have")
        yield (
            f"{told} ids that are not one of {counted(part['classes'], 'class')} (check "
            "classes.txt, --mask-classes and --ignore-label)"
        )
    if len(part["all_ignored"]) == part["pairs"]:
        yield f"no pixel of the masks of {name} counts"


def prepare_tfds(name: str, data: options.Data, flags: FlagValues) -> None:
    """Download a TFDS dataset and write it, unless that was done before."""
    builder = prepare.prepare(name, data.tfds_dir, log)
    splits = ", ".join(f"{n} {s.num_examples:,}" for n, s in builder.info.splits.items())
    log(f"ready       {builder.info.full_name} in {builder.data_dir}: {splits}")
    elsewhere = f" --tfds-dir={flags.tfds_dir}" if flags.tfds_dir else ""
    log(f"next        supmim data check {name}:train{elsewhere}")


def convert_to(spec: str, data: options.Data, flags: FlagValues) -> None:
    """Write a source as a store; DataError if too many of its images cannot be read."""
    if not flags.out:
        raise ConfigError("supmim data convert takes --out=DIR, the folder to write the store to")
    size = number("size", flags.size, int, 1, 2**15) if flags.size else 0
    if flags.quality and (flags.raw or not size):
        raise ConfigError("--quality is for the JPEGs that --size writes: give --size, not --raw")
    quality = number("quality", flags.quality or DEFAULT_QUALITY, int, 1, 100)
    how, out = convert.How(size, quality, flags.raw, data.max_pixels), Path(flags.out)
    parts = parts_of(spec, data)
    if any(isinstance(part, base.Masked) for part in parts.values()):
        raise DataError(f"{spec} has masks, which a store cannot hold; train on it as it is")
    with lock.hold(out, "--out"):
        bad = convert.convert(parts, out, how, log)
    for name, images in bad.items():
        title = f"{name or 'all'}: unreadable, stored as empty"
        for line in list_lines(title, bad_lines(images, spec)):
            log(line)
    for name, images in bad.items():
        part = parts[name]
        if why := bad_records.excess(len(images), len(part), data.bad_share, "image", part.name):
            raise DataError(f"{why}; the store is complete, with these images stored as empty")
    log(f"next        supmim train --config=FILE.py --config.data.train=records:{out}")


def bad_lines(images: Sequence[Bad], spec: str) -> list[str]:
    """Return a line for each unreadable image, with its path below the source's folder."""
    return below([f"{bad.name}: {bad.why}" for bad in images], spec)


def below(lines: Sequence[str], spec: str) -> list[str]:
    """Return lines that begin with a path, without the part of it that is the source's folder."""
    folder = spec.partition(":")[2] + "/"
    return [line.removeprefix(folder) for line in lines]


ACTIONS = {"check": check, "prepare": prepare_tfds, "convert": convert_to}
