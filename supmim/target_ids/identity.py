"""The identity of a cache of target ids: whether it fits a run, and how well the ids agree."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from supmim import config as config_lib
from supmim.config import Config, options
from supmim.data import data_identity, pipeline
from supmim.data.images import Images, second_of, training
from supmim.data.sources import joined
from supmim.data.sources.base import Source
from supmim.errors import DataError, counted
from supmim.runtime import hosts
from supmim.storage import copy_once
from supmim.storage.schemes import on_bucket
from supmim.target_ids.files import METADATA, Cache, Layout, seed_of
from supmim.workdir.files import read_json

FORMAT = 2  # of a cache; its checksums are seeded since version 2
TOKENIZER = "tokenizer"  # subfolder of a cache
COMMAND = "supmim data tokens --config=FILE.py --out="


def identity(config: Config, source: Source, tokenizer: dict[str, str]) -> dict[str, Any]:
    """Return all that target ids depend on except the epoch. tokenizer: its fingerprint."""
    values = config_lib.flatten(config) | {
        "tokenizer.image_size": config.tokenizer_size,
        "tokenizer.dtype": config.tokenizer_dtype,
    }
    return {
        **{f"images: {name}": value for name, value in source.fingerprint().items()},
        **options.identity(values, "crop", "geometry", "ids"),
        "tokens of an image": config.grid**2,
        **tokenizer,
        "transform_version": data_identity.PIXELS_VERSION,
        "format": FORMAT,
    }


def made_on() -> dict[str, str]:
    """Return the device and the jaxlib, on which the rounding of ids may depend."""
    return {"device": jax.devices()[0].device_kind, "jaxlib": importlib.metadata.version("jaxlib")}


def cache_in(folder: Path, config: Config, source: Source, metadata: dict[str, Any]) -> Cache:
    """Return the cache in a folder. metadata: its metadata.json."""
    epochs, steps = config.total_epochs, config.total_steps
    length = f"total_steps={steps}" if steps else f"total_epochs={epochs}"
    again = f"{COMMAND}{folder} --config.{length}"
    layout = Layout(
        num_images=len(source),
        num_tokens=config.grid**2,
        codebook_size=config.tokenizer.codebook_size,
        rows_per_file=metadata["rows_per_file"],
        num_labelled=len(joined.labelled(source)),
    )
    return Cache(folder, layout, seed_of(metadata["same"]), again)


def epochs_of(config: Config, source: Source) -> tuple[int, int]:
    """Return a training's epochs, rounded up, of images with labels and of the others."""
    count = len(joined.labelled(source))
    if not (others := len(source) - count):
        return config.num_epochs(count), 0
    return config.num_epochs(count), -(-config.num_steps(count) * config.unlabelled_rows // others)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata.json of a cache; DataError if the folder is missing or has no cache."""
    path = folder / METADATA
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()}, the current directory"
        raise DataError(
            f"config.data.targets={folder}: there is no such folder{where}. If the target ids have "
            "moved, set --config.data.targets=DIR to their new place; to compute them:\n"
            f"  {COMMAND}{folder}"
        )
    try:
        found = read_json(path)
        if {"same", "made_on", "rows_per_file"} <= found.keys():
            return found
        why = "it was not written by supmim data tokens"
    except OSError as error:
        why = error.strerror
    except (ValueError, AttributeError) as error:
        why = str(error)
    raise DataError(
        f"{path}: {why}; config.data.targets must be a folder that was made by\n  {COMMAND}{folder}"
    )


def _flags_for_cache(folder: Path, found: dict[str, Any], names: list[str]) -> list[str]:
    """Return flags that set these fields as in the cache; none if some field has no flag."""
    values = found | {"tokenizer.path": folder / TOKENIZER}
    paths = ["tokenizer.path" if name == "tokenizer" else name for name in names]
    known = all(path in options.OPTIONS and path in values for path in paths)
    return [f"--config.{path}={values[path]}" for path in paths] if known else []


