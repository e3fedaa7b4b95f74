"""Checkpoints by Orbax, with digests of our own: Orbax does not notice a flipped bit.

A step folder is whole once its `digests.json` is there, which is written last. It holds the
SHA-256 of every file, the results that rank the checkpoint, and the fingerprint of its data.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from supmim.config.options import Checkpoint
from supmim.errors import CheckpointError
from supmim.runtime import hosts
from supmim.sharding import path_name
from supmim.workdir.files import write_json

DIGESTS = "digests.json"
FAILED_SAVES = 3  # in a row, after which the run stops
SHARED_BYTES = 2**16  # of a replica's share of an array, below which one replica writes all of it


class Restored(NamedTuple):
    """state: the tree, on the current mesh; fingerprint: of the data it was trained on; digest:
    see `digest`.
    """

    state: Any
    fingerprint: dict[str, Any]
    digest: str


NEWEST_ONLY = Checkpoint(keep=1, keep_best=0)


class Checkpoints:
    """The checkpoints of a workdir. kept: which of them stay; tell: where messages go."""

    def __init__(
        self, folder: Path, log: Callable[[str], None], kept: Checkpoint = NEWEST_ONLY
    ) -> None:
        self.folder, self.log, self.kept = folder.absolute(), log, kept
        self._finishing: threading.Thread | None = None
        self._pending, self._failure = False, ""
        self._failures = 0

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        return sorted(int(path.name) for path in self._folders() if (path / DIGESTS).is_file())

    def _folders(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    # Saving.

    def save(self, step: int, state: Any, results: dict, fingerprint: dict) -> None:
        """Starts a save; arrays are copied before it returns, the rest runs in the background."""
        self.wait()
        path, self._pending = self.folder / str(step), True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _writing():
                response = ocp.save_async(path, state, overwrite=True)
        except Exception as error:  # whatever the disk or Orbax raises, training goes on
            self._failure = _first_line(error)
            self.poll()
            return
        note = {"step": step, "results": results, "fingerprint": fingerprint}
        self._finishing = threading.Thread(target=self._finish, args=(response, path, note))
        self._finishing.start()

    def save_now(self, step: int, state: Any, fingerprint: dict) -> None:
        """Saves and waits, unless this step is saved already; CheckpointError if it fails."""
        self.wait()
        if self._holds(step):
            return
        self.save(step, state, {}, fingerprint)
        self.wait()
        if not self._holds(step):
            raise CheckpointError(
                f"step {step} could not be saved in {self.folder}. Free space or mend the folder, "
                f"then start the run again: it goes on from step {max(self.steps(), default=0)}"
            )

    def _holds(self, step: int) -> bool:
        return hosts.together(lambda: step in self.steps())

    def rank(self, step: int, results: dict) -> None:
        """Adds the results of a saved step, which decide whether it is among the best."""
        path = self.folder / str(step) / DIGESTS
        hosts.together(lambda: write_json(path, self.note(step) | {"results": results}))

    def _finish(self, response: Any, path: Path, note: dict) -> None:
        try:
            response.result()
            if hosts.is_first():
                write_json(path / DIGESTS, note | {"files": file_digests(path)})
                self._prune()
        except Exception as error:
            self._failure = _first_line(error)

    def _prune(self) -> None:
        """Deletes what is neither among the newest nor among the best; the new one is whole."""
        steps = self.steps()
        scores = {step: self._score(step) for step in steps}
        ranked = sorted((s for s in steps if scores[s] is not None), key=scores.get)
        best = ranked[max(len(ranked) - self.kept.keep_best, 0) :]
        kept = set(steps[-self.kept.keep :]) | set(best)
        for step in set(steps) - kept:
            # The digests go first: a half deleted folder is not whole.
            (self.folder / str(step) / DIGESTS).unlink()
            shutil.rmtree(self.folder / str(step))

    def _score(self, step: int) -> float | None:
        try:
            return self.note(step)["results"].get(self.kept.keep_best_metric)
        except (OSError, ValueError, KeyError):
            return None  # damaged: told when it is restored

    def poll(self) -> None:
        """Tells of a failed save; several processes hear of it when they wait, together."""
        if self._failure and jax.process_count() == 1:
            self.wait()

    def wait(self) -> None:
        """Returns when the save in progress is whole, or has failed and was told.

        CheckpointError, on all processes, after several failures in a row.
        """
        if not self._pending:
            return
        self._pending = False
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        failure = next(filter(None, hosts.gather(self._failure)), "")
        self._failure, self._failures = "", self._failures + 1 if failure else 0
        if not failure:
            return
        self.log(f"a checkpoint could not be saved in {self.folder}: {failure}")
        if self._failures >= FAILED_SAVES:
            raise CheckpointError(
                f"{self._failures} saves in a row failed in {self.folder}: {failure}. "
                "Free space or mend the folder, then start the run again: it goes on from step "
                f"{max(self.steps(), default=0)}"
            )

    # Restoring.

    def note(self, step: int) -> dict[str, Any]:
        """What digests.json of a step says."""
        return json.loads((self.folder / str(step) / DIGESTS).read_text(encoding="utf-8"))

    def digest(self, step: int) -> str:
        """One SHA-256 for all files of a step."""
        return digest(self.note(step))

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest good checkpoint on the shardings of `abstract_state`; None if none was made.

        A damaged one is renamed STEP.corrupt and the one before is used. CheckpointError if all
        are damaged.
        """
        step = hosts.together(self._newest_good)
        return None if step is None else load(self.folder / str(step), abstract_state)

    def _newest_good(self) -> int | None:
        whole = self.steps()
        for path in sorted(self._folders()):
            if int(path.name) in whole:
                continue
            if any(path.iterdir()):
                self.log(f"checkpoint {path} was not finished; it is ignored")
            else:
                self._set_aside(path, "it is empty")
        for step in reversed(whole):
            path = self.folder / str(step)
            if not (problem := damage(path)):
                return step
            self._set_aside(path, problem)
        damaged = sorted(path.name for path in self.folder.glob("*.corrupt*"))
        if damaged:
            raise CheckpointError(
                f"no good checkpoint is left in {self.folder}: {', '.join(damaged)}. Restore one "
                "from a copy, or start again in a new workdir"
            )
        return None

    def restore_from(self, asked: str, abstract_state: Any) -> Restored:
        """The checkpoint that was asked for: a STEP of this folder or a PATH."""
        path = self.folder / asked if asked.isdigit() else Path(asked).absolute()
        hosts.together(lambda: self._check_asked(path, asked))
        return load(path, abstract_state)

    def _check_asked(self, path: Path, asked: str) -> None:
        if not (path / DIGESTS).is_file():
            own = asked.isdigit()
            steps = sorted(self.steps(), key=lambda s: abs(s - int(asked))) if own else []
            near = f"; nearest: {', '.join(map(str, steps[:3]))}" if steps else ""
            raise CheckpointError(f"{path} holds no whole checkpoint{near}")
        if problem := damage(path):
            raise CheckpointError(f"checkpoint {path} is damaged: {problem}")

    def set_aside_newer(self, step: int) -> None:
        """Renames checkpoints after `step` to STEP.superseded: the run goes on without them."""
        hosts.together(lambda: self._supersede(step))

    def _supersede(self, step: int) -> None:
        for newer in (self.folder / str(s) for s in self.steps() if s > step):
            aside = free_name(newer, "superseded")
            os.replace(newer, aside)
            self.log(f"checkpoint {newer} is newer than step {step}; kept as {aside.name}")

    def _set_aside(self, path: Path, problem: str) -> None:
        aside = free_name(path, "corrupt")
        os.replace(path, aside)
        self.log(f"checkpoint {path} is damaged: {problem}; kept as {aside.name}")


