"""`supmim data tokens`: the target ids of a run, computed ahead of it for all that share them."""

import collections
import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from absl.flags import FlagValues

from supmim import assemble, sharding
from supmim import config as config_lib
from supmim.config import Config
from supmim.data import images, pipeline, progress
from supmim.data.bad_records import BadRecords
from supmim.data.raw import Raw
from supmim.data.stream import Rows
from supmim.errors import ConfigError, DataError, Interrupted
from supmim.runtime import devices, hosts
from supmim.runtime.preemption import StopSignal
from supmim.target_ids import identity
from supmim.target_ids.files import METADATA, Cache, Part, layout
from supmim.tasks.registry import TASKS
from supmim.tokenizers import online
from supmim.workdir import lock
from supmim.workdir.files import write_json

IN_FLIGHT = 2  # batches that devices work on


def run(config: Config, flags: FlagValues) -> None:
    """The verb."""
    devices.prepare(flags.fake_devices, flags.deterministic)
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    out = Path(flags.out)
    hosts.agree(config, {"out": str(out.absolute())})
    with StopSignal() as stop, hosts.first_holds(lock.hold(out, "--out")):
        write(config, out, stop)


def write(config: Config, out: Path, stop: StopSignal) -> None:
    """Writes what is missing of a run's target ids.

    ConfigError for a run without ids; DataError for a folder of other ids, or too small a disk;
    Interrupted after a signal: whole files stay, and the same command goes on.
    """
    config, source, _ = assemble.load_sources(checked(config, out))
    second = images.second_of(config)._replace(made=True)
    seen = images.training(source, config.data, second)
    task = TASKS[config.task].create(config, seen, out)
    metadata = begin(out, task, identity.identity(config, source, task.fingerprint()))
    cache = identity.at(out, config, source, metadata)
    missing = [
        Part(*part) for part in hosts.together(lambda: cache.missing(range(config.total_epochs)))
    ]
    hosts.together(lambda: check_disk(out, sum(map(cache.bytes, missing))))
    own = share(missing, jax.process_index(), jax.process_count())
    unreadable = fill(config, cache, seen, task, own, stop)
    elsewhere = (
        f" here, {len(missing) - len(own)} by other hosts" if len(own) < len(missing) else ""
    )
    log(
        f"{out}  {config.total_epochs} epochs of {len(source):,} images, "
        f"{cache.layout.row_bytes} bytes each; {len(own)} files written{elsewhere}"
    )
    if unreadable:
        log(f"            {unreadable} views could not be read: training replaces these images")
    log(f"next        supmim train --config=FILE.py --config.data.targets={out}")


def checked(config: Config, out: Path) -> Config:
    """The config as a run would have it that reads from `out`, once there is anything to read."""
    if not config.has_tokenizer:
        raise ConfigError("this config predicts no ids: set config.mim.target=tokens, mim_weight>0")
    begun = hosts.together(lambda: check_ours(out))
    reading = config_lib.flatten(config) | {"data.targets": str(out)}
    config_lib.validate(reading)  # a codebook may be too large for a cache
    # The tokenizer of a cache that exists is used again.
    return config_lib.replaced(config, {"data.targets": str(out) if begun else ""})


def check_ours(out: Path) -> bool:
    """Whether a cache was begun there; ConfigError if the folder holds anything else."""
    begun = (out / METADATA).is_file()
    names = {path.name for path in out.iterdir() if not path.name.endswith(".part")}
    strange = names - {"lock", identity.TOKENIZER}
    if strange and not begun:
        raise ConfigError(
            f"{out} holds {min(strange)}, which is no target ids; choose another --out"
        )
    return begun


