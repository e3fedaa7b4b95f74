"""`supmim evaluate`: run evaluators on a checkpoint of a workdir; only its config.json is needed.

The model is that of the run. The images may differ from the run's, or be cropped and resized
differently. Evaluators that have no meaning there are left out, or refused if requested by name.
"""

import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl.flags import FlagValues

from supmim import assemble, evaluators, optimizer, sharding, step
from supmim import config as config_lib
from supmim.commands import evaluation_results
from supmim.config import Config, tasks
from supmim.data import data_identity, images, run_sources, sources
from supmim.data.sources import joined
from supmim.data.sources.base import Source
from supmim.errors import CheckpointError, ConfigError, DataError, counted
from supmim.interop import load
from supmim.report import again, page, terminal
from supmim.runtime import devices, hosts
from supmim.runtime.progress import doing, tell
from supmim.runtime.streams import printable
from supmim.runtime.watchdog import Watchdog
from supmim.storage import paths
from supmim.tasks.base import Task
from supmim.tasks.registry import TASKS
from supmim.workdir import files, lock, model
from supmim.workdir.checkpoint import Checkpoints, Restored
from supmim.workdir.files import read_config
from supmim.workdir.folder import Workdir

USE_TRAINED_HEAD = (*tasks.USE_CLASSIFIER, "segmentation")
USE_TRAINING_CLASSES = ("knn", "fewshot", "linear", "logistic", "patch_knn")  # learn from it
CONDITIONAL = ("landmarks", "reconstruction")  # need landmarks, or a run with a decoder


def run(config: Config, flags: FlagValues) -> None:
    """Print the results and write them into the file that `evaluation_results` names."""
    devices.prepare(flags.fake_devices, False)
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    workdir = paths.path(flags.out if flags.model else flags.workdir)
    asked = {name: flags[name].value for name in ("step", "evaluators", "model")}
    hosts.agree(config, asked | {"workdir": str(paths.absolute(workdir))})
    if flags.model:
        mesh, held = assemble.mesh_of(config), hosts.first_holds(lock.hold(workdir, "--out"))
        line = doing("evaluating")
        with held, jax.set_mesh(mesh), line, watched(config), Workdir(workdir) as folder:
            evaluate_model(config, paths.path(flags.model), folder, mesh)
    else:
        alone(config, workdir, flags.step)


def alone(
    config: Config,
    workdir: Path,
    checkpoint: str = "",
    progress: evaluators.Progress | None = None,
) -> dict[str, float]:
    """Hold the lock of the workdir, evaluate a checkpoint (see `restore`), return the results.

    progress: see Suite.run; it replaces the line on the terminal.
    """
    mesh, line = assemble.mesh_of(config), doing("evaluating", shown=progress is None)
    held = hosts.first_holds(lock.hold(workdir))
    with held, jax.set_mesh(mesh), line, watched(config), Workdir(workdir) as folder:
        return evaluate(config, folder, checkpoint, mesh, progress)


def watched(config: Config) -> Watchdog:
    """Return the watchdog that ends an evaluation without progress."""
    return Watchdog(config.runtime.stall_minutes, lambda: "evaluate", tell)