def free_name(path: Path, suffix: str) -> Path:
    """PATH.suffix, or PATH.suffix2, ... whichever is free."""
    candidates = (path.with_name(f"{path.name}.{suffix}{n or ''}") for n in (0, *range(2, 10_000)))
    return next(candidate for candidate in candidates if not candidate.exists())


def file_digests(path: Path) -> dict[str, str]:
    """Relative file name -> SHA-256, of every file below `path` but the digests."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p != path / DIGESTS)

    def of(file: Path) -> str:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return dict(zip([str(f.relative_to(path)) for f in files], pool.map(of, files),
                        strict=True))  # fmt: skip


def digest(note: dict[str, Any]) -> str:
    """One SHA-256 for all files of a step, from what its digests.json says."""
    return hashlib.sha256(json.dumps(note["files"], sort_keys=True).encode()).hexdigest()


def damage(path: Path) -> str:
    """What is wrong with the files of a whole checkpoint, or an empty string."""
    try:
        expected = json.loads((path / DIGESTS).read_text(encoding="utf-8"))["files"]
        found = file_digests(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{DIGESTS} cannot be read ({error!r})"
    for name in expected:
        if name not in found:
            return f"{name} is missing"
        if expected[name] != found[name]:
            return f"{name} is not what was written (its SHA-256 differs)"
    return ""


def load(path: Path, abstract_state: Any) -> Restored:
    """Reads a verified checkpoint. CheckpointError lists leaves that differ in shape or dtype."""
    stored = _leaves(ocp.metadata(path).metadata)
    expected = _leaves(abstract_state)
    rows = [
        f"  {name}: stored {stored.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(stored.keys() | expected.keys())
        if stored.get(name) != expected.get(name)
    ]
    if rows:
        more = [f"  ... and {len(rows) - 12} more"] if len(rows) > 12 else []
        raise CheckpointError(
            f"checkpoint {path} does not fit this config:\n" + "\n".join(rows[:12] + more) + "\n"
            "Likely another patch size, number of classes, decoder or dtype; nothing is cast or "
            "cut silently. Use the config of the run that wrote it"
        )
    note = json.loads((path / DIGESTS).read_text(encoding="utf-8"))
    return Restored(ocp.load(path, abstract_state), note["fingerprint"], digest(note))


def load_some(path: Path, place: Callable[[str, tuple[int, ...]], Any]) -> dict[str, jax.Array]:
    """name -> leaf of a verified checkpoint: those for whose name and shape `place` has a sharding.

    The others are not read.
    """

    def expected(at, leaf):
        where = place(path_name(at), leaf.shape)
        asked = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        return asked if where else ocp.PLACEHOLDER

    tree = jax.tree_util.tree_map_with_path(expected, ocp.metadata(path).metadata)
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load(path, tree))
    return {path_name(at): leaf for at, leaf in leaves if leaf is not ocp.PLACEHOLDER}


def _leaves(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _writing() -> ocp.Context:
    """How arrays are written: replicas share a large one; to cut a small one up costs more."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = SHARED_BYTES
    return context


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