def begin(out: Path, task: Any, same: dict[str, Any]) -> dict[str, Any]:
    """metadata.json of the folder, begun or gone on with; the tokenizer lies beside it."""

    def note() -> dict[str, Any]:
        if (out / METADATA).is_file():
            found = identity.read_metadata(out)
            identity.check_same(out, found["same"], same)
        else:
            task.frozen.save(out / identity.TOKENIZER)  # anew: what is there may be half of one
            found = {"same": same, "made_on": [], "rows_per_file": rows_per_file(same)}
        if identity.made_on() not in found["made_on"]:
            found["made_on"].append(identity.made_on())
        write_json(out / METADATA, found)
        return json.loads(json.dumps(found))

    return hosts.together(note)


def rows_per_file(same: dict[str, Any]) -> int:
    """Of a new cache."""
    return layout(1, same["tokens of an image"], same["tokenizer.codebook_size"]).rows_per_file


def check_disk(out: Path, needed: int) -> None:
    """DataError if what is missing does not fit."""
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"{out} has {free / 1e9:.1f} GB free, the target ids take {needed / 1e9:.1f} GB: free "
            "some, or choose another --out"
        )


def share(parts: Sequence[Part], host: int, num_hosts: int) -> Sequence[Part]:
    """The files that one of several hosts writes."""
    return parts[host::num_hosts]


# Writing.


def fill(
    config: Config, cache: Cache, seen: images.Images, task: Any, parts: Sequence[Part],
    stop: StopSignal,
) -> int:  # fmt: skip
    """Writes these files, each whole or not at all; returns how many views could not be read.

    Each host works alone, on its own devices. Interrupted after a signal; DataError, as in
    training, if more images are bad than config.data.bad_share allows.
    """
    mesh = sharding.make_mesh(-1, 1, 1, devices=jax.local_devices())
    microbatch = config.tokenizer.microbatch
    stream = Rows(seen, parts, mesh.size * microbatch)
    bad_records = BadRecords(Path(cache.folder) / hosts.own_file("bad_records.jsonl"), log)
    check = bad_records.of(seen.source, config.data.bad_share)
    bad: list[images.Bad] = []

    def note(met: Iterable[images.Bad]) -> None:
        bad.extend(met)
        check(met)

    workers = pipeline.num_workers(seen.source, config.data.workers)
    batches = pipeline.read(stream, 0, len(stream), pipeline.Readers(workers, note, log))
    found = computed(batches, online.Tokenize(task.tokenize, mesh, microbatch), task.frozen, mesh)
    total = sum(part.stop - part.start for part in parts)
    with contextlib.closing(batches), progress.bar("target ids", total) as advance:
        for part in parts:
            with whole(cache.path(part)) as file:
                for start in range(part.start, part.stop, stream.batch_size):
                    if stop.requested:
                        raise Interrupted(f"stopped at {part.name}; to go on:\n  {cache.again}")
                    ids = next(found)[: part.stop - start]
                    void = {index for _, index in bad_records.met}
                    file.write(cache.rows(ids, part.epoch, start, void))
                    advance(len(ids))
    return len(bad)


def computed(
    batches: Iterable[Raw], tokenize: online.Tokenize, frozen: Any,
    mesh: jax.sharding.Mesh,
) -> Iterator[np.ndarray]:  # fmt: skip
    """ids [B, N] of each batch, a few batches behind the devices."""
    where, ahead = sharding.batch_sharding(mesh), collections.deque()
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    for batch in batches:
        placed = {name: jax.device_put(np.array(x), where) for name, x in batch.items()}
        ahead.append(tokenize(frozen, placed)["target_ids"])
        if len(ahead) == IN_FLIGHT:
            yield np.asarray(ahead.popleft())
    yield from map(np.asarray, ahead)


@contextlib.contextmanager
def whole(path: str) -> Iterator[IO[bytes]]:
    """A file that is in its place once all of it is on the disk; DataError if it can't be."""
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(
            f"{part} cannot be written: {error.strerror}. Files that are whole stay: mend the disk "
            "and give the same command again"
        ) from error


def log(line: str) -> None:
    """A line that is seen at once, also through a pipe; from the first host."""
    if hosts.is_first():
        print(line, flush=True)
