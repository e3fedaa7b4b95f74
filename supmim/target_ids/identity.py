"""A run and a cache of target ids: whether they belong together, and how well their ids agree."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import config as config_lib
from supmim.config import Config, options
from supmim.data import pipeline
from supmim.data.images import Images, second_of, training
from supmim.data.sources.base import Source
from supmim.errors import DataError
from supmim.runtime import hosts
from supmim.target_ids.files import METADATA, Cache, Layout, seed_of

FORMAT = 2  # of a cache: 2 seeds its checksums
TOKENIZER = "tokenizer"  # folder of a cache
COMMAND = "supmim data tokens --config=FILE.py --out="


def identity(config: Config, source: Source, tokenizer: dict[str, str]) -> dict[str, Any]:
    """All that ids depend on, but for the epoch; tokenizer: its fingerprint."""
    values = config_lib.flatten(config) | {
        "tokenizer.image_size": config.tokenizer_size,
        "tokenizer.dtype": config.tokenizer_dtype,
    }
    return {
        **{f"images: {name}": value for name, value in source.fingerprint().items()},
        **{path: values[path] for path in options.that_change("crop", "geometry", "ids")},
        "tokens of an image": config.grid**2,
        **tokenizer,
        "transform_version": pipeline.TRANSFORM_VERSION,
        "format": FORMAT,
    }  # fmt: skip


def made_on() -> dict[str, str]:
    """Where ids may come out differently by rounding."""
    return {
        "device": jax.devices()[0].device_kind,
        "jaxlib": importlib.metadata.version("jaxlib"),
    }


def at(folder: Path, config: Config, source: Source, metadata: dict[str, Any]) -> Cache:
    """The cache that lies in a folder."""
    sizes = len(source), config.grid**2, config.tokenizer.codebook_size
    again = f"{COMMAND}{folder} --config.total_epochs={config.total_epochs}"
    rows_per_file, seed = metadata["rows_per_file"], seed_of(metadata["same"])
    return Cache(folder, Layout(*sizes, rows_per_file), seed, again)


def read_metadata(folder: Path) -> dict[str, Any]:
    """DataError if the folder is not there, or holds no cache."""
    path = folder / METADATA
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()}, from where the path is taken"
        raise DataError(
            f"config.data.targets={folder}: there is no such folder{where}. If the target ids have "
            "moved, name their new place with --config.data.targets=DIR; else have them made:\n"
            f"  {COMMAND}{folder}"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {"same", "made_on", "rows_per_file"} <= found.keys():
            return found
        why = "it is none of supmim data tokens"
    except OSError as error:
        why = error.strerror
    except (ValueError, AttributeError) as error:
        why = str(error)
    raise DataError(
        f"{path}: {why}; config.data.targets takes a folder that was made by\n  {COMMAND}{folder}"
    )


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what two identities, as JSON has them, do not share."""
    return [n for n in sorted(found.keys() | expected.keys()) if found.get(n) != expected.get(n)]


def flags_of(folder: Path, found: dict[str, Any], names: list[str]) -> list[str]:
    """Flags that give a run what a cache has of these; none if no flag gives some of them."""
    held = found | {"tokenizer.path": folder / TOKENIZER}
    asked = ["tokenizer.path" if name == "tokenizer" else name for name in names]
    known = all(name in options.OPTIONS and name in held for name in asked)
    return [f"--config.{name}={held[name]}" for name in asked] if known else []


def check_same(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """DataError, naming the fields, if a cache holds ids of other views, or another tokenizer's."""
    expected = json.loads(json.dumps(expected))
    names = differing(found, expected)
    if not names:
        return
    lines = [
        f"  {name}: the cache has {found.get(name)!r}, the run {expected.get(name)!r}"
        for name in names
    ]
    if flags := flags_of(folder, found, names):
        lines += ["To train with these ids:", "  " + " ".join(flags)]
    raise DataError(
        f"{folder} holds target ids of something else:\n" + "\n".join(lines) + "\nIf there is a "
        "cache of what the run has, name it with --config.data.targets=DIR; else have it made:\n"
        f"  {COMMAND}DIR"
    )


def with_tokenizer(config: Config) -> Config:
    """The config with the path of the tokenizer that made its cached targets, if it has any."""
    if config.tokenizer.path or not config.data.targets:
        return config
    read_metadata(Path(config.data.targets))
    path = str(Path(config.data.targets) / TOKENIZER)
    return config_lib.replaced(config, {"tokenizer.path": path})


def open_for(config: Config, source: Source, tokenizer: dict[str, str]) -> Cache | None:
    """What a run reads its target ids from; None if it computes them.

    DataError if config.data.targets holds other ids, or not all that the run needs.
    """
    if not (config.data.targets and config.has_tokenizer):
        return None
    folder = Path(config.data.targets)
    metadata = read_metadata(folder)
    check_same(folder, metadata["same"], identity(config, source, tokenizer))
    cache = at(folder, config, source, metadata)
    if missing := cache.missing(range(config.total_epochs)):
        first = missing[0]
        raise DataError(
            f"{folder} has not all target ids of {config.total_epochs} epochs: {len(missing)} "
            f"files are missing or not whole, the first is {first.name}. This writes them, and "
            f"what is there stays:\n  {cache.again}"
        )
    return cache


def log_agreement(
    config: Config,
    source: Source,
    cache: Cache,
    frozen: Any,
    tokenize: Any,
    mesh: jax.sharding.Mesh,
) -> None:
    """Says how far ids from another device or jaxlib are those that would be computed here."""
    made = read_metadata(Path(cache.folder))["made_on"]
    foreign = [" with jaxlib ".join(where.values()) for where in made if where != made_on()]
    if not foreign:
        return
    second = second_of(config)._replace(made=True)
    seen = training(source, config.data, second)
    share = agreement(config, cache, seen, frozen, tokenize, mesh)
    if hosts.is_first():
        print(
            f"targets     {cache.folder} was made on {', '.join(foreign)}: {share:.2%} of the ids "
            "of the first batch are the same here",
            flush=True,
        )


def agreement(
    config: Config, cache: Cache, seen: Images, frozen: Any, tokenize: Any, mesh: jax.sharding.Mesh
) -> float:
    """Share of the ids of a run's first batch that come out the same here; seen: without cache."""
    readers = pipeline.Readers(0, lambda met: None)
    batches = pipeline.train_batches(seen, config.data.seed, config.batch_size, mesh, 0, 1, readers)
    batch = next(batches)
    ids, epoch, index = (
        np.concatenate([np.asarray(shard.data) for shard in x.addressable_shards])
        for x in (tokenize(frozen, batch)["target_ids"], batch["epoch"], batch["index"])
    )
    return float((ids == cache.read(epoch, index)).mean())
