"""`supmim evaluate`: any evaluators on a workdir's checkpoint; reads its config.json only."""

import functools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from supmim import config as config_lib
from supmim import config_options, evaluators, optimizer, step, train
from supmim.checkpoint import Checkpoints
from supmim.data import pipeline
from supmim.data.bad_records import BadRecords
from supmim.errors import CheckpointError, ConfigError
from supmim.evaluators.predictions import Predictions
from supmim.report import page, terminal
from supmim.runtime import hosts, lock
from supmim.workdir import read_config, read_notes, read_results, write_results


def run(config: Any, flags: Any) -> None:
    """The verb: prints the results and notes them.

    Those of a finished run's last step join its results.json and report; others get a file of
    their own, results_step_STEP.json.
    """
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    workdir = Path(flags.workdir)
    asked = {name: flags[name].value for name in ("step", "evaluators")}
    hosts.agree(config, asked | {"workdir": str(workdir.absolute())})
    if flags.evaluators:
        config = with_evaluators(config, flags.evaluators)
    mesh = train.mesh_of(config)
    with hosts.first_holds(lock.hold(workdir)), jax.set_mesh(mesh):
        finished = read_results(workdir)
        state, predictions, digest = restored(config, workdir, flags.step, mesh)
        done = int(state.step)
        at_end = finished.get("step") == done
        pictures = workdir / "pictures" if at_end else workdir / "pictures" / f"step_{done}"
        judges = evaluators.create(config, predictions)
        params = optimizer.evaluated_params(state)
        results = evaluators.run(judges, predictions, params, pictures)
        notes = evaluators.notes(judges, done, digest)
        hosts.together(lambda: note(workdir, done, results, notes, finished if at_end else None))
    terminal.print_results(results, f"step {done} of {workdir}:")


def note(
    workdir: Path,
    done: int,
    results: dict[str, float],
    notes: dict[str, Any],
    finished: dict[str, float] | None,
) -> None:
    """Writes the results of a step and what they are of; those of a finished run's last step join
    the ones it has.
    """
    if finished is None:
        write_results(workdir, {"step": done, **results}, notes, f"results_step_{done}.json")
        return
    known = ({"protocols": {}} | read_notes(workdir))["protocols"]  # older runs noted none
    notes = notes | {"protocols": known | notes["protocols"]}
    kept = {name: v for name, v in finished.items() if not name.startswith("unreadable/")}
    merged = {name: value for name, value in (kept | results).items() if name != "step"}
    page.write(workdir, merged, config_lib.to_json(read_config(workdir)), notes)
    write_results(workdir, {"step": done, **merged}, notes)


def with_evaluators(config: Any, names: str) -> FrozenConfigDict:
    """The config with other evaluators, checked."""
    changed = ConfigDict(config.to_dict())
    changed.eval.evaluators = names
    changed.checkpoint.keep_best = 0
    config_lib.validate(changed)
    if not config_options.evaluator_names(changed):
        raise ConfigError(f"--evaluators={names} asks nothing of a run without a decoder")
    return FrozenConfigDict(changed)


def without_files_of_losses(config: Any) -> FrozenConfigDict:
    """The config as evaluators need it: no loss is taken, so none asks for its weights."""
    changed = ConfigDict(config.to_dict())
    changed.tokenizer.perceptual_weight = 0.0
    return FrozenConfigDict(changed)


def restored(
    config: Any, workdir: Path, asked: str, mesh: jax.sharding.Mesh
) -> tuple[step.State, Predictions, str]:
    """The state of one checkpoint, the newest unless a step is asked for, its predictions, and the
    checkpoint's digest.
    """
    config, source, eval_source = train.load_sources(without_files_of_losses(config))
    task = train.create_task(config, source, workdir, mesh)
    tx = optimizer.create(config.optimizer, lambda _: 0.0)
    make_state = functools.partial(step.create_state, jax.random.key(config.seed), task, tx)
    abstract_state, _ = train.place(make_state, mesh, config.mesh.fsdp_splits)
    checkpoints = Checkpoints(workdir / "checkpoints", print)
    found = (
        checkpoints.restore_from(asked, abstract_state)
        if asked
        else checkpoints.restore(abstract_state)
    )
    if found is None:
        raise CheckpointError(
            f"{workdir} has no checkpoint yet; train it with: supmim train --workdir={workdir}"
        )
    check_evaluated(
        found.fingerprint, pipeline.fingerprint(source, eval_source, config) | task.fingerprint()
    )
    bad_records = BadRecords(workdir / hosts.own_file("bad_records.jsonl"), print)
    predictions = train.create_predictions(config, task, source, eval_source, mesh, bad_records)
    return found.state, predictions, found.digest


def check_evaluated(stored: dict[str, Any], found: dict[str, Any]) -> None:
    """DataError if the training data is another; other evaluation images are told."""
    of_evaluation = {name for name in stored if name.startswith(pipeline.EVALUATED)}
    train.check_data({n: v for n, v in stored.items() if n not in of_evaluation}, found)
    changed = [name for name in sorted(of_evaluation) if stored[name] != found.get(name)]
    if changed and hosts.is_first():
        print("the evaluation images are not those of the training run:")
        print("\n".join(f"  {name}: was {stored[name]}, is {found.get(name)}" for name in changed))
