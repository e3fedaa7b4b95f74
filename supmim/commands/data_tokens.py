"""`supmim data tokens`: compute the target ids of a run in advance, for all runs that use them."""

import collections
import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import jax
import numpy as np
from absl.flags import FlagValues

from supmim import config as config_lib
from supmim import sharding
from supmim.config import Config
from supmim.data import images, pipeline, run_sources
from supmim.data.bad_records import BadRecords
from supmim.data.images import Bad, Images
from supmim.data.raw import Raw
from supmim.data.stream import Rows
from supmim.errors import ConfigError, DataError, Interrupted, counted
from supmim.runtime import devices, hosts
from supmim.runtime.preemption import StopSignal
from supmim.runtime.progress import doing
from supmim.target_ids import identity
from supmim.target_ids.files import METADATA, Cache, Part, layout
from supmim.tasks.base import Task
from supmim.tasks.registry import TASKS
from supmim.tokenizers import online
from supmim.workdir import lock
from supmim.workdir.files import write_json

IN_FLIGHT = 2  # batches that the devices work on


def run(config: Config, flags: FlagValues) -> None:
    devices.prepare(flags.fake_devices, flags.deterministic)
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    out = Path(flags.out)
    hosts.agree(config, {"out": str(out.absolute())})
    with StopSignal() as stop, hosts.first_holds(lock.hold(out, "--out")):
        write(config, out, stop)


def write(config: Config, out: Path, stop: StopSignal) -> None:
    """Write the target ids of a run that are still missing in its cache.

    ConfigError for a run without target ids; DataError if the cache belongs to other images or to
    another tokenizer, or if the disk is too small. Interrupted after a signal: complete files stay,
    and the same command continues.
    """
    config, source, _ = run_sources.load(with_cache(config, out))
    second = images.second_of(config)._replace(made=True)
    seen = images.training(source, config.data, second)
    task = TASKS[config.task].create(config, seen, out)
    metadata = write_metadata(out, task, identity.identity(config, source, task.fingerprint()))
    cache = identity.cache_in(out, config, source, metadata)
    epochs = identity.epochs_of(config, source)
    missing = [Part(*part) for part in hosts.on_first(lambda: cache.missing(*epochs))]
    hosts.on_first(lambda: check_disk(out, sum(map(cache.part_bytes, missing))))
    own = share(missing, jax.process_index(), jax.process_count())
    unreadable = write_files(config, cache, seen, task, own, stop)
    others = len(missing) - len(own)
    elsewhere = f" here, {others} by other hosts" if others else ""
    log(
        f"{out}  {counted(max(epochs), 'epoch')} of {counted(len(source), 'image')}, "
        f"{counted(cache.layout.row_bytes, 'byte')} each; {counted(len(own), 'file')} "
        f"written{elsewhere}"
    )
    if unreadable:
        told = counted(
            unreadable, "crop is of an unreadable image", "crops are of unreadable images"
        )
        log(f"            {told}, which training replaces")
    log(f"next        supmim train --config=FILE.py --config.data.targets={out}")


def with_cache(config: Config, out: Path) -> Config:
    """Return the config that reads its tokenizer from the cache in `out`, if one was begun."""
    if not config.has_tokenizer:
        raise ConfigError("this config predicts no ids: set config.mim.target=tokens, mim_weight>0")
    begun = hosts.on_first(lambda: is_begun(out))
    reading = config_lib.flatten(config) | {"data.targets": str(out)}
    config_lib.validate(reading)  # a codebook may be too large for a cache
    return config_lib.replaced(config, {"data.targets": str(out) if begun else ""})


def is_begun(out: Path) -> bool:
    """Return whether a cache was begun there; ConfigError if the folder holds anything else."""
    begun = (out / METADATA).is_file()
    names = {path.name for path in out.iterdir() if not path.name.endswith(".part")}
    strange = names - {"lock", identity.TOKENIZER}
    if strange and not begun:
        raise ConfigError(
            f"{out} holds {min(strange)}, which is not part of a cache of target ids; "
            "choose another --out"
        )
    return begun


