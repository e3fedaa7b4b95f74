"""`supmim train`: the recipe, from an empty workdir to a report."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from clu import parameter_overview

from supmim import config as config_lib
from supmim import config_options, evaluators, metrics, optimizer, pretrained, sharding, step
from supmim.checkpoint import Checkpoints
from supmim.data import images, landmarks, pipeline, sources
from supmim.data.bad_records import BadRecords
from supmim.errors import ConfigError, DataError, Interrupted
from supmim.evaluators.predictions import Predictions
from supmim.report import curves, figures, page, terminal
from supmim.runtime import devices, hosts, lock, memory, numerics, profile
from supmim.runtime.clock import Clock
from supmim.runtime.numerics import NumericsWatch
from supmim.runtime.preemption import StopSignal
from supmim.tasks import TASKS
from supmim.tokenizers import cached, online
from supmim.workdir import begin, check_config, read_origin, read_results, write_results
from supmim.writer import NoWriter, Writer, open_writer, read_metrics


def run(config: Any, flags: Any, verb: str = "train") -> None:
    """The verb. verb: what the user called, where that begins like this one."""
    profile.parse(flags.profile)
    if flags.debug:
        config = config_lib.debug(config)
    devices.prepare(flags.fake_devices, flags.deterministic or flags.debug)
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    same = ("resume", "profile", "debug", "deterministic", "allow_data_change")
    asked = {name: flags[name].value for name in same}
    hosts.agree(config, asked | {"workdir": str(Path(flags.workdir).absolute())})
    bad_steps = 1 if flags.debug else numerics.BAD_STEPS
    start = Start(flags.resume, flags.profile, bad_steps, flags.allow_data_change, verb)
    train_and_evaluate(config, Path(flags.workdir), start)


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


PLAIN = Start()
NEVER_ANOTHER = {"classes", "tokenizer"}  # what parameters mean


def train_and_evaluate(config: Any, workdir: Path, start: Start = PLAIN) -> dict[str, float]:
    """Trains to the end and returns the results; goes on where the workdir stopped.

    Errors: those of supmim.errors; Interrupted after a signal and a save.
    """
    with StopSignal() as stop, hosts.first_holds(lock.hold(workdir)):
        hosts.together(lambda: check_config(workdir, config))
        finished = hosts.together(lambda: read_results(workdir))
        if finished and not start.resume:
            terminal.print_results(finished, f"{workdir} holds a finished run:")
            return finished
        mesh = mesh_of(config)
        sharding.check_divides("batch_size", config.batch_size, mesh, config.accumulation_steps)
        with jax.set_mesh(mesh), memory.explained(config, workdir):
            return train(config, workdir, start, mesh, stop)


def train(
    config: Any, workdir: Path, start: Start, mesh: jax.sharding.Mesh, stop: StopSignal
) -> dict[str, float]:
    """Set-up, loop and end of one run, in a workdir that it holds."""
    clock = Clock(config.batch_size)
    checkpoints = Checkpoints(workdir / "checkpoints", print, **config.checkpoint)
    origin = hosts.together(lambda: origin_of(config, checkpoints, start))
    config, source, eval_source = load_sources(config)
    total_steps = steps_of(config, source)
    task = create_task(config, source, workdir, mesh)
    targets = cached.open_for(config, source, task.fingerprint())
    learning_rate = optimizer.schedule(config.optimizer, total_steps)
    tx = optimizer.create(config.optimizer, learning_rate)
    rng = jax.random.key(config.seed)

    make_state = functools.partial(step.create_state, rng, task, tx)
    abstract_state, placement = place(make_state, mesh, config.mesh.fsdp_splits)
    bad_records = BadRecords(workdir / hosts.own_file("bad_records.jsonl"), print)
    fingerprint = pipeline.fingerprint(source, eval_source, config) | task.fingerprint()
    state = restore(checkpoints, abstract_state, fingerprint, start)
    state = state or jax.jit(make_state, out_shardings=placement)(
        loaded=pretrained.load(origin, abstract_state.params, mesh) if origin else {}
    )
    first = int(state.step) + 1
    hosts.together(lambda: begin(workdir, config, origin))

    tokenize, prepare, train_step = programs(config, task, tx, mesh, placement)
    if targets is not None:
        cached.tell_agreement(config, source, targets, task.frozen, tokenize, mesh)
        if "reconstruction" not in config_options.evaluator_names(config):
            task.frozen = None  # nothing will ask for it: its memory is free
    predictions = create_predictions(config, task, source, eval_source, mesh, bad_records)
    judges = evaluators.create(config, predictions)
    watch = NumericsWatch(
        workdir / "postmortem.json",
        {"seed": config.seed, "data_seed": config.data.seed},
        start.bad_steps,
    )

    batches = pipeline.train_batches(
        images.training(source, config.data, images.second_of(config), targets),
        config.data.seed,
        config.batch_size,
        mesh,
        first - 1,
        total_steps,
        readers_of(config, source, bad_records, config.data.bad_share),
    )

    with (
        terminal.Terminal(total_steps, first - 1) as screen,
        open_writer(workdir, first - 1) as writer,
        contextlib.closing(batches),
    ):
        checkpoints.tell = bad_records.tell = screen.tell
        screen.tell(
            terminal.plan(config, workdir, state.params, mesh, len(source), first - 1, total_steps)
        )
        hosts.together(lambda: write_parameter_table(workdir, state.params))
        tracer = profile.Profile(start.profile, workdir / "profile", screen.tell)
        window: list[metrics.Metrics] = []
        clock.begin()
        for done in range(first, total_steps + 1):
            if stop.after(done - 1):
                break
            with clock.spending("data_wait"):
                batch = next(batches)
            with tracer.step(done):
                prepared = prepare(tokenize(task.frozen, batch))
                if done == first:
                    with clock.spending("compile"):
                        train_step = train_step.lower(state, prepared, rng).compile()
                    screen.compiled(clock.spent["compile"])
                state, totals = train_step(state, prepared, rng)
            tracer.done(done, totals)
            watch.add(done, batch["index"], totals)
            window.append(totals)
            if done % config.log_every == 0:
                scalars = metrics.summarize(window) | clock.summary(len(window))
                scalars["learning_rate"] = float(learning_rate(done - 1))
                writer.write_scalars(done, scalars)
                screen.show_step(done, scalars)
                window = []
            results: dict[str, float] = {}
            if due(done, config.eval_every, total_steps):
                watch.check()
                with clock.spending("evaluate"):
                    results = evaluate(judges, predictions, state, workdir, writer, done)
            with clock.spending("save"):
                if due(done, config.save_every, total_steps):
                    checkpoints.save(done, state, results, fingerprint)
                checkpoints.poll()

        tracer.close(state)
        watch.check()
        with clock.spending("save"):
            checkpoints.save_now(int(state.step), state, fingerprint)
        if int(state.step) < total_steps:
            raise Interrupted(
                f"stopped at step {int(state.step)} of {total_steps} and saved in {workdir}; "
                f"go on with:\n  supmim {start.verb} --workdir={workdir}"
            )
        with clock.spending("evaluate"):
            results = evaluate(judges, predictions, state, workdir, writer, total_steps)
        writer.write_scalars(total_steps, clock.shares())
        checkpoints.rank(total_steps, results)
    digest = hosts.together(lambda: checkpoints.digest(total_steps))
    notes = evaluators.notes(judges, predictions, total_steps, digest)
    notes |= hosts.together(lambda: read_origin(workdir))
    hosts.together(lambda: page.write(workdir, results, config_lib.to_json(config), notes))
    hosts.together(lambda: write_results(workdir, {"step": total_steps, **results}, notes))
    terminal.print_results(results, f"report      {workdir / 'report.html'}")
    return results


# Set-up, shared with the verbs that look at a finished run.


def mesh_of(config: Any) -> jax.sharding.Mesh:
    """The mesh of the config; ConfigError where the devices do not fit it or the evaluation."""
    platform = devices.check()[0].platform
    if config.encoder.attention == "cudnn" and platform != "gpu":
        raise ConfigError(
            f"config.encoder.attention=cudnn needs a GPU, JAX uses the {platform}; set it to xla"
        )
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    sharding.check_divides("eval.batch_size", config.eval.batch_size, mesh)
    return mesh


def load_sources(config: Any) -> tuple[Any, sources.Source, sources.Source]:
    """The config, settled to the classes of its training source; training and evaluation source."""
    source, eval_source = sources.load(config.data, config_options.has_labels(config))
    return config_lib.settle(config, source.class_names, source.name), source, eval_source


def settled(config: Any) -> Any:
    """The config with its number of classes, for which a source is opened if need be."""
    known = config.classifier.num_classes or not config_options.has_labels(config)
    return config if known else load_sources(config)[0]


def readers_of(
    config: Any, source: sources.Source, bad_records: BadRecords, limit: float
) -> pipeline.Readers:
    """How a source is read; a larger share of bad records than the limit is a DataError."""
    workers = pipeline.num_workers(source, config.data.workers)
    note = bad_records.of(source, limit)
    return pipeline.Readers(workers, note, lambda line: bad_records.tell(line))  # a screen, later


def create_predictions(
    config: Any,
    task: step.Task,
    source: sources.Source,
    eval_source: sources.Source,
    mesh: jax.sharding.Mesh,
    bad_records: BadRecords,
) -> Predictions:
    """What evaluators ask of both sources; bad records are missing from it and counted."""
    names = config_options.evaluator_names(config)
    tokenized = "reconstruction" in names and config_options.has_tokenizer(config)
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


def check_alike(*data: sources.Source | landmarks.Landmarks | None) -> None:
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


def steps_of(config: Any, source: sources.Source) -> int:
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
    config: Any, source: sources.Source, workdir: Path, mesh: jax.sharding.Mesh
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
    config: Any,
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


def origin_of(config: Any, checkpoints: Checkpoints, start: Start) -> dict[str, Any]:
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


def write_parameter_table(workdir: Path, params: Any) -> None:
    """parameters.txt: path, shape and PartitionSpec of every parameter."""
    table = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    (workdir / "parameters.txt").write_text(table + "\n", encoding="utf-8")


# What happens at some steps.


def due(done: int, every: int, total_steps: int) -> bool:
    """Whether it happens after this step; the last step has its own evaluation and save."""
    return every > 0 and done % every == 0 and done < total_steps


def evaluate(
    judges: list,
    predictions: Predictions,
    state: step.State,
    workdir: Path,
    writer: Writer | NoWriter,
    done: int,
) -> dict[str, float]:
    """Results of the state's evaluated parameters, written down and drawn."""
    pictures = workdir / "pictures"
    results = evaluators.run(judges, predictions, optimizer.evaluated_params(state), pictures)
    writer.write_scalars(done, results)
    if hosts.is_first():
        curves.draw(pictures / "curves.png", read_metrics(workdir / "metrics.jsonl"))
        drawn = {path.stem: figures.load(path) for path in pictures.glob("*.png")}
        writer.write_images(done, drawn)
    writer.flush()
    return results
