"""`supmim evaluate`: any evaluators on a workdir's checkpoint; reads its config.json only."""

import functools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from supmim import config as config_lib
from supmim import evaluators, optimizer, step, train
from supmim.checkpoint import Checkpoints
from supmim.errors import CheckpointError
from supmim.evaluators.predictions import Predictions
from supmim.report import terminal
from supmim.runtime import devices
from supmim.tasks import TASKS
from supmim.workdir import read_results, write_results


def run(config: Any, flags: Any) -> None:
    """The verb: prints the results and adds them to results.json if the run is finished."""
    workdir = Path(flags.workdir)
    if flags.evaluators:
        config = with_evaluators(config, flags.evaluators)
    devices.check()
    mesh = train.mesh_of(config)
    with jax.set_mesh(mesh):
        done, results = evaluate(config, workdir, flags.step, mesh)
    finished = read_results(workdir)
    if finished.get("step") == done:
        write_results(workdir, finished | results)
    terminal.print_results(results, f"step {done} of {workdir}:")


def with_evaluators(config: Any, names: str) -> FrozenConfigDict:
    """The config with other evaluators, checked."""
    changed = ConfigDict(config.to_dict())
    changed.eval.evaluators = names
    changed.checkpoint.keep_best = 0
    config_lib.validate(changed)
    return FrozenConfigDict(changed)


def evaluate(
    config: Any, workdir: Path, asked: str, mesh: jax.sharding.Mesh
) -> tuple[int, dict[str, float]]:
    """Step and results of one checkpoint, the newest unless a step is asked for."""
    source, eval_source = train.load_sources(config)
    task = TASKS[config.task](config, source, workdir)
    tx = optimizer.create(config.optimizer, lambda _: 0.0)
    make_state = functools.partial(step.create_state, jax.random.key(config.seed), task, tx)
    abstract_state, _ = train.place(make_state, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", print)
    restored = (
        checkpoints.restore_from(asked, abstract_state)
        if asked
        else checkpoints.restore(abstract_state)
    )
    if restored is None:
        raise CheckpointError(
            f"{workdir} has no checkpoint yet; train it with: supmim train --workdir={workdir}"
        )
    predictions = Predictions(
        task, {"train": source, "eval": eval_source}, config.eval.batch_size, mesh
    )
    judges = evaluators.create(config, predictions)
    params = optimizer.evaluated_params(restored.state)
    return int(restored.state.step), evaluators.run(judges, params, workdir / "pictures")
