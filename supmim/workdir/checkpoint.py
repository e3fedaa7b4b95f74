"""Checkpoints, written by Orbax; digests.py detects damage."""

import contextlib
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from supmim.config.options import Checkpoint
from supmim.errors import CheckpointError
from supmim.runtime import faults, hosts
from supmim.sharding import path_name
from supmim.storage import paths
from supmim.workdir import orbax_noise
from supmim.workdir.digests import DIGESTS, at_hand, damage, digest, read_note, write_note
from supmim.workdir.staging import Staging

FAILED_SAVES = 3  # in a row, after which the run stops
# Replicas share the writing of an array if each part has at least this many bytes: splitting a
# small one costs more than it saves.
SHARED_BYTES = 2**16

orbax_noise.silence()


class Restored(NamedTuple):
    """A checkpoint in memory: the state on the current mesh, the data's fingerprint, its digest."""

    state: Any
    fingerprint: dict[str, Any]
    digest: str


NEWEST_ONLY = Checkpoint(keep=1, keep_best=0)


class Checkpoints:
    """The checkpoints of a workdir. kept: which of them stay; log: receives the messages.

    before_complete: called in the background when the arrays of a save are written.
    any_failed: whether a save of this process has failed, after which threads of Orbax wait for
    each other for minutes.
    """

    any_failed = False

    def __init__(
        self,
        folder: Path,
        log: Callable[[str], None],
        kept: Checkpoint = NEWEST_ONLY,
        before_complete: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.log, self.kept = paths.absolute(folder), log, kept
        self.before_complete = before_complete
        self._staging = Staging(self.folder)
        self._steps: set[int] | None = None  # those in a bucket, so that the loop need not ask it
        self._notes: dict[int, dict[str, Any]] = {}
        self._finishing: threading.Thread | None = None
        self._pending, self._failure = False, ""
        self._failures = 0

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        if self._steps is None or not self._staging.in_bucket:
            complete = (path for path in self._folders() if (path / DIGESTS).is_file())
            self._steps = {int(path.name) for path in complete}
        return sorted(self._steps)

    def _folders(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (p for p in self.folder.iterdir() if p.is_dir() and p.name.isdecimal())

    def save(self, step: int, state: Any, results: dict, fingerprint: dict) -> None:
        """Start a save: copy the arrays, then write them in the background."""
        self.wait()
        self._pending = True
        try:
            faults.reached("save", (step,))
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear(step)
            context = ocp.Context()
            context.array.saving.min_slice_bytes_for_replica_parallel = SHARED_BYTES
            with context:
                target = str(self._staging.target(step))
                response = ocp.save_async(target, state, overwrite=True)
        except Exception as error:  # whatever the disk or Orbax raises, training continues
            self._failure = _first_line(error)
            self.poll()
            return
        note = {"step": step, "results": results, "fingerprint": fingerprint}
        self._finishing = threading.Thread(target=self._finish, args=(response, note))
        self._finishing.start()

    def _clear(self, step: int) -> None:
        """Delete leftovers of failed or killed saves of other steps, which fill the disk."""
        if hosts.is_first() and not self._staging.in_bucket:
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                if not path.name.startswith(f"{step}."):
                    paths.delete(path)

    def save_now(self, step: int, state: Any, fingerprint: dict) -> None:
        """Save and wait, unless this step is saved already; CheckpointError if it fails."""
        self.wait()
        if self._holds(step):
            return
        self.save(step, state, {}, fingerprint)
        self.wait()
        if not self._holds(step):
            raise CheckpointError(
                f"step {step} could not be saved in {self.folder}. {self._advice()}", fault="R22"
            )

    def _advice(self) -> str:
        return (
            "Free space or repair the folder, then start the run again: it continues from step "
            f"{max(self.steps(), default=0)}"
        )

    def _holds(self, step: int) -> bool:
        return hosts.on_first(lambda: step in self.steps())

    def among_best(self, results: dict) -> bool:
        """Return whether results are better than the worst of the best that are saved."""
        score, keep = self._score_of(results), self.kept.keep_best
        if not keep or not results:
            return False
        if score is None:
            self.log(
                "the best checkpoint is not kept: these results have no "
                f"{self.kept.keep_best_metric} (config.checkpoint.keep_best_metric)"
            )
            return False
        self.wait()
        scores = hosts.on_first(lambda: sorted(self._scores().values()))
        return len(scores) < keep or score > scores[-keep]

    def rank(self, step: int, results: dict) -> None:
        """Add the results of a saved step, by which the best checkpoints are chosen."""
        hosts.on_first(lambda: self._complete(self.note(step) | {"step": step, "results": results}))

    def _finish(self, response: Any, note: dict) -> None:
        try:
            response.result()
            self.before_complete()
            if hosts.is_first():
                self._staging.verify()
                published = self._staging.publish(note["step"])
                self._staging.verify()
                self._complete(note | {"files": published})
        except Exception as error:
            self._failure = _first_line(error)
            return
        try:
            if hosts.is_first():
                self._prune()
        except Exception as error:  # the save is complete
            self.log(f"old checkpoints could not be deleted: {_first_line(error)}")

    def finish(self) -> None:
        """Wait for a save in a bucket that goes on, however the run ends."""
        if self._finishing is not None and self._staging.uploads:
            self._finishing.join()

    def _complete(self, note: dict) -> None:
        """Write the digests of a step, which make it complete."""
        step, known = note["step"], self.steps()
        write_note(self.folder / str(step), note)
        self._steps, self._notes[step] = {*known, step}, note

    def _prune(self) -> None:
        """Delete what is neither among the newest nor among the best."""
        steps, scores = self.steps(), self._scores()
        ranked = sorted(scores, key=lambda step: scores[step])
        best = ranked[max(len(ranked) - self.kept.keep_best, 0) :]
        kept = set(steps[-self.kept.keep :]) | set(best)
        for step in set(steps) - kept:
            # The digests go first: a half deleted folder must not count as complete.
            (self.folder / str(step) / DIGESTS).unlink()
            paths.delete(self.folder / str(step))
            self._forget(step)
        if self._staging.in_bucket:  # leftovers of killed saves, which cost money
            for path in (path for path in self._folders() if int(path.name) not in kept):
                if not (path / DIGESTS).is_file():
                    paths.delete(path)

    def _forget(self, step: int) -> None:
        self._steps = {*self.steps()} - {step}
        self._notes.pop(step, None)

    def _scores(self) -> dict[int, float]:
        """Return the score of each step that has one; damage is reported when it is restored."""
        scores = {}
        for step in self.steps():
            with contextlib.suppress(OSError, ValueError, KeyError):
                scores[step] = self._score_of(self.note(step)["results"])
        return {step: score for step, score in scores.items() if score is not None}

    def _score_of(self, results: dict) -> float | None:
        score = results.get(self.kept.keep_best_metric)
        return None if score is None or math.isnan(score) else score

    def poll(self) -> None:
        """Report a failed save; several processes report it together, in `wait`."""
        if self._failure and jax.process_count() == 1:
            self.wait()

    def wait(self) -> None:
        """Return when the save in progress is complete, or has failed and was reported.

        CheckpointError on all processes after FAILED_SAVES failures in a row.
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
        Checkpoints.any_failed = True
        self.log(f"a checkpoint could not be saved in {self.folder}: {failure}")
        if self._failures >= FAILED_SAVES:
            raise CheckpointError(
                f"{self._failures} saves in a row failed in {self.folder}: {failure}. "
                + self._advice(),
                fault="R22",
            )

    def note(self, step: int) -> dict[str, Any]:
        """Return the digests.json of a step; OSError or ValueError if it is damaged."""
        if not self._staging.in_bucket or step not in self._notes:
            self._notes[step] = read_note(self.folder / str(step))
        return self._notes[step]

    def digest(self, step: int) -> str:
        """Return one SHA-256 for all files of a step."""
        return digest(self.note(step))

    def restore(self, abstract_state: Any) -> Restored | None:
        """Return the newest good checkpoint, sharded like `abstract_state`; None if there is none.

        A damaged checkpoint is renamed to STEP.corrupt and the previous one is used.
        CheckpointError if all are damaged.
        """
        step = hosts.on_first(self._newest_good)
        return None if step is None else load(self.folder / str(step), abstract_state)

    def _newest_good(self) -> int | None:
        complete = self.steps()
        for path in sorted(self._folders()):
            if int(path.name) in complete:
                continue
            if any(path.iterdir()):
                self.log(f"checkpoint {path} was not finished; it is ignored")
            else:
                self._set_aside(path, "corrupt", "is damaged: it is empty")
        for step in reversed(complete):
            path = self.folder / str(step)
            if not (problem := damage(path)):
                return step
            self._set_aside(path, "corrupt", f"is damaged: {problem}")
        damaged = sorted(path.name for path in self.folder.glob("*.corrupt*"))
        if damaged:
            raise CheckpointError(
                f"no good checkpoint is left in {self.folder}: {', '.join(damaged)}. Restore one "
                "from a copy, or start again in a new workdir",
                fault="R14",
            )
        return None

    def restore_from(self, requested: str, abstract_state: Any) -> Restored:
        """Return the requested checkpoint, a STEP of this folder or a PATH."""
        own = requested.isdecimal()
        path = self.folder / requested if own else paths.absolute(paths.path(requested))
        hosts.on_first(lambda: self._check_requested(path, requested))
        return load(path, abstract_state)

    def _check_requested(self, path: Path, requested: str) -> None:
        if not (path / DIGESTS).is_file():
            own = requested.isdecimal()
            steps = sorted(self.steps(), key=lambda s: abs(s - int(requested))) if own else []
            near = f"; nearest: {', '.join(map(str, steps[:3]))}" if steps else ""
            raise CheckpointError(f"{path} holds no complete checkpoint{near}", fault="R15")
        if problem := damage(path):
            raise CheckpointError(f"checkpoint {path} is damaged: {problem}; name another one")

    def set_aside_newer(self, step: int) -> None:
        """Rename the checkpoints after `step`, which are no longer used, to STEP.superseded."""

        def rename() -> None:
            for newer in (s for s in self.steps() if s > step):
                why = f"is newer than step {step}"
                self._set_aside(self.folder / str(newer), "superseded", why)

        hosts.on_first(rename)

    def _set_aside(self, path: Path, suffix: str, why: str) -> None:
        names = (f"{path.name}.{suffix}{n or ''}" for n in (0, *range(2, 10_000)))
        aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
        paths.rename(path, aside)
        self._forget(int(path.name))
        self.log(f"checkpoint {path} {why}; it was renamed to {aside.name}")


def newest_sound(workdir: Path, option: str = "") -> Path:
    """Return the newest checkpoint of a run; CheckpointError if there is none, or it is damaged.

    option: a prefix of the workdir in messages, such as `config.init.model=`.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", print)
    if not (steps := checkpoints.steps()):
        raise CheckpointError(
            f"{option}{workdir} has no checkpoint yet; train it with: supmim train "
            f"--workdir={workdir}"
        )
    path = checkpoints.folder / str(steps[-1])
    if problem := damage(path):
        raise CheckpointError(
            f"the newest checkpoint, step {path.name} of {option}{workdir}, is damaged: {problem}. "
            f"To set it aside: supmim evaluate --workdir={workdir}"
        )
    return path


def load(path: Path, abstract_state: Any) -> Restored:
    """Read a verified checkpoint; CheckpointError lists leaves that differ in shape or dtype."""
    stored = _leaves(_metadata(path))
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
            "The likely cause is another patch size, number of classes, decoder, dtype or version "
            "of supmim. Arrays are never cast or cut: use the config and the version that wrote it",
            fault="R16",
        )
    note = read_note(path)
    return Restored(ocp.load(str(at_hand(path)), abstract_state), note["fingerprint"], digest(note))


def load_some(path: Path, place: Callable[[str, tuple[int, ...]], Any]) -> dict[str, jax.Array]:
    """Read some leaves of a verified checkpoint, by name.

    place: returns the sharding of a leaf from its name and shape, or None to leave it unread.
    """

    def abstract(at, leaf):
        where = place(path_name(at), leaf.shape)
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        return shape if where else ocp.PLACEHOLDER

    tree = jax.tree_util.tree_map_with_path(abstract, _metadata(path))
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load(str(at_hand(path)), tree))
    return {path_name(at): leaf for at, leaf in leaves if leaf is not ocp.PLACEHOLDER}


