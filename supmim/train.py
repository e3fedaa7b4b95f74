"""The recipe, from an empty workdir to a report; assemble.py builds the parts."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from supmim import assemble, evaluators, optimizer, sharding, step
from supmim.assemble import DEFAULT_START, Start
from supmim.config import Config
from supmim.data import calls, data_identity, images, resident, run_sources
from supmim.data.calls import Call, Groups
from supmim.data.sources import folders
from supmim.data.sources.base import Source, printable
from supmim.errors import Interrupted, counted
from supmim.report import again, page, terminal
from supmim.report.step_log import StepLog
from supmim.runtime import faults, hosts, memory, numerics, profile
from supmim.runtime.clock import Clock
from supmim.runtime.preemption import NOTHING, StopSignal
from supmim.runtime.progress import doing
from supmim.runtime.watchdog import Watchdog
from supmim.tasks.base import Task
from supmim.updates import spikes
from supmim.workdir import files, lock, model
from supmim.workdir.checkpoint import Checkpoints
from supmim.workdir.folder import Workdir
from supmim.workdir.writer import METRICS, NoWriter, Writer, open_writer, read_metrics


def train_and_evaluate(
    config: Config,
    workdir: Path,
    start: Start = DEFAULT_START,
    progress: terminal.Progress | None = None,
) -> dict[str, float]:
    """Train to the end and return the results; continue where the workdir stopped.

    progress: see Terminal. Errors: those of supmim.errors; Interrupted after a signal and a save.
    """
    faults.asked()
    held = hosts.first_holds(lock.hold(workdir))
    with StopSignal(NOTHING) as stop, held, Workdir(workdir) as folder:
        folder.check_config(config)
        finished = folder.results()
        if finished and not start.resume:
            terminal.print_results(finished, f"{workdir} holds a finished run:")
            return {name: value for name, value in finished.items() if name != "step"}
        mesh, screen = assemble.mesh_of(config), terminal.Terminal(progress)
        sharding.check_batches(config, mesh)
        with jax.set_mesh(mesh), memory.explained(config, workdir), screen:
            results = train(config, folder, start, mesh, stop, screen)
        terminal.print_results(results, f"report      {workdir / 'report.html'}")
        return results


class Run(NamedTuple):
    """Everything that the loop needs. `state` is valid until the first step, which donates it."""

    config: Config
    source: Source
    task: Task
    state: step.State
    programs: assemble.Programs
    calls: Generator[Call]
    groups: Groups
    tracer: profile.Profile
    learning_rate: optax.Schedule
    total_steps: int
    suite: evaluators.Suite
    watch: numerics.NumericsWatch
    checkpoints: Checkpoints
    fingerprint: dict[str, Any]

    def close(self) -> None:
        """Stop reading ahead, and let a save in a bucket end before the workdir is given back."""
        self.calls.close()
        self.checkpoints.finish()


def set_up(
    config: Config, folder: Workdir, start: Start, mesh: Mesh, log: Callable[[str], None]
) -> Run:
    """Open the data, create or restore the state, and record what the run is."""
    growing = folder.growing
    kept, every_save = config.checkpoint, growing.upload
    checkpoints = Checkpoints(folder.path / "checkpoints", log, kept, every_save)
    bad_records = folder.bad_records(log)
    origin = assemble.origin_of(config, checkpoints, start)
    config, source, eval_source = run_sources.load(config)
    log(f"evaluation  {counted(len(eval_source), 'image')} of {printable(eval_source.name)}")
    missing = folders.without_images(eval_source) if config.facts.has_labels else []
    if missing:
        told = f"{len(missing):,} of {counted(len(source.class_names), 'class')}"
        log(f"warning     {told} without an evaluation image: {', '.join(missing[:5])}")
    total_steps = assemble.steps_of(config, source)
    seen = images.training(source, config.data, images.second_of(config))
    task = assemble.create_task(config, seen, folder.path, mesh)
    seen = seen.reading(assemble.open_target_ids(config, source, task, mesh))

    learning_rate = optimizer.schedule(config.optimizer, total_steps)
    tx = optimizer.create(config.optimizer, learning_rate)
    fingerprint = data_identity.of(source, eval_source, config) | task.fingerprint()
    state = assemble.first_state(config, task, tx, mesh, checkpoints, fingerprint, origin, start)
    on_devices = resident.of(config, seen, mesh)
    folder.begin_run(config, origin, model.of(config, source.class_names))
    programs = assemble.programs(config, task, tx, mesh, state)

    predictions = assemble.create_predictions(config, task, source, eval_source, mesh, bad_records)
    suite = evaluators.create(config, predictions)
    about = functools.partial(numerics.before_step, config, checkpoints)
    watch = numerics.NumericsWatch(
        folder.path, about, start.bad_steps, log, spikes.count(state.opt_state)
    )
    readers = assemble.readers_of(config, source, bad_records, config.data.bad_share)
    traces = growing.folder / "profile"
    tracer = profile.Profile(start.profile, traces, log, folder.path / "profile")
    groups = Groups(
        int(state.step),
        total_steps,
        calls.slots_of(config, mesh),
        (config.log_every, config.eval_every, config.save_every),
        tracer.ends,
        timed=not config.steps_per_call,
    )
    return Run(
        config=config,
        source=source,
        task=task,
        state=state,
        programs=programs,
        calls=calls.training(seen, config, mesh, groups, readers, on_devices),
        groups=groups,
        tracer=tracer,
        learning_rate=learning_rate,
        total_steps=total_steps,
        suite=suite,
        watch=watch,
        checkpoints=checkpoints,
        fingerprint=fingerprint,
    )


def train(
    config: Config,
    folder: Workdir,
    start: Start,
    mesh: Mesh,
    stop: StopSignal,
    screen: terminal.Terminal,
) -> dict[str, float]:
    """Set up, train and conclude one run; the caller holds the lock of its workdir."""
    clock = Clock(config.step_images)
    with (
        Watchdog(config.runtime.stall_minutes, lambda: clock.kind, screen.log) as watchdog,
        contextlib.closing(set_up(config, folder, start, mesh, screen.log)) as run,
        open_writer(folder.growing, int(run.state.step), screen.log) as writer,
    ):
        config, state, programs, total_steps = run.config, run.state, run.programs, run.total_steps
        first, rng = int(state.step) + 1, jax.random.key(config.seed)
        screen.begin(config.facts.progress, total_steps, first - 1)
        screen.log(
            terminal.plan(
                config, folder.path, state.params, mesh, run.source, first - 1, total_steps
            )
        )
        folder.write_parameters(state.params)
        log = StepLog(config.log_every, total_steps, clock, run.learning_rate, writer, screen)
        clock.begin()
        watchdog.start(first - 1)
        for steps, batches in until_stopped(run.calls, stop, clock):
            faults.reached("step", steps)
            done, count = steps[-1], np.int32(len(steps))
            watchdog.step_begins(done)
            with run.tracer.call(steps):
                batches = programs.tokenize(run.task.frozen, batches, len(steps))
                if steps[0] == first:
                    with clock.spending("compile"):
                        programs = programs.compiled(state, batches, count, rng)
                    screen.compiled(clock.spent["compile"])
                    stop.begin()
                state, totals = programs.train_steps(state, batches, count, rng)
            run.tracer.done(steps, totals)
            run.groups.time(totals)
            run.watch.add(steps, batches["index"], totals)
            watchdog.step_done(done)
            log.add(steps, totals)
            results: dict[str, float] = {}
            if due(done, config.eval_every, total_steps):
                run.watch.check()
                with clock.spending("evaluate"):
                    results = evaluate(run.suite, state, writer, done)
            with clock.spending("save"):
                best = run.checkpoints.among_best(results)
                if best or due(done, config.save_every, total_steps):
                    run.checkpoints.save(done, state, results, run.fingerprint)
                run.checkpoints.poll()

        run.tracer.close(state)
        run.watch.check()
        with clock.spending("save"):
            run.checkpoints.save_now(int(state.step), state, run.fingerprint)
        saved = f"{folder.path}; continue with:\n  supmim {start.verb} --workdir={folder.path}"
        end_if_asked(stop, int(state.step), total_steps, saved)
        with clock.spending("evaluate"):
            results = evaluate(run.suite, state, writer, total_steps)
        with clock.spending("draw"):
            draw(run.suite, folder, writer, total_steps)
        writer.write_scalars(total_steps, clock.shares() | clock.seconds())
        run.checkpoints.rank(total_steps, results)
    conclude(run, folder, results)
    return results


def until_stopped(coming: Iterator[Call], stop: StopSignal, clock: Clock) -> Iterator[Call]:
    """Yield the calls, counting the time that each is waited for, until a signal comes."""
    while not stop.asked():
        with clock.spending("data_wait"):
            call = next(coming, None)
        if call is None:
            return
        yield call


def end_if_asked(stop: StopSignal, done: int, total_steps: int, saved: str) -> None:
    """Raise Interrupted if a signal came; after the last step, let a later one raise it at once.

    done: the step that is saved; saved: where, and how to continue.
    """
    stop.begin()  # the loop has not called it if no steps were left
    if done < total_steps:
        raise Interrupted(
            f"stopped at step {done} of {total_steps} and saved in {saved}", fault="R1"
        )
    told = f"stopped after the last step, {done}, before its evaluation, and saved in {saved}"
    interrupted = Interrupted(told, fault="R1")
    if stop.asked():
        raise interrupted
    stop.all_is_saved(str(interrupted))


def due(done: int, every: int, total_steps: int) -> bool:
    """Return whether something is due after this step; train() handles the last step itself."""
    return every > 0 and done % every == 0 and done < total_steps


def evaluate(
    suite: evaluators.Suite, state: step.State, writer: Writer | NoWriter, done: int
) -> dict[str, float]:
    """Evaluate the state's averaged parameters and write the results down."""
    results = suite.run(optimizer.evaluated_params(state))
    writer.write_scalars(done, results)
    writer.flush()
    return results


