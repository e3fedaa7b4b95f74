"""`supmim train`: the recipe, from an empty workdir to a report."""

import functools
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from supmim import config as config_lib
from supmim import evaluators, metrics, optimizer, sharding, step
from supmim.checkpoint import Checkpoints, write_json
from supmim.data import pipeline, sources
from supmim.errors import CheckpointError, ConfigError, DataError, Interrupted, NumericsError
from supmim.evaluators.predictions import Predictions
from supmim.report import curves, page
from supmim.runtime import devices, lock, preemption
from supmim.tasks import TASKS
from supmim.writer import Terminal, Writer, read_metrics

BAD_STEPS = 5  # in a row, after which a run whose gradients are not finite stops


def run(config: Any, flags: Any) -> int:
    """The verb."""
    train_and_evaluate(config, Path(flags.workdir), flags.resume)
    return 0


def train_and_evaluate(config: Any, workdir: Path, resume: str = "") -> dict[str, float]:
    """Trains to the end and returns the results; goes on where the workdir stopped.

    Errors: those of supmim.errors; Interrupted after a signal and a save.
    """
    with preemption.StopSignal() as stop, lock.hold(workdir):
        write_config(config, workdir)
        if (finished := finished_results(workdir)) and not resume:
            print_results(finished, f"{workdir} holds a finished run")
            return finished
        devices.check()
        mesh = sharding.make_mesh(**config.mesh)
        sharding.check_divides("batch_size", config.batch_size, mesh)
        sharding.check_divides("eval.batch_size", config.eval.batch_size, mesh)
        with jax.set_mesh(mesh):
            return _train(config, workdir, resume, mesh, stop)


def _train(
    config: Any, workdir: Path, resume: str, mesh: jax.sharding.Mesh, stop: preemption.StopSignal
) -> dict[str, float]:
    source, eval_source = load_sources(config)
    task = TASKS[config.task](config, source, workdir)
    total_steps = steps_of(config, len(source))
    learning_rate = optimizer.schedule(**schedule_of(config), total_steps=total_steps)
    tx = optimizer.create(config.optimizer, learning_rate)
    rng = jax.random.key(config.seed)

    make_state = functools.partial(step.create_state, rng, task, tx)
    abstract_state, placement = abstract(make_state, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", print, **config.checkpoint)
    fingerprint = pipeline.fingerprint(source, config)
    restored = restore(checkpoints, abstract_state, fingerprint, resume)
    state = restored or jax.jit(make_state, out_shardings=placement)()
    start = int(state.step)

    prepare = jax.jit(task.prepare, out_shardings=sharding.batch_sharding(mesh))
    train_step = jax.jit(
        functools.partial(step.train_step, task=task, tx=tx),
        donate_argnums=0,
        out_shardings=(placement, None),
    )
    batches = pipeline.train_batches(
        source, config.data, config.batch_size, mesh, start, total_steps
    )
    predictions = Predictions(
        task, {"train": source, "eval": eval_source}, config.eval.batch_size, mesh
    )
    judges = evaluators.create(config, predictions)

    writer, clock = Writer(workdir, start), Clock(config.batch_size)
    watch = NumericsWatch(workdir, config)
    with Terminal(total_steps, start) as terminal:
        checkpoints.tell = terminal.tell
        announce(terminal, config, workdir, state, mesh, len(source), start, total_steps)
        window: list[metrics.Metrics] = []
        for done in range(start + 1, total_steps + 1):
            with clock.waiting():
                batch = next(batches)
            prepared = prepare(task.frozen, batch)
            if done == start + 1:
                train_step = compiled(train_step, (state, prepared, rng), clock, terminal)
            state, totals = train_step(state, prepared, rng)
            watch.add(done, batch, totals)
            window.append(totals)
            if stop.requested:
                break
            if done % config.log_every == 0:
                scalars = metrics.summarize(window) | clock.summary(len(window))
                scalars["learning_rate"] = float(learning_rate(done - 1))
                writer.write_scalars(done, scalars)
                terminal.show_step(done, scalars)
                window = []
            results = {}
            if due(done, config.eval_every, total_steps):
                with clock.paused():
                    results = evaluate(judges, state, workdir, writer, done)
            if due(done, config.save_every, total_steps):
                with clock.paused():
                    checkpoints.save(done, state, results, fingerprint)
            checkpoints.poll()

        watch.flush()
        if stop.requested:
            if int(state.step) not in checkpoints.steps():
                checkpoints.save(int(state.step), state, {}, fingerprint)
            checkpoints.wait()
            raise Interrupted(
                f"stopped at step {int(state.step)} of {total_steps} and saved in {workdir}; go on "
                f"with: supmim train --workdir={workdir}"
            )
        results = evaluate(judges, state, workdir, writer, total_steps)
        checkpoints.save(total_steps, state, results, fingerprint)
        checkpoints.wait()
    writer.close()
    finish(config, workdir, results, total_steps)
    return results


# Set-up.


def write_config(config: Any, workdir: Path) -> None:
    """Freezes the config in the workdir; ConfigError if a run of another config is there."""
    path = workdir / "config.json"
    if path.is_file():
        stored = config_lib.from_json(path.read_text(encoding="utf-8"), str(path))
        if lines := config_lib.differences(stored, config):
            raise ConfigError(
                f"{workdir} holds a run of another config:\n  " + "\n  ".join(lines) + "\n"
                "Choose another --workdir, or leave out --config to continue that run"
            )
    write_json(path, json.loads(config_lib.to_json(config)))


def load_sources(config: Any) -> tuple[sources.Source, sources.Source]:
    """Training and evaluation source."""
    num_classes = config.classifier.num_classes
    return (
        sources.load(config.data.train, config.data, num_classes),
        sources.load(config.data.eval, config.data, num_classes),
    )


def steps_of(config: Any, num_images: int) -> int:
    """Length of the training in steps; ConfigError if the warm-up does not fit."""
    total_steps = config.total_epochs * num_images // config.batch_size
    if total_steps <= config.optimizer.warmup_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} leaves nothing of "
            f"{total_steps} steps ({config.total_epochs} epochs of {num_images} images); set it "
            f"to {total_steps // 10} or so"
        )
    return total_steps