def write_metadata(out: Path, task: Task, same: dict[str, Any]) -> dict[str, Any]:
    """Create or extend metadata.json, with the tokenizer beside it; return its contents.

    same: the identity of the ids, which an existing cache must have too.
    """

    def write_on_first_host() -> dict[str, Any]:
        if (out / METADATA).is_file():
            found = identity.read_metadata(out)
            identity.check_same(out, found["same"], same)
        else:
            task.frozen.save(out / identity.TOKENIZER)  # over one that may be incomplete
            rows = layout(1, same["tokens of an image"], same["tokenizer.codebook_size"])
            found = {"same": same, "made_on": [], "rows_per_file": rows.rows_per_file}
        if identity.made_on() not in found["made_on"]:
            found["made_on"].append(identity.made_on())
        write_json(out / METADATA, found)
        return json.loads(json.dumps(found))

    return hosts.on_first(write_on_first_host)


def check_disk(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"{out} has {free / 1e9:.1f} GB free, but the target ids take {needed / 1e9:.1f} GB: "
            "free some space, or choose another --out"
        )


def share(parts: Sequence[Part], host: int, num_hosts: int) -> Sequence[Part]:
    """Return the files that one of several hosts writes."""
    return parts[host::num_hosts]


def write_files(
    config: Config, cache: Cache, seen: Images, task: Task, parts: Sequence[Part], stop: StopSignal
) -> int:
    """Write these files, each whole or not at all; return how many crops could not be read.

    Each host works alone, on its own devices. Interrupted after a signal; DataError, as in
    training, if more images are bad than config.data.bad_share allows.
    """
    mesh = sharding.make_mesh(-1, 1, 1, devices=jax.local_devices())
    microbatch = config.tokenizer.microbatch
    stream = Rows(seen, parts, mesh.size * microbatch)
    bad_records = BadRecords(Path(cache.folder) / hosts.own_file("bad_records.jsonl"), log)
    check = bad_records.of(seen.source, config.data.bad_share)
    bad: list[Bad] = []

    def record(met: Iterable[Bad]) -> None:
        bad.extend(met)
        check(met)

    workers = pipeline.num_workers(seen.source, config.data.workers)
    batches = pipeline.read_steps(stream, 0, len(stream), pipeline.Readers(workers, record, log))
    tokenize = online.Tokenize(task.tokenize, mesh, microbatch)
    computed = compute_ids(batches, tokenize, task.frozen, mesh)
    total = sum(part.stop - part.start for part in parts)
    with contextlib.closing(batches), doing("target ids", total) as advance:
        for part in parts:
            with complete_file(cache.path(part)) as file:
                for start in range(part.start, part.stop, stream.batch_size):
                    if stop.requested:
                        raise Interrupted(f"stopped at {part.name}; to continue:\n  {cache.again}")
                    ids = next(computed)[: part.stop - start]
                    unreadable = {index for _, index in bad_records.met}
                    file.write(cache.rows(ids, part.epoch, start, unreadable))
                    advance(len(ids))
    return len(bad)


def compute_ids(
    batches: Iterable[Raw], tokenize: online.Tokenize, frozen: Any, mesh: jax.sharding.Mesh
) -> Iterator[np.ndarray]:
    """Yield the ids [B, N] of each batch, a few batches behind the devices."""
    where, ahead = sharding.batch_sharding(mesh), collections.deque()
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    for batch in batches:
        placed = {name: jax.device_put(np.array(x), where) for name, x in batch.items()}
        ahead.append(dict(tokenize(frozen, cast(Raw, placed)))["target_ids"])
        if len(ahead) == IN_FLIGHT:
            yield np.asarray(ahead.popleft())
    yield from map(np.asarray, ahead)


@contextlib.contextmanager
def complete_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file that appears at `path` once all of it is on the disk; DataError if it can't."""
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(
            f"{part} cannot be written: {error.strerror}. Complete files stay: repair the disk and "
            "give the same command again"
        ) from error


def log(line: str) -> None:
    """Print a line from the first host, visible at once also through a pipe."""
    if hosts.is_first():
        print(line, flush=True)
