"""`supmim plan`: compile the real train step, and target ids if any, for devices not at hand."""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl.flags import FlagValues

from supmim import config as config_lib
from supmim import sharding
from supmim.config import Config
from supmim.data import run_sources, sources
from supmim.data.sources import joined
from supmim.errors import ConfigError, DataError, DeviceError, counted
from supmim.planning import hlo, program, roofline, table, topology
from supmim.planning.advice import advice
from supmim.report import forecast

IMAGENET_TRAIN = 1_281_167  # images of imagenet2012:train
EXAMPLE = "supmim plan --config=imagenet_l14 --topology=v5e:16x16"


def run(config: Config, flags: FlagValues) -> None:
    """Print the plan; then DeviceError if the step does not fit."""
    if flags.table:
        return table.write(Path(flags.table))
    for name, value in (("config", config), ("topology", flags.topology)):
        if not value:
            raise ConfigError(f"--{name} is missing, e.g. {EXAMPLE}")
    where = topology.load(flags.topology)
    config = run_sources.settled(config)
    images = training_images(config, flags.images)
    result = make(config, where, images)
    if flags.largest_batch:
        result["largest_batch"] = largest_batch(config, where, images, result)
    print(json.dumps(result, indent=1) if flags.json else forecast.text(result))
    if not result["fits"]:
        raise DeviceError(f"the step does not fit {flags.topology}: {result['verdict']}")
    return None


def training_images(config: Config, asked: str) -> int:
    """Return how many images with labels a run has, opening the source if need be; 0: unknown."""
    if asked:
        if not asked.isdecimal():
            raise ConfigError(f"--images={asked} is not a number of images")
        return int(asked)
    data = config.data
    found = re.fullmatch(r"imagenet2012:train(?:\[:(\d+)%\])?", data.train)
    if found and not (data.labels or data.labelled_classes or data.limit):
        return IMAGENET_TRAIN * int(found[1] or 100) // 100
    try:
        return len(joined.labelled(sources.load(data, config.facts.has_labels)[0]))
    except DataError:
        return 0


