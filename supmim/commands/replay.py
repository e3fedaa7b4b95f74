"""`supmim replay`: repeat the steps of a post-mortem, and print what in them is not finite.

It trains from the checkpoint before them, in a folder of its own; the workdir stays as it is.
Shapes: B batch.
"""

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FlagValues

from supmim import assemble, metrics, sharding, step, train
from supmim import config as config_lib
from supmim.config import Config
from supmim.data.raw import Raw
from supmim.errors import CheckpointError, counted
from supmim.report.terminal import Terminal
from supmim.runtime import devices, numerics
from supmim.runtime.progress import doing
from supmim.runtime.streams import printable
from supmim.sharding import path_name
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.tasks.base import Drawn
from supmim.workdir import checkpoint as checkpoints
from supmim.workdir import files
from supmim.workdir.checkpoint import Checkpoints
from supmim.workdir.folder import Workdir

NAMED = 5  # images, and arrays of parameters
ADVICE = "replay needs the postmortem.json of a run that ended with exit code 5"


def run(_: Config | None, flags: FlagValues) -> None:
    """Print what each of the steps does."""
    devices.prepare("", flags.deterministic)
    path = paths.absolute(paths.path(flags.postmortem))
    about, config = read(path)
    mesh, folder = assemble.mesh_of(config), scratch(path.parent, about["checkpoint"])
    with folder as folder, jax.set_mesh(mesh), Terminal() as screen:
        begun = train.set_up(config, Workdir(folder), assemble.DEFAULT_START, mesh, screen.log)
        before = int(begun.state.step)
        screen.log(f"replay      {counted(len(about['steps']), 'step')}, from step {before:,} on")
        for line in replayed(begun, about["steps"]):
            screen.log(line)


def read(path: Path) -> tuple[dict[str, Any], Config]:
    """Return a post-mortem and the config of its run, which takes one step a call."""
    if not path.is_file():
        raise CheckpointError(f"there is no {path}: {ADVICE}")
    about = files.read_object(path, ADVICE)
    if not about.keys() >= {"config", "checkpoint", "steps"}:
        raise CheckpointError(f"{path} was written by an older supmim: {ADVICE}")
    config = config_lib.from_json(json.dumps(about["config"]), str(path))
    return about, config_lib.replaced(config, {"steps_per_call": 1, "save_every": 0})


@contextlib.contextmanager
def scratch(workdir: Path, checkpoint: dict[str, Any]) -> Iterator[Path]:
    """Yield a new workdir with the checkpoint and the tokenizer of another.

    CheckpointError if the checkpoint is gone, or is not the one that was there.
    """
    number = str(checkpoint["step"])
    found = workdir / "checkpoints" / number
    if checkpoint["step"]:
        check(found, checkpoint["digest"])
    with tempfile.TemporaryDirectory(prefix="supmim_replay_") as name:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        if checkpoint["step"]:
            bring(found, folder / "checkpoints" / number)
        if (workdir / "tokenizer").is_dir():
            bring(workdir / "tokenizer", folder / "tokenizer")
        yield folder


def bring(found: Path, to: Path) -> None:
    """Make a folder of another workdir one of ours: by a link, or by a copy from a bucket."""
    if on_bucket(found):
        paths.download(found, to)
    else:
        to.symlink_to(found)


def check(path: Path, digest: str) -> None:
    """Raise CheckpointError if a checkpoint is gone, damaged, or has another digest."""
    problem = "it is gone" if not path.is_dir() else checkpoints.damage(path)
    if not problem and Checkpoints(path.parent, print).digest(int(path.name)) != digest:
        problem = "it has been written again since"
    if problem:
        raise CheckpointError(
            f"the run reached these steps from {path}, but {problem}. Restore it from a copy"
        )


def replayed(begun: train.Run, expected: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Train to the last of the expected steps, and yield what each of these does."""
    wanted = {one["step"]: one for one in expected}
    state, rng = begun.state, jax.random.key(begun.config.seed)
    look = examination(begun)
    with contextlib.closing(begun):
        for steps, batches in begun.calls:
            batches = begun.programs.tokenize(begun.task.frozen, batches, 1)
            number, lines = steps[0], []
            if number in wanted:
                lines = list(look(state, jax.tree.map(lambda x: x[0], batches), rng))
            state, totals = begun.programs.train_steps(state, batches, np.int32(1), rng)
            if number in wanted:
                index = np.asarray(batches["index"])[0].tolist()
                found = numerics.described(number, index, metrics.each(totals, 1)[0])
                yield verdict(number, wanted[number], found)
                yield from lines
            if number == max(wanted):
                return


def verdict(number: int, was: dict[str, Any], now: dict[str, Any]) -> str:
    """Return whether a step is as it was in the run, and which of its metrics are not finite."""
    differ = [name for name in was if was[name] != now.get(name)]
    same = f"differs from the run in {', '.join(differ)}" if differ else "as in the run"
    bad = [name for name in now if now[name] == numerics.NOT_FINITE]
    return f"step {number:<7,}{same}; not finite: {', '.join(bad) or 'nothing'}"


def examination(begun: train.Run) -> Callable[[step.State, Raw, jax.Array], Iterator[str]]:
    """Return a function that yields where a step's gradient is not finite, and by which images."""
    task, source = begun.task, begun.source
    few = begun.config.row_group * sharding.batch_shards(jax.sharding.get_mesh())

    @jax.jit
    def drawn(batch: Raw, key: jax.Array) -> Drawn:
        return task.draw(task.prepare(batch), key)

    @functools.partial(jax.jit, static_argnames="parts")
    def not_finite(state: step.State, batch: Drawn, key: jax.Array, parts: int) -> Any:
        free, fixed = step.divided(state.params, task)
        loss_fn = functools.partial(task.loss_fn, step=state.step)
        grads, _ = step.gradients(
            lambda params, *rest: loss_fn(params | fixed, *rest), free, batch, key, parts
        )
        return jax.tree.map(lambda x: ~jnp.isfinite(x).all(), grads)

    def look(state: step.State, raw: Raw, rng: jax.Array) -> Iterator[str]:
        key = jax.random.fold_in(rng, state.step)
        batch = drawn(raw, key)
        found = not_finite(state, batch, key, begun.config.accumulation_steps)
        leaves = jax.tree_util.tree_leaves_with_path(found)
        names = [path_name(path) for path, bad in leaves if bad]
        if not names:
            return
        told = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        yield f"  gradients not finite in {len(names)} of {counted(len(leaves), 'array')}: {told}"

        def is_bad(row: int) -> bool:
            alone = jax.tree.map(lambda x: jnp.repeat(x[row : row + 1], few, axis=0), batch)
            return any(jax.tree.leaves(not_finite(state, alone, key, 1)))

        size = len(batch.valid)
        if any(len(leaf) != size for leaf in jax.tree.leaves(batch)):
            return  # images without labels are in the masked pass alone
        bad = []
        with doing("images by themselves", size) as advance:
            for row in range(size):
                bad += [row] if batch.valid[row] and is_bad(row) else []
                advance(1)
        index = np.asarray(cast(Any, raw)["index"])[bad]
        images = [printable(source.name_of(int(number))) for number in index]
        told = ", ".join(images[:NAMED]) + (", ..." if len(images) > NAMED else "")
        yield f"  images    not finite by themselves, {len(images)} of {size}: {told or 'none'}"

    return look
