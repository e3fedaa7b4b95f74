"""`supmim evaluate`: any evaluators on a workdir's checkpoint; reads its config.json only.

The model is the run's. Images may be others, or be seen otherwise, than its own: then what has no
meaning there is left out, or refused if it was asked for by name.
"""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax
from absl.flags import FlagValues

from supmim import assemble, evaluators, optimizer, step
from supmim import config as config_lib
from supmim.config import Config, options, tasks
from supmim.data import images, pipeline, sources
from supmim.data.bad_records import BadRecords
from supmim.data.sources import base
from supmim.errors import CheckpointError, ConfigError
from supmim.report import page, terminal
from supmim.runtime import devices, hosts
from supmim.tasks.base import Task
from supmim.tasks.registry import TASKS
from supmim.workdir import lock
from supmim.workdir.checkpoint import Checkpoints, Restored
from supmim.workdir.files import (
    RESULTS,
    read_config,
    read_notes,
    read_origin,
    read_results,
    write_results,
)

NOT_OF_DATA = {"classes", "tokenizer", "tokenizer.image_size"}  # in a fingerprint: the model's
BY_CLASSES = ("knn", "fewshot", "linear", "logistic")  # that are learnt from the training source
OF_HEAD = ("classification", "segmentation")  # that ask the trained head


def run(config: Config, flags: FlagValues) -> None:
    """The verb: prints the results and notes them, in the file that `results_of` names."""
    devices.prepare(flags.fake_devices, False)
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    workdir = Path(flags.workdir)
    asked = {name: flags[name].value for name in ("step", "evaluators")}
    hosts.agree(config, asked | {"workdir": str(workdir.absolute())})
    mesh = assemble.mesh_of(config)
    with hosts.first_holds(lock.hold(workdir)), jax.set_mesh(mesh):
        evaluate(config, workdir, flags.step, mesh)


def evaluate(config: Config, workdir: Path, asked: str, mesh: jax.sharding.Mesh) -> None:
    """The same in a workdir that it holds; asked: see `restored`."""
    run_config = read_config(workdir)
    config, source, eval_source = load_sources(config)
    own = of_run(config, run_config)
    found = restored(own, workdir, asked, mesh)
    config = judged(config, run_config, found.fingerprint, source, eval_source)
    task = abstract(own)
    if "reconstruction" in config.evaluator_names:
        task = with_tokenizer(own, found.fingerprint, source, workdir, mesh)
    bad_records = BadRecords(workdir / hosts.own_file("bad_records.jsonl"), print)
    predictions = assemble.create_predictions(config, task, source, eval_source, mesh, bad_records)

    seen = fingerprint(source, eval_source, config)
    changed = differences(found.fingerprint | window(run_config), seen)
    done = int(found.state.step)
    file = results_of(workdir, done, found.digest, changed, eval_source.name, seen)
    log(source, eval_source, changed)
    pictures = workdir / "pictures" / Path(file).stem.removeprefix("results").removeprefix("_")
    suite = evaluators.create(config, predictions)
    params = optimizer.evaluated_params(found.state)
    results = suite.run(params, pictures)
    notes = {"checkpoint": {"step": done, "digest": found.digest}, **suite.notes()}
    again = predictions.read()
    hosts.together(lambda: note(workdir, file, results, notes, again))
    terminal.print_results(results, f"step {done} of {workdir}, in {file}:")


# What is evaluated.


def load_sources(config: Config) -> tuple[Config, base.Source, base.Source]:
    """The config with the number of classes of its images; training and evaluation source.

    Classes of images are those of both sources, which need not be alike.
    """
    labelled = config.facts.has_labels
    source, eval_source = sources.load(config.data, labelled, joined=config.facts.may_join_classes)
    unknown = config_lib.replaced(config, {"classifier.num_classes": 0})
    return assemble.with_num_classes(unknown, source), source, eval_source


def of_run(config: Config, run_config: Config) -> Config:
    """The config of the model: the run's data and classes, whatever is evaluated on.

    No loss is taken, so none asks for its weights.
    """
    return options.changed(
        config,
        data=options.changed(run_config.data, targets=config.data.targets),
        classifier=run_config.classifier,
        tokenizer=options.changed(config.tokenizer, perceptual_weight=0.0),
    )


def abstract(config: Config) -> Task:
    """The task of a run without the tokenizer that its training had."""
    task = TASKS[config.task].abstract(config)
    task.frozen = None
    return task


def restored(config: Config, workdir: Path, asked: str, mesh: jax.sharding.Mesh) -> Restored:
    """One checkpoint of a run, the newest unless a step is asked for, on the mesh."""
    tx = optimizer.create(config.optimizer, lambda _: 0.0)
    make_state = functools.partial(
        step.create_state, jax.random.key(config.seed), abstract(config), tx
    )
    abstract_state = assemble.place(make_state, mesh, config.mesh.fsdp_splits)
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
    return found


def with_tokenizer(
    config: Config, stored: dict[str, Any], source: base.Source, workdir: Path,
    mesh: jax.sharding.Mesh,
) -> Task:  # fmt: skip
    """The task of a run; DataError if its tokenizer is not what it was."""
    seen = images.training(source, config.data, images.second_of(config))
    task = assemble.create_task(config, seen, workdir, mesh)
    assemble.check_data({n: x for n, x in stored.items() if n == "tokenizer"}, task.fingerprint())
    return task