def check_same(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise DataError, which names the fields, if the identities of cache and run differ."""
    expected = json.loads(json.dumps(expected))
    left_out = (found.keys() ^ expected.keys()) & options.OPTIONS.keys()
    defaults = {path: options.OPTIONS[path].default for path in left_out}
    found, expected = defaults | found, defaults | expected
    names = sorted(found.keys() | expected.keys())
    names = [name for name in names if found.get(name) != expected.get(name)]
    if not names:
        return
    lines = [
        f"  {name}: the cache has {found.get(name)!r}, the run {expected.get(name)!r}"
        for name in names
    ]
    if flags := _flags_for_cache(folder, found, names):
        lines += ["To train with these ids:", "  " + " ".join(flags)]
    raise DataError(
        f"{folder} holds target ids that do not fit this run:\n" + "\n".join(lines) + "\nIf there "
        "is a cache for this run, set --config.data.targets=DIR to its folder; to compute one:\n"
        f"  {COMMAND}DIR"
    )


def with_tokenizer(config: Config) -> Config:
    """Return the config with the path of the tokenizer of its cache, if it uses a cache."""
    if config.tokenizer.path or not config.data.targets:
        return config
    if on_bucket(config.data.targets):  # only the tokenizer is copied
        folder = f"{config.data.targets.rstrip('/')}/{TOKENIZER}"
        path = copy_once.local(folder, config.data.local_copy)
    else:
        read_metadata(Path(config.data.targets))
        path = str(Path(config.data.targets) / TOKENIZER)
    return config_lib.replaced(config, {"tokenizer.path": path})


def open_for(config: Config, source: Source, tokenizer: dict[str, str]) -> Cache | None:
    """Return the cache from which a run reads its target ids; None if it computes them.

    DataError if config.data.targets holds other ids, or not all that the run needs.
    """
    if not (config.data.targets and config.has_tokenizer):
        return None
    folder = Path(copy_once.local(config.data.targets, config.data.local_copy))
    metadata = read_metadata(folder)
    check_same(folder, metadata["same"], identity(config, source, tokenizer))
    cache = cache_in(folder, config, source, metadata)
    needed = epochs_of(config, source)
    if missing := cache.missing(*needed):
        epochs = counted(max(needed), "epoch")
        files = counted(len(missing), "file is", "files are")
        raise DataError(
            f"{folder} does not have all target ids of {epochs}: "
            f"{files} missing or incomplete, the first is {missing[0].name}. To "
            f"write them and keep the others:\n  {cache.again}"
        )
    return cache


def log_agreement(
    config: Config, source: Source, cache: Cache, frozen: Any, tokenize: Any, mesh: Mesh
) -> None:
    """Print the share of ids from another device or jaxlib that would be the same here."""
    made = read_metadata(Path(cache.folder))["made_on"]
    foreign = [" with jaxlib ".join(where.values()) for where in made if where != made_on()]
    if not foreign:
        return
    seen = training(source, config.data, second_of(config)._replace(made=True))
    share = agreement(config, cache, seen, frozen, tokenize, mesh)
    if hosts.is_first():
        print(
            f"targets     {cache.folder} was made on {', '.join(foreign)}: {share:.2%} of the ids "
            "of the first batch are the same here",
            flush=True,
        )


def agreement(
    config: Config, cache: Cache, seen: Images, frozen: Any, tokenize: Any, mesh: Mesh
) -> float:
    """Return the share of the first batch's ids that are the same here. seen: without cache."""
    readers = pipeline.Readers(0, lambda met: None)
    batches = pipeline.train_batches(seen, config.data.seed, config.batch_size, mesh, 0, 1, readers)
    batch = next(batches)
    ids, epoch, index = (
        np.concatenate([np.asarray(shard.data) for shard in x.addressable_shards])
        for x in (tokenize(frozen, batch)["target_ids"], batch["epoch"], batch["index"])
    )
    return float((ids == cache.read(epoch, index)).mean())