def schedule_of(config: Any) -> dict[str, float]:
    """The keywords of optimizer.schedule that the config fixes."""
    return {name: config.optimizer[name] for name in ("learning_rate", "warmup_steps")}


def abstract(make_state: Any, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Shapes of the state with their placement, and the placement alone."""
    shapes = jax.eval_shape(make_state)
    placement = sharding.state_sharding(shapes, mesh)
    abstract_state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes, placement,
    )  # fmt: skip
    return abstract_state, placement


def restore(checkpoints: Checkpoints, abstract_state: Any, fingerprint: dict, resume: str) -> Any:
    """The state to go on from, or nothing. DataError if the data is not what it was."""
    if resume:
        restored = checkpoints.restore_from(resume, abstract_state)
    else:
        restored = checkpoints.restore(abstract_state)
    if restored is None:
        return None
    changed = [
        f"  {name}: was {restored.fingerprint.get(name)}, is {value}"
        for name, value in fingerprint.items()
        if restored.fingerprint.get(name) != value
    ]
    if changed:
        raise DataError(
            "the data is not what this run was trained on:\n" + "\n".join(changed) + "\n"
            "Restore the data, or start again in a new --workdir"
        )
    return restored.state


def announce(terminal, config, workdir, state, mesh, num_images, start, total_steps) -> None:
    """What is about to happen, before anything is compiled; the table goes to parameters.txt."""
    table = parameter_overview.get_parameter_overview(state.params, include_stats="sharding")
    (workdir / "parameters.txt").write_text(table + "\n", encoding="utf-8")
    parts = ", ".join(
        f"{name} {parameter_overview.count_parameters(part):,}"
        for name, part in sorted(state.params.items(), reverse=True)
    )
    device = mesh.devices.flat[0]
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    began = f"goes on from step {start}" if start else "starts"
    terminal.tell(
        f"devices     {mesh.devices.size} x {device.device_kind} ({axes})\n"
        f"parameters  {parts}\n"
        f"images      {num_images:,} of {config.data.train}, {config.batch_size} a step\n"
        f"steps       {total_steps:,} ({config.total_epochs} epochs); {began}\n"
        f"workdir     {workdir}"
    )


# The loop's helpers.


def due(done: int, every: int, total_steps: int) -> bool:
    """Whether something that happens every so many steps happens now; the end has its own line."""
    return every > 0 and done % every == 0 and done < total_steps


def compiled(train_step: Any, arguments: tuple, clock: "Clock", terminal: Terminal) -> Any:
    """The compiled step; its time is told and counted apart."""
    began = time.monotonic()
    program = train_step.lower(*arguments).compile()
    clock.compile_seconds = time.monotonic() - began
    clock.reset()
    terminal.tell(f"compiled    the train step, in {clock.compile_seconds:.1f} s")
    return program


def evaluate(judges: list, state: step.State, workdir: Path, writer: Writer, done: int) -> dict:
    """Results of the state's evaluated parameters, written down and drawn."""
    params = optimizer.evaluated_params(state)
    results = evaluators.run(judges, params, workdir / "pictures")
    writer.write_scalars(done, results)
    writer.flush()
    curves.draw(workdir / "pictures" / "curves.png", read_metrics(workdir / "metrics.jsonl"))
    return results


class Clock:
    """Speed of the loop: images per second and the share of time it waited for data."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.compile_seconds = batch_size, 0.0
        self.reset()

    def reset(self) -> None:
        """Starts a window."""
        self._began, self._waited = time.monotonic(), 0.0

    def waiting(self) -> "Span":
        """Time within counts as waiting for data."""
        return Span(lambda seconds: setattr(self, "_waited", self._waited + seconds))

    def paused(self) -> "Span":
        """Time within does not count at all."""
        return Span(lambda seconds: setattr(self, "_began", self._began + seconds))

    def summary(self, steps: int) -> dict[str, float]:
        """Metrics of the window of so many steps, which ends here."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        scalars = {
            "images_per_second": steps * self.batch_size / seconds,
            "data_wait": min(self._waited / seconds, 1.0),
            "compile_seconds": self.compile_seconds,
        }
        self.reset()
        return scalars