def evaluate(
    config: Config,
    folder: Workdir,
    checkpoint: str,
    mesh: jax.sharding.Mesh,
    progress: evaluators.Progress | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint and return the results; the caller holds the lock of the workdir."""
    workdir = folder.path
    run_config, about = read_config(workdir), model.notes(workdir)
    config, source, eval_source = load_sources(config)
    trained = model_config(config, run_config)
    restored = restore(trained, workdir, checkpoint, mesh)
    renamed = renamed_classes(workdir, source, restored.fingerprint)
    reasons = meaningless(config, run_config, renamed, source, eval_source)
    config = without_meaningless(config, run_config, reasons)
    task = abstract_task(trained)
    if "reconstruction" in config.evaluator_names:
        seen = images.training(source, trained.data, images.second_of(trained))
        task = assemble.create_task(trained, seen, workdir, mesh)
        stored = {n: x for n, x in restored.fingerprint.items() if n == "tokenizer"}
        data_identity.check(stored, task.fingerprint())
    bad_records = folder.bad_records(print)
    predictions = assemble.create_predictions(config, task, source, eval_source, mesh, bad_records)

    found = evaluation_results.fingerprint(source, eval_source, config)
    run_fingerprint = restored.fingerprint | evaluation_results.window_fingerprint(run_config)
    changed = evaluation_results.differences(run_fingerprint, found)
    predictions.floors = {} if changed else evaluation_results.floors(workdir)
    if hosts.is_first():
        print(images_line(source, eval_source))
        if changed:
            print("\n  ".join(["the data differs from that of the run:", *changed]))
    done = int(restored.state.step)
    file = evaluation_results.file_name(
        workdir, done, restored.digest, eval_source.name, found if changed else {}
    )
    pictures = workdir / "pictures" / Path(file).stem.removeprefix("results").removeprefix("_")
    suite = evaluators.create(config, predictions)
    results = suite.run(optimizer.evaluated_params(restored.state), progress)
    suite.draw(pictures)
    notes = {"checkpoint": {"step": done, "digest": restored.digest}, **suite.notes(), **about}
    read = predictions.sources_read()
    hosts.on_first(lambda: evaluation_results.write(workdir, file, results, notes, read))
    terminal.print_results(results, f"step {done} of {workdir}, in {file}:")
    return results


def evaluate_model(config: Config, path: Path, folder: Workdir, mesh: jax.sharding.Mesh) -> None:
    """Evaluate a model from elsewhere, on any images; the caller holds the lock of the folder."""
    out = folder.path
    found = load.published(path)
    config, source, eval_source = load_sources(config)
    renamed = differing_classes(found.class_names, source)
    reasons = meaningless(config, found.config, renamed, source, eval_source)
    config = without_meaningless(config, found.config, reasons)
    bad_records = folder.bad_records(print)
    task = abstract_task(model_config(config, found.config))
    predictions = assemble.create_predictions(config, task, source, eval_source, mesh, bad_records)
    if hosts.is_first():
        print(images_line(source, eval_source))
    suite = evaluators.create(config, predictions)
    empty = {"head": {"kernel": np.zeros((config.encoder.width, 0)), "bias": np.zeros(0)}}
    params = jax.device_put({"classifier": empty} | found.params, sharding.replicated(mesh))
    results = suite.run(params)
    suite.draw(out / "pictures")
    notes = {"checkpoint": {"model": str(path), "digest": found.sha256}, **suite.notes()}

    def write() -> None:
        page.write(out, results, config, notes, again.evaluation(path, out, config, found.config))
        files.write_results(out, results, notes)

    hosts.on_first(write)
    terminal.print_results(results, f"{path}, in {out / 'report.html'}:")


def images_line(source: Source, eval_source: Source) -> str:
    """Return which images are evaluated, and among which neighbours are searched."""
    return printable(
        f"images      {eval_source.name}: {len(eval_source):,}; "
        f"training source {source.name}: {len(joined.labelled(source)):,}"
    )


def load_sources(config: Config) -> tuple[Config, Source, Source]:
    """Return the config with the number of classes, the training and the evaluation source.

    The classes are those of both sources, which need not be alike.
    """
    labelled = config.facts.has_labels
    source, eval_source = sources.load(
        config.data, labelled, all_classes=config.facts.may_join_classes
    )
    unknown = config_lib.replaced(config, {"classifier.num_classes": 0})
    return run_sources.with_num_classes(unknown, source), source, eval_source


def model_config(config: Config, run_config: Config) -> Config:
    """Return the config of the model: with the run's data and classes, whatever is evaluated on.

    No loss is computed, so the perceptual loss and its weights are switched off.
    """
    run_data = config_lib.flatten(run_config.data, "data.")
    run_classifier = config_lib.flatten(run_config.classifier, "classifier.")
    here = {"data.targets": config.data.targets, "data.local_copy": config.data.local_copy}
    own = here | {"tokenizer.perceptual_weight": 0.0}
    return config_lib.replaced(config, run_data | run_classifier | own)


def abstract_task(config: Config) -> Task:
    """Return the task of a run without the tokenizer that its training had."""
    return TASKS[config.task].abstract(config, frozen=False)


def restore(config: Config, workdir: Path, checkpoint: str, mesh: jax.sharding.Mesh) -> Restored:
    """Restore a checkpoint of a run on the mesh; checkpoint: a STEP or a PATH, empty: the newest.

    CheckpointError if there is none.
    """
    tx = optimizer.create(config.optimizer, lambda _: 0.0)
    make_state = functools.partial(
        step.create_state, jax.random.key(config.seed), abstract_task(config), tx
    )
    state = assemble.placed_shapes(make_state, mesh, config.mesh.fsdp_splits)
    checkpoints = Checkpoints(workdir / "checkpoints", print)
    if checkpoint:
        return checkpoints.restore_from(checkpoint, state)
    if (restored := checkpoints.restore(state)) is None:
        raise CheckpointError(
            f"{workdir} has no checkpoint yet; train it with: supmim train --workdir={workdir}"
        )
    return restored


def renamed_classes(workdir: Path, source: Source, stored: dict[str, Any]) -> str:
    """Return how the classes of a run differ from those of a source; empty if they do not.

    stored: the fingerprint of the checkpoint; in older runs it lacks the names of the classes.
    """
    classes = data_identity.classes_of(source)
    if stored.get("classes", classes) == classes:
        return ""
    trained = model.read(workdir)
    return differing_classes(trained.class_names if trained else (), source)


def differing_classes(trained: tuple[str, ...], source: Source) -> str:
    """Return how the names of a model's classes differ from those of a source, if they do."""
    if trained == source.class_names:
        return ""
    told = "the model's classes are not those of the images"
    if not trained:
        return told
    names = [map(repr, names) for names in (trained, source.class_names)]
    pairs = enumerate(itertools.zip_longest(*names, fillvalue="missing"))
    differ = [f"class {n} was {was}, is {now}" for n, (was, now) in pairs if was != now]
    return f"{told}: {differ[0]}; {len(differ)} differ"


def meaningless(
    config: Config, run_config: Config, renamed: str, source: Source, eval_source: Source
) -> dict[str, str]:
    """Return the evaluators whose results would mean nothing on these images -> the reason.

    Print a warning if images of the two sources are the same. renamed: the return value of
    `renamed_classes`.
    """
    reasons: dict[str, str] = {}
    if renamed:
        reasons |= dict.fromkeys(USE_TRAINED_HEAD, renamed)
    if config.data.image_size != run_config.data.image_size:
        size = run_config.data.image_size
        reasons["reconstruction"] = f"the decoder takes only images of {counted(size, 'pixel')}"
    if not sources.share_classes(source, eval_source):
        why = "the training source has none of the classes of these images"
        reasons |= dict.fromkeys(USE_TRAINING_CLASSES, why)
    told, every = run_sources.shared_images(joined.labelled(source), eval_source)
    if every:
        reasons |= dict.fromkeys(USE_TRAINING_CLASSES, told)
    if told and hosts.is_first():
        print(f"warning     {told}")
    return reasons


def without_meaningless(config: Config, run_config: Config, reasons: dict[str, str]) -> Config:
    """Return the config without the evaluators that have a reason against them; print the reasons.

    If one of them was requested by name, or no other is left, raise DataError for other classes
    than the run's, else ConfigError.
    """
    names, asked = config.evaluator_names, config.eval.evaluators
    kept = [name for name in names if name not in reasons]
    lines = [f"{name}: {reasons[name]}" for name in names if name in reasons]
    if lines and (not kept or asked not in (tasks.ALL, run_config.eval.evaluators)):
        others = [n for n in config.facts.evaluators if n not in reasons and n not in CONDITIONAL]
        trained_head = any(name in USE_TRAINED_HEAD for name in names if name in reasons)
        raise (DataError if trained_head else ConfigError)(
            "these evaluators cannot be used on these images:\n  "
            + "\n  ".join(lines)
            + f"\nUse others: --evaluators={','.join(others)}"
        )
    if hosts.is_first():
        print("".join(f"left out    {line}\n" for line in lines), end="")
    return config_lib.replaced(config, {"eval.evaluators": ",".join(kept)})