def groups_of(path: Path) -> list[str]:
    """Return the names of the groups of parameters in a checkpoint, such as encoder."""
    names = _leaves(_metadata(path))
    return sorted({name.split("/")[1] for name in names if name.startswith("params/")})


def evaluated(
    path: Path, groups: tuple[str, ...], place: Callable[[str, tuple[int, ...]], Any] | None = None
) -> dict[str, Any]:
    """Return groups of the parameters of a verified checkpoint, by default on one device.

    Averaged parameters take the place of the others where there are any. place: see load_some.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = place or (lambda name, shape: device)
    pattern = re.compile(rf"(params|.*/average)/((?:{'|'.join(groups)})/.*)")
    names = [name for name in _leaves(_metadata(path)) if pattern.fullmatch(name)]
    chosen = {}  # plain name -> stored name: opt_state/.../average/... comes before params/...
    for name in sorted(names, reverse=True):
        chosen[pattern.sub(r"\2", name)] = name
    wanted = set(chosen.values())
    leaves = load_some(path, lambda name, shape: place(name, shape) if name in wanted else None)
    return traverse_util.unflatten_dict({k: leaves[name] for k, name in chosen.items()}, sep="/")


def _metadata(path: Path) -> Any:
    """Return the tree of shapes and dtypes of a checkpoint."""
    return ocp.metadata(str(at_hand(path))).metadata


def _leaves(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