class Span:
    """Measures the time spent within `with` and hands it on."""

    def __init__(self, add: Any) -> None:
        self._add = add

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._add(time.monotonic() - self._began)


class NumericsWatch:
    """Stops a run whose gradients stay not finite; looks one step late, so that none waits."""

    def __init__(self, workdir: Path, config: Any) -> None:
        self.path, self.config = workdir / "postmortem.json", config
        self._recent: deque = deque(maxlen=BAD_STEPS + 1)

    def add(self, done: int, batch: dict, totals: metrics.Metrics) -> None:
        """Takes note of a step and checks the one before it."""
        self.flush()
        self._recent.append((done, batch["index"], totals))

    def flush(self) -> None:
        """Checks the last step. NumericsError, after a post-mortem, if it was one bad too many."""
        if not self._recent:
            return
        if float(self._recent[-1][2]["skipped_steps"].total) < BAD_STEPS:
            return
        steps = [
            {"step": done, "index": np.asarray(index).tolist(), **summary_of(totals)}
            for done, index, totals in list(self._recent)[-BAD_STEPS:]
        ]
        seeds = {"seed": self.config.seed, "data_seed": self.config.data.seed}
        write_json(self.path, {**seeds, "steps": steps})
        last = steps[-1]
        terms = [name for name in ("class_loss", "mim_loss") if last.get(name) == "nan"]
        raise NumericsError(
            f"the gradient was not finite in {BAD_STEPS} steps in a row, the last is step "
            f"{last['step']}; not finite: {', '.join(terms) or 'the gradient alone'}. None of them "
            f"changed a parameter. Batches and norms are in {self.path}; a lower "
            "config.optimizer.learning_rate, a longer warm-up or clipping may help"
        )


def summary_of(totals: metrics.Metrics) -> dict[str, float | str]:
    """The metrics of one step; JSON has no NaN, so what is not finite becomes text."""
    values = metrics.summarize([totals])
    return {k: v if np.isfinite(v) else "nan" for k, v in values.items()}


# The end.


def finish(config: Any, workdir: Path, results: dict[str, float], total_steps: int) -> None:
    """Writes results.json and report.html, and prints the results."""
    write_json(workdir / "results.json", {"step": total_steps, **results})
    page.write(
        workdir / "report.html", f"supmim: {workdir.name}", results, config_lib.to_json(config),
        workdir / "pictures",
    )  # fmt: skip
    print_results(results, f"report      {workdir / 'report.html'}")


def finished_results(workdir: Path) -> dict[str, float]:
    """The results of a run that came to its end, else nothing."""
    path = workdir / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); delete it to evaluate again"
        ) from error


def print_results(results: dict[str, float], headline: str) -> None:
    """The result table, for people."""
    lines = [f"  {name:<36}{text:>10}" for name, text in page.formatted(results).items()]
    print("\n".join([headline, *lines]))