def judged(
    config: Config, run_config: Config, stored: dict[str, Any], source: base.Source,
    eval_source: base.Source,
) -> Config:  # fmt: skip
    """The config without the evaluators that mean nothing on these images, which are told.

    ConfigError if one of them was asked for by name, or no other is left.
    """
    asked = config.eval.evaluators
    reasons = meaningless(config, run_config, stored, source, eval_source)
    names = config.evaluator_names
    left_out = {name: reasons[name] for name in names if name in reasons}
    kept = [name for name in names if name not in reasons]
    lines = [f"{name}: {why}" for name, why in left_out.items()]
    if left_out and (not kept or asked not in (tasks.ALL, run_config.eval.evaluators)):
        others = [n for n in config.facts.evaluators
                  if n not in reasons and n not in ("landmarks", "reconstruction")]  # fmt: skip
        raise ConfigError(
            "not every evaluator has a meaning on these images:\n  " + "\n  ".join(lines) +
            f"\nThese have: --evaluators={','.join(others)}"
        )  # fmt: skip
    if hosts.is_first():
        print("".join(f"left out    {line}\n" for line in lines), end="")
    return config_lib.replaced(config, {"eval.evaluators": ",".join(kept)})


def meaningless(
    config: Config, run_config: Config, stored: dict[str, Any], source: base.Source,
    eval_source: base.Source,
) -> dict[str, str]:  # fmt: skip
    """Evaluators of which nothing can be said here, with the reason."""
    reasons = {}
    classes = pipeline.classes_of(source)
    if stored.get("classes", classes) != classes:
        reasons |= dict.fromkeys(OF_HEAD, "the run's classes are not those of the images")
    if config.data.image_size != run_config.data.image_size:
        reasons["reconstruction"] = (
            f"the decoder knows images of {run_config.data.image_size} pixels alone"
        )
    if not sources.share_classes(source, eval_source):
        reasons |= dict.fromkeys(BY_CLASSES, "the training source has no class of the images")
    return reasons


# Where results go.


def fingerprint(source: base.Source, eval_source: base.Source, config: Config) -> dict[str, Any]:
    """Of the images and how they are seen."""
    found = pipeline.fingerprint(source, eval_source, config)
    return {n: x for n, x in found.items() if n not in NOT_OF_DATA} | window(config)


def window(config: Config) -> dict[str, int]:
    """How segmentation sees them besides; empty for other tasks."""
    if not config.facts.has_masks:
        return {}
    return dict(zip(("window", "stride"), config.window, strict=True))


def differences(stored: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """Lines for what the run saw otherwise, whichever side lacks it."""
    names = sorted((stored.keys() | seen.keys()) - NOT_OF_DATA)
    return [
        f"{name}: was {stored.get(name)}, is {seen.get(name)}"
        for name in names
        if stored.get(name) != seen.get(name)
    ]


def log(source: base.Source, eval_source: base.Source, changed: list[str]) -> None:
    """Which images are used, and how they differ from the run's."""
    if not hosts.is_first():
        return
    print(f"images      {eval_source.name}: {len(eval_source):,}; "
          f"training source {source.name}: {len(source):,}")  # fmt: skip
    if changed:
        print("\n  ".join(["not what the run was trained and evaluated on:", *changed]))


def results_of(
    workdir: Path, done: int, digest: str, changed: list[str], name: str, seen: dict[str, Any]
) -> str:
    """The file of the results: results.json of a finished run's last step, on the run's own images.

    Else results_step_STEP.json; on others, or seen otherwise, results_step_STEP_on_NAME_DIGEST.json
    with their digest.
    """
    if changed:
        text = json.dumps(seen, sort_keys=True)
        short = re.sub(r"\W+", "-", name.rpartition("/")[2]).strip("-")[:40]
        which = f"{short}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return f"results_step_{done}_on_{which}.json"
    noted = read_notes(workdir).get("checkpoint", {"digest": digest})  # older runs noted none
    at_end = read_results(workdir).get("step") == done and noted["digest"] == digest
    return RESULTS if at_end else f"results_step_{done}.json"


def note(
    workdir: Path, file: str, results: dict[str, float], notes: dict[str, Any],
    again: tuple[str, ...],
) -> None:  # fmt: skip
    """Writes results and what they are of, beside those that the file has of the same checkpoint.

    again: the sources that were read, whose unreadable images are counted anew.
    """
    had = read_notes(workdir, file)
    if had.get("checkpoint", notes["checkpoint"]) == notes["checkpoint"]:
        replaced = tuple(f"{n}/" for n in notes["protocols"]) + tuple(
            f"unreadable/{s}" for s in again
        )
        stored = read_results(workdir, file)
        results = {n: x for n, x in stored.items() if not n.startswith(replaced)} | results
        of_both = {name: had.get(name, {}) | notes[name] for name in ("data", "protocols")}
        notes = notes | of_both
    notes |= read_origin(workdir)
    numbers = {name: value for name, value in results.items() if name != "step"}
    if file == RESULTS:
        page.write(workdir, numbers, config_lib.to_json(read_config(workdir)), notes)
    write_results(workdir, {"step": notes["checkpoint"]["step"], **numbers}, notes, file)
