"""`supmim train`: the recipe, from an empty workdir to a report."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from supmim import assemble, evaluators, metrics, optimizer, sharding, step
from supmim import config as config_lib
from supmim.assemble import Start
from supmim.config import Config
from supmim.data import images, pipeline
from supmim.data.bad_records import BadRecords
from supmim.errors import Interrupted
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import curves, figures, page, terminal
from supmim.runtime import hosts, memory, profile
from supmim.runtime.clock import Clock
from supmim.runtime.numerics import NumericsWatch
from supmim.runtime.preemption import StopSignal
from supmim.target_ids import identity
from supmim.workdir import lock, pretrained
from supmim.workdir.checkpoint import Checkpoints
from supmim.workdir.files import begin, check_config, read_origin, read_results, write_results
from supmim.workdir.writer import NoWriter, Writer, open_writer, read_metrics

PLAIN = Start()


def train_and_evaluate(config: Config, workdir: Path, start: Start = PLAIN) -> dict[str, float]:
    """Trains to the end and returns the results; goes on where the workdir stopped.

    Errors: those of supmim.errors; Interrupted after a signal and a save.
    """
    with StopSignal() as stop, hosts.first_holds(lock.hold(workdir)):
        hosts.together(lambda: check_config(workdir, config))
        finished = hosts.together(lambda: read_results(workdir))
        if finished and not start.resume:
            terminal.print_results(finished, f"{workdir} holds a finished run:")
            return finished
        mesh = assemble.mesh_of(config)
        sharding.check_divides("batch_size", config.batch_size, mesh, config.accumulation_steps)
        with jax.set_mesh(mesh), memory.explained(config, workdir):
            return train(config, workdir, start, mesh, stop)


def train(
    config: Config, workdir: Path, start: Start, mesh: jax.sharding.Mesh, stop: StopSignal
) -> dict[str, float]:
    """Set-up, loop and end of one run, in a workdir that it holds."""
    clock = Clock(config.batch_size)
    checkpoints = Checkpoints(workdir / "checkpoints", print, config.checkpoint)
    origin = hosts.together(lambda: assemble.origin_of(config, checkpoints, start))
    config, source, eval_source = assemble.load_sources(config)
    total_steps = assemble.steps_of(config, source)
    task = assemble.create_task(config, source, workdir, mesh)
    targets = identity.open_for(config, source, task.fingerprint())
    learning_rate = optimizer.schedule(config.optimizer, total_steps)
    tx = optimizer.create(config.optimizer, learning_rate)
    rng = jax.random.key(config.seed)

    make_state = functools.partial(step.create_state, rng, task, tx)
    abstract_state, placement = assemble.place(make_state, mesh, config.mesh.fsdp_splits)
    bad_records = BadRecords(workdir / hosts.own_file("bad_records.jsonl"), print)
    fingerprint = pipeline.fingerprint(source, eval_source, config) | task.fingerprint()
    state = assemble.restore(checkpoints, abstract_state, fingerprint, start)
    state = state or jax.jit(make_state, out_shardings=placement)(
        loaded=pretrained.load(origin, abstract_state.params, mesh) if origin else {}
    )
    first = int(state.step) + 1
    hosts.together(lambda: begin(workdir, config, origin))

    tokenize, prepare, train_step = assemble.programs(config, task, tx, mesh, placement)
    if targets is not None:
        identity.tell_agreement(config, source, targets, task.frozen, tokenize, mesh)
        if "reconstruction" not in config.evaluator_names:
            task.frozen = None  # nothing will ask for it: its memory is free
    predictions = assemble.create_predictions(config, task, source, eval_source, mesh, bad_records)
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
        assemble.readers_of(config, source, bad_records, config.data.bad_share),
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
