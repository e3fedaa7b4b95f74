"""What a run is put together from: mesh, sources, task, state, programs, predictions.

Shared by training, by evaluation and by what plans or times a run.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from supmim import config as config_lib
from supmim import sharding, step
from supmim.config import Config
from supmim.data import images, landmarks, pipeline, sources
from supmim.data.bad_records import BadRecords
from supmim.data.sources import base
from supmim.errors import ConfigError, DataError
from supmim.evaluators.lib.predictions import Predictions
from supmim.runtime import devices, hosts, numerics
from supmim.tasks import TASKS
from supmim.tokenizers import online
from supmim.workdir import pretrained
from supmim.workdir.checkpoint import Checkpoints

NEVER_ANOTHER = {"classes", "tokenizer"}  # what parameters mean


class Start(NamedTuple):
    """What may differ from one start of a run to the next.

    resume: a checkpoint to go on from; profile: steps to trace; bad_steps: so many updates in a row
    that are not finite end the run; allow_data_change: go on though the data is another. verb: the
    one that starts it, for the message that says how to go on.
    """

    resume: str = ""
    profile: str = ""
    bad_steps: int = numerics.BAD_STEPS
    allow_data_change: bool = False
    verb: str = "train"


def mesh_of(config: Config) -> jax.sharding.Mesh:
    """The mesh of the config; ConfigError where the devices do not fit it or the evaluation."""
    platform = devices.check()[0].platform
    if config.encoder.attention == "cudnn" and platform != "gpu":
        raise ConfigError(
            f"config.encoder.attention=cudnn needs a GPU, JAX uses the {platform}; set it to xla"
        )
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    sharding.check_divides("eval.batch_size", config.eval.batch_size, mesh)
    return mesh


def load_sources(config: Config) -> tuple[Any, base.Source, base.Source]:
    """The config, settled to the classes of its training source; training and evaluation source."""
    source, eval_source = sources.load(config.data, config.facts.has_labels)
    return with_num_classes(config, source), source, eval_source


def with_num_classes(config: Config, source: base.Source) -> Config:
    """Return the config with the number of classes of its source.

    ConfigError if the config asks for another number; DataError if there are fewer than two.
    """
    if not config.facts.has_labels:
        return config
    found = len(source.class_names)
    if not found:
        raise DataError(
            f"nothing says how many classes the masks of {source.name} have: write their names "
            "into classes.txt in its folder, one per line, or set --config.data.mask_classes=N"
        )
    if found < 2:
        raise DataError(
            f"{source.name} has images of one class, {source.class_names[0]}; at least two are "
            "needed"
        )
    if config.classifier.num_classes not in (0, found):
        raise ConfigError(
            f"{source.name} has {found} classes, config.classifier.num_classes is "
            f"{config.classifier.num_classes}; set --config.classifier.num_classes={found}, or 0 "
            "for those of the source"
        )
    if config.classifier.num_classes == found:
        return config
    return config_lib.replaced(config, {"classifier.num_classes": found})


def settled(config: Config) -> Any:
    """The config with its number of classes, for which a source is opened if need be."""
    known = config.classifier.num_classes or not config.facts.has_labels
    return config if known else load_sources(config)[0]


def readers_of(
    config: Config, source: base.Source, bad_records: BadRecords, limit: float
) -> pipeline.Readers:
    """How a source is read; a larger share of bad records than the limit is a DataError."""
    workers = pipeline.num_workers(source, config.data.workers)
    note = bad_records.of(source, limit)
    return pipeline.Readers(workers, note, lambda line: bad_records.tell(line))  # a screen, later


def create_predictions(
    config: Config,
    task: step.Task,
    source: base.Source,
    eval_source: base.Source,
    mesh: jax.sharding.Mesh,
    bad_records: BadRecords,
) -> Predictions:
    """What evaluators ask of both sources; bad records are missing from it and counted."""
    names = config.evaluator_names
    tokenized = "reconstruction" in names and config.has_tokenizer
    second = images.second_of(config)._replace(made=tokenized)
    seen = {
        "train": images.evaluation(source, config.data),
        "eval": images.evaluation(eval_source, config.data, second),
    }
    found, asked = None, config.eval.landmarks
    if asked and "landmarks" in names:
        found = landmarks.load(asked, config.data.max_pixels)
        seen |= found.views(config.data)
    check_alike(source, eval_source, found)
    readers = {
        name: readers_of(config, view.source, bad_records, 1.0) for name, view in seen.items()
    }
    return Predictions(task, seen, config.eval.batch_size, mesh, readers, found)


def check_alike(*data: base.Source | landmarks.Landmarks | None) -> None:
    """DataError if the processes of a run do not read the same images."""
    of_each = [one.fingerprint() for one in data if one is not None]
    names = ("training source", "evaluation source", "landmarks")
    hosts.agree_on_data(
        {
            f"{name}, {what}": value
            for name, fingerprint in zip(names, of_each, strict=False)
            for what, value in fingerprint.items()
        }  # fmt: skip
    )


def steps_of(config: Config, source: base.Source) -> int:
    """Length of the training in steps.

    DataError if a batch is larger than the source, ConfigError if the warm-up does not fit.
    """
    num_images = len(source)
    if num_images < config.batch_size:
        raise DataError(
            f"{source.name} has {num_images} images, fewer than a batch; set "
            f"--config.batch_size={num_images} or less"
        )
    total_steps = config.total_epochs * num_images // config.batch_size
    if total_steps <= config.optimizer.warmup_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} leaves nothing of "
            f"{total_steps} steps ({config.total_epochs} epochs of {num_images} images); set it "
            f"to {total_steps // 10} or so"
        )
    return total_steps


def create_task(
    config: Config, source: base.Source, workdir: Path, mesh: jax.sharding.Mesh
) -> step.Task:
    """The task of a run, with its frozen arrays on the mesh."""
    seen = images.training(source, config.data, images.second_of(config))
    task = TASKS[config.task].create(config, seen, workdir)
    task.frozen = jax.device_put(task.frozen, sharding.replicated(mesh))
    return task


def place(
    make_state: Callable[[], step.State], mesh: jax.sharding.Mesh, fsdp_splits: str
) -> tuple[Any, Any]:
    """Shapes of the state with their shardings, and the shardings alone."""
    shapes = jax.eval_shape(make_state)
    placement = sharding.state_sharding(shapes, mesh, fsdp_splits)
    abstract_state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        placement,
    )
    return abstract_state, placement


def programs(
    config: Config,
    task: step.Task,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    placement: Any,
) -> tuple[Any, Any, Any]:
    """What a step runs: `tokenize`, `prepare`, and `train_step`, which donates its state.

    The last is one and the same program wherever target_ids come from.
    """
    tokenize = online.Tokenize(task.tokenize, mesh, config.tokenizer.microbatch)
    prepare = jax.jit(task.prepare, out_shardings=sharding.batch_sharding(mesh))
    train_step = jax.jit(
        functools.partial(step.train_step, task=task, tx=tx, parts=config.accumulation_steps),
        donate_argnums=0,
        out_shardings=(placement, sharding.replicated(mesh)),
    )
    return tokenize, prepare, train_step


def origin_of(config: Config, checkpoints: Checkpoints, start: Start) -> dict[str, Any]:
    """Where the encoder of a run that begins comes from; empty: a new one, or the run goes on."""
    begins = not start.resume and not checkpoints.steps()
    return pretrained.find(config) if config.init.workdir and begins else {}


def restore(
    checkpoints: Checkpoints, abstract_state: Any, fingerprint: dict, start: Start
) -> step.State | None:
    """The state to go on from, or None. DataError if the data is not what it was."""
    if start.resume:
        restored = checkpoints.restore_from(start.resume, abstract_state)
    else:
        restored = checkpoints.restore(abstract_state)
    if restored is None:
        return None
    check_data(restored.fingerprint, fingerprint, start.allow_data_change)
    if start.resume:
        checkpoints.set_aside_newer(int(restored.state.step))
    return restored.state


def check_data(stored: dict[str, Any], found: dict[str, Any], allowed: bool = False) -> None:
    """DataError, naming the fields, if a checkpoint was trained on other data than is found.

    allowed: all but classes and tokenizer may differ. What `stored` lacks can't be compared.
    """
    if "classes" not in found:  # of a tokenizer, whose checkpoints had them once
        stored = {name: was for name, was in stored.items() if name != "classes"}
    changed = {name: f"  {name}: was {was}, is {found.get(name)}"
               for name, was in sorted(stored.items()) if was != found.get(name)}  # fmt: skip
    lines = "\n".join(changed.values())
    if changed and (not allowed or changed.keys() & NEVER_ANOTHER):
        raise DataError(
            f"the data is not what this run was trained on:\n{lines}\nRestore the data, start "
            "again in a new --workdir, or let supmim train go on with --allow-data-change, which "
            "takes other images, though not other classes or tokens"
        )
    if changed and hosts.is_first():
        print(f"going on with other data:\n{lines}")
