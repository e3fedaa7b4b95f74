"""The parts of a run: mesh, sources, task, state, programs, predictions.

Training, evaluation, plans and benchmarks put them together in their own ways.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from supmim import sharding, step
from supmim.config import Config
from supmim.data import data_identity, images, landmarks, pipeline
from supmim.data.bad_records import BadRecords
from supmim.data.sources import base, joined
from supmim.errors import ConfigError, DataError, counted
from supmim.evaluators.lib.predictions import Predictions
from supmim.interop import pretrained
from supmim.runtime import devices, hosts, numerics
from supmim.runtime.progress import doing
from supmim.target_ids import files as target_ids
from supmim.target_ids import identity
from supmim.tasks.base import Task
from supmim.tasks.registry import TASKS
from supmim.tokenizers import online
from supmim.workdir.checkpoint import Checkpoints


class Start(NamedTuple):
    """What may differ from one start of a run to the next.

    resume: the checkpoint to continue from. profile: the steps to trace. bad_steps: how many
    updates in a row may be non-finite before the run ends. allow_data_change: continue on other
    data. verb: the command that started the run, for the message that says how to continue.
    """

    resume: str = ""
    profile: str = ""
    bad_steps: int = numerics.BAD_STEPS
    allow_data_change: bool = False
    verb: str = "train"


DEFAULT_START = Start()


def mesh_of(config: Config) -> Mesh:
    """Return the mesh of a config; ConfigError if it does not fit the devices or the batches."""
    platform = devices.check()[0].platform
    if config.encoder.attention == "cudnn" and platform != "gpu":
        raise ConfigError(
            f"config.encoder.attention=cudnn needs a GPU, but JAX uses the {platform}; set it "
            "to xla"
        )
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    sharding.check_divides("eval.batch_size", config.eval.batch_size, mesh)
    return mesh


def readers_of(
    config: Config, source: base.Source, bad_records: BadRecords, limit: float
) -> pipeline.Readers:
    """Return how to read a source; reading raises DataError above this share of bad records."""
    workers = pipeline.num_workers(source, config.data.workers)
    note = bad_records.of(source, limit)
    return pipeline.Readers(workers, note, bad_records.log)


def create_predictions(
    config: Config,
    task: Task,
    source: base.Source,
    eval_source: base.Source,
    mesh: Mesh,
    bad_records: BadRecords,
) -> Predictions:
    """Return the predictions on both sources that evaluators share; bad records are left out."""
    names = config.evaluator_names
    tokenized = "reconstruction" in names and config.has_tokenizer
    second = images.second_of(config)._replace(made=tokenized)
    seen = {
        "train": images.evaluation(joined.labelled(source), config.data),
        "eval": images.evaluation(eval_source, config.data, second),
    }
    whole = joined.whole(source) if config.eval.all_labels and "knn" in names else None
    if whole is not None:
        seen["whole"] = images.evaluation(whole, config.data)
    found, asked = None, config.eval.landmarks
    if asked and "landmarks" in names:
        found = landmarks.load(asked, config.data.max_pixels)
        seen |= found.evaluation_images(config.data)
    check_alike(source, eval_source, found)
    readers = {
        name: readers_of(config, view.source, bad_records, 1.0) for name, view in seen.items()
    }
    return Predictions(task, seen, config.eval.batch_size, mesh, readers, found)


def check_alike(*data: base.Source | landmarks.Landmarks | None) -> None:
    """Raise DataError if the processes of a run do not read the same images."""
    of_each = [one.fingerprint() for one in data if one is not None]
    names = ("training source", "evaluation source", "landmarks")
    fields = {}
    for name, fingerprint in zip(names, of_each, strict=False):
        fields |= {f"{name}, {field}": value for field, value in fingerprint.items()}
    hosts.agree_on_data(fields)


def steps_of(config: Config, source: base.Source) -> int:
    """Return the length of the training in steps.

    DataError if a batch is larger than the whole training, ConfigError if the warm-up does not fit.
    """
    num_images = len(joined.labelled(source))
    total_steps, epochs = config.num_steps(num_images), config.num_epochs(num_images)
    if not total_steps:
        raise DataError(
            f"{source.name} has {counted(num_images, 'image')}, too few to fill a batch of "
            f"{config.batch_size} in {counted(epochs, 'epoch')}; set --config.batch_size="
            f"{num_images} or less, or --config.total_steps=N",
            fault="I7",
        )
    if total_steps <= config.optimizer.warmup_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} is not below the "
            f"{counted(total_steps, 'step')} of the training ({counted(epochs, 'epoch')} of "
            f"{counted(num_images, 'image')}); set it to {total_steps // 10} or so, or set "
            "--config.optimizer.warmup_steps=0 --config.optimizer.warmup_share=0.05"
        )
    return total_steps


def create_task(config: Config, seen: images.Images, workdir: Path, mesh: Mesh) -> Task:
    """Return the task of a run, with its frozen arrays on the mesh. seen: its training images."""
    task = TASKS[config.task].create(config, seen, workdir)
    task.frozen = jax.device_put(task.frozen, sharding.replicated(mesh))
    return task


def open_target_ids(
    config: Config, source: base.Source, task: Task, mesh: Mesh
) -> target_ids.Cache | None:
    """Return what a run reads its target ids from; None if it computes them.

    A tokenizer that no evaluator will ask for is then dropped, which frees its memory.
    """
    cache = identity.open_for(config, source, task.fingerprint())
    if cache is None:
        return None
    tokenize = online.Tokenize(task.tokenize, mesh, config.tokenizer.microbatch)
    identity.log_agreement(config, source, cache, task.frozen, tokenize, mesh)
    if "reconstruction" not in config.evaluator_names:
        task.frozen = None
    return cache


def placed_shapes(make_state: Callable[[], step.State], mesh: Mesh, fsdp_splits: str) -> Any:
    """Return the shapes of a new state, with their shardings."""
    shapes = jax.eval_shape(make_state)
    placement = sharding.state_sharding(shapes, mesh, fsdp_splits)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        placement,
    )


class Programs(NamedTuple):
    """The programs of training: `tokenize`, and `train_steps`, which donates its state.

    `train_steps` is one program: it does not matter whether images are read or lie on the devices,
    or whether ids are cached or computed.
    """

    tokenize: online.Tokenize
    train_steps: Any

    def compiled(self, *arguments: Any) -> "Programs":
        """Return the same with `train_steps` compiled for its arguments."""
        return self._replace(train_steps=self.train_steps.lower(*arguments).compile())


def programs(
    config: Config, task: Task, tx: optax.GradientTransformationExtraArgs, mesh: Mesh, state: Any
) -> Programs:
    """Return the programs of training. state: arrays or shapes, with their shardings."""
    tokenize = online.Tokenize(task.tokenize, mesh, config.tokenizer.microbatch)
    train_steps = jax.jit(
        functools.partial(step.train_steps, task=task, tx=tx, parts=config.accumulation_steps),
        donate_argnums=0,
        out_shardings=(sharding.of(state), sharding.replicated(mesh)),
    )
    return Programs(tokenize, train_steps)


def origin_of(config: Config, checkpoints: Checkpoints, start: Start) -> dict[str, Any]:
    """Return where the encoder of a new run comes from; empty if it comes from no other run."""

    def find() -> dict[str, Any]:
        begins = not start.resume and not checkpoints.steps()
        return pretrained.find(config) if config.init.model and begins else {}

    return hosts.on_first(find)


def first_state(
    config: Config,
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    checkpoints: Checkpoints,
    fingerprint: dict[str, Any],
    origin: dict[str, Any],
    start: Start,
) -> step.State:
    """Return the state to continue from or, in a new run, the one before the first step.

    origin: where the encoder of a new run comes from. DataError if the data has changed.
    """
    key = jax.random.key(config.seed)
    make_state = functools.partial(step.create_state, key, task, tx)
    abstract_state = placed_shapes(make_state, mesh, config.mesh.fsdp_splits)
    with doing("reading the checkpoint"):
        if start.resume:
            found = checkpoints.restore_from(start.resume, abstract_state)
        else:
            found = checkpoints.restore(abstract_state)
    if found is None:
        with doing("creating the parameters"):
            loaded = pretrained.load(origin, abstract_state.params, mesh) if origin else {}
            placement = sharding.of(abstract_state)
            params = devices.initialised(task.init, key, placement.params)
            begin = functools.partial(step.begin, task=task, tx=tx)
            return jax.jit(begin, out_shardings=placement)(params, loaded=loaded)
    data_identity.check(found.fingerprint, fingerprint, start.allow_data_change)
    if start.resume:
        checkpoints.set_aside_newer(int(found.state.step))
    return found.state