def draw(suite: evaluators.Suite, folder: Workdir, writer: Writer | NoWriter, done: int) -> None:
    """Draw the last results and the curves, also for TensorBoard."""
    from supmim.report import curves, figures  # Matplotlib's import takes half a second

    pictures = folder.path / "pictures"
    suite.draw(pictures)
    if hosts.is_first():
        with doing("drawing the curves"):
            curves.draw(pictures / "curves.png", read_metrics(folder.growing.file(METRICS)))
            drawn = {path.stem: figures.load(path) for path in pictures.glob("*.png")}
            writer.write_images(done, drawn)
    writer.flush()


def conclude(run: Run, folder: Workdir, results: dict[str, float]) -> None:
    """Write the report, and results.json, which marks the run as finished."""
    notes = run.suite.notes()
    folder.growing.upload()  # the report reads the metrics

    def write() -> None:
        digest = run.checkpoints.digest(run.total_steps)
        checkpoint = {"step": run.total_steps, "digest": digest}
        about = {"checkpoint": checkpoint, **notes, **model.notes(folder.path)}
        repeat = again.training(folder.path, run.config, about)
        page.write(folder.path, results, run.config, about, repeat)
        files.write_results(folder.path, {"step": run.total_steps, **results}, about)

    hosts.on_first(write)