def fitted_mesh(config: Config, chips: int) -> tuple[Config, list[str]]:
    """Return the config with an fsdp axis that divides the chips, and a note if it was changed."""
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    if fsdp < 1 or tensor < 1 or config.mesh.data != -1 or not chips % (fsdp * tensor):
        return config, []
    smaller = math.gcd(fsdp, chips // tensor if not chips % tensor else 1)
    note = (
        f"config.mesh.fsdp={fsdp} does not fit {counted(chips, 'chip')}: this plan is made with "
        f"--config.mesh.fsdp={smaller}; set it for the training too"
    )
    return config_lib.replaced(config, {"mesh.fsdp": smaller}), [note]


def check_config(config: Config, where: topology.Topology, mesh: jax.sharding.Mesh) -> list[str]:
    """Return notes on what else `train` would refuse; ConfigError if there can be no step."""
    platform = where.devices[0].platform
    if config.encoder.attention == "cudnn" and platform != "gpu":
        raise ConfigError(
            f"config.encoder.attention=cudnn needs a GPU, which {where.name} is not; set it to xla"
        )
    sharding.check_batches(config, mesh)
    shards = sharding.batch_shards(mesh)
    if config.eval.batch_size % shards:
        size = math.ceil(config.eval.batch_size / shards) * shards
        return [
            f"config.eval.batch_size={config.eval.batch_size} does not divide over "
            f"{counted(shards, 'chip')}: to train, set --config.eval.batch_size={size}"
        ]
    return []


def make(config: Config, where: topology.Topology, num_images: int) -> dict[str, Any]:
    """Return the plan as JSON; bytes and seconds are per chip and per step."""
    began = time.monotonic()
    config, notes = fitted_mesh(config, len(where.devices))
    mesh = sharding.make_mesh(
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=where.devices
    )
    notes += check_config(config, where, mesh)
    if config.has_decoder and config.mim.step_share < 1:
        share = f"{config.mim.step_share:.0%}"
        notes.append(f"FLOPs are means over all steps: {share} have a masked pass, as this one has")
    with jax.set_mesh(mesh):
        real = program.build(config, mesh)
        work = program.count_flops(real)
        compiled = program.compile_step(real, where)
        ids = program.compile_tokenizer(real, where)
    tokenizer = program.tokenizer_memory(real, ids)
    memory = program.memory_of(real, compiled, tokenizer)
    usable = where.chip.memory * topology.MEMORY_SHARE
    needed = max(compiled.needed, ids.needed if ids else 0)
    fits = not needed and memory["total"] <= usable
    share = f"{forecast.size(memory['total'])} of {forecast.size(usable)} usable"
    verdict = f"fits: {share}" if fits else f"it needs {share}"
    if needed:
        verdict = f"the compiler needs {forecast.size(needed)} for temporaries alone"
    result = {
        "topology": where.name,
        "chip": where.chip.name,
        "chips": mesh.devices.size,
        "compiler": where.compiler,
        "train": config.data.train,
        "epochs": config.num_epochs(num_images) if num_images else config.total_epochs,
        "steps": config.num_steps(num_images),
        "batch_size": config.batch_size,
        "step_images": config.step_images,
        "images_per_chip": config.step_images / mesh.devices.size,
        "accumulation_steps": config.accumulation_steps,
        "mesh": dict(mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(real.state.params)),
        "memory": memory,
        "memory_of_chip": where.chip.memory,
        "fits": fits,
        "flops": work,
        "tokenizer": tokenizer,
        "notes": notes,
        "verdict": verdict,
    }
    if compiled.text:
        result |= speed(result, where, hlo.Program(compiled.text), num_images)
    result["advice"] = [] if fits else list(advice(real, memory, tokenizer))
    return result | {"plan_seconds": time.monotonic() - began}


def speed(
    result: dict, where: topology.Topology, compiled: hlo.Program, num_images: int
) -> dict[str, Any]:
    """Return the collectives, the roofline, and images/s and hours at several utilisations."""
    collectives = compiled.collectives()
    kinds: dict[tuple, Counter] = {}
    for one in collectives:
        kind = kinds.setdefault((one.kind, one.dtype, one.devices), Counter())
        kind.update(count=one.times, bytes=one.bytes * one.times, sent=round(roofline.sent(one)))
    traffic = sum(size for kind, size in compiled.traffic().items() if kind != "scratch")
    work, images = result["flops"], result["images_per_chip"]
    bound = roofline.estimate(where.chip, work["executed"] * images, traffic, collectives)
    return {
        "collectives": [
            {"kind": kind, "dtype": dtype, "devices": devices, **counts}
            for (kind, dtype, devices), counts in kinds.items()
        ],
        "traffic": traffic,
        "num_images": num_images,
        "roofline": bound and {**bound._asdict(), "best": bound.overlapped, "worst": bound.serial},
        "tokenizer_seconds": work["tokenize"] * images / where.chip.flops if bound else 0.0,
        "speeds": list(speeds(result, where.chip, num_images)) if bound else [],
    }


def speeds(result: dict, chip: topology.Chip, num_images: int) -> Iterator[dict[str, Any]]:
    """Yield the speed at each share of the chip's peak (MFU).

    The FLOPs are those of training and of the tokenizer; what remat repeats is not counted.
    """
    per_image = result["flops"]["train"] + result["flops"]["tokenize"]
    for mfu in roofline.MFUS:
        rate = mfu * chip.flops * result["chips"] / per_image
        seconds = result["step_images"] / rate
        hours = result["steps"] * seconds / 3600 if result["steps"] else None
        yield {"mfu": mfu, "step_seconds": seconds, "images_per_second": rate, "hours": hours}


def largest_batch(
    config: Config, where: topology.Topology, num_images: int, first: dict[str, Any]
) -> dict[str, Any]:
    """Return the largest batch that fits: predict it by a line through two plans, then compile it.

    first: a plan that is known. Images are counted per chip and part of the batch. `batch_size` is
    0 if not even one image fits.
    """
    unit = first["chips"] * config.accumulation_steps
    plans = {first["batch_size"] // unit: first}

    def plan_for(images: int) -> dict[str, Any]:
        if images not in plans:
            changed = config_lib.replaced(config, {"batch_size": images * unit})
            plans[images] = make(changed, where, num_images)
        return plans[images]

    low = min(plans)
    while not plan_for(low)["fits"] and low > 1:
        low //= 2
    if not plan_for(low)["fits"]:
        return {"batch_size": 0, "total": plan_for(low)["memory"]["total"]}
    low, high = sorted((low, low // 2 or 2))
    first_total, total = (plan_for(images)["memory"]["total"] for images in (low, high))
    slope = max(1.0, (total - first_total) / (high - low))  # bytes per image
    intercept = first_total - slope * low
    best = max(1, int((where.chip.memory * topology.MEMORY_SHARE - intercept) / slope))
    predicted = intercept + slope * best
    while best > 1 and not plan_for(best)["fits"]:
        best = best * 9 // 10
    return {
        "batch_size": best * unit,
        "images_per_chip": plan_for(best)["images_per_chip"],
        "predicted": round(predicted),
        "total": plan_for(best)["memory"]["total"],
        "bytes_per_image": round(slope / config.accumulation_steps),
    }
