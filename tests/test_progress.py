"""The line of progress: it moves, says what takes long, and leaves a terminal as it was."""

import io
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from supmim import metrics
from supmim.config.tasks import FACTS
from supmim.evaluators import Suite
from supmim.report.step_log import StepLog
from supmim.report.terminal import Terminal
from supmim.runtime import progress, streams
from supmim.runtime.clock import Clock
from supmim.runtime.progress import doing
from tests.conftest import one_step


@pytest.fixture
def spend(monkeypatch):
    """A clock that goes on when it is told to; no line is drawn between two ticks."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "REFRESH", 1e6)

    def spend(seconds):
        now[0] += seconds

    return spend


class Screen(io.StringIO):
    """A file that is a terminal of a width, or none, and the console of the line."""

    def __init__(self, monkeypatch, terminal=True, width=80):
        super().__init__()
        self.terminal = terminal
        monkeypatch.setenv("TERM", "xterm")
        console = Console(
            file=self, force_terminal=terminal, width=width, highlight=False, soft_wrap=True
        )
        monkeypatch.setattr(console, "show_cursor", lambda show: False)
        monkeypatch.setattr(streams, "Console", lambda *args, **options: console)

    def isatty(self):
        return self.terminal

    def take_over(self, monkeypatch):
        """Be what is printed to; pytest has streams of its own when a fixture is made."""
        monkeypatch.setattr(sys, "stdout", self)
        monkeypatch.setattr(sys, "stderr", self)

    def rows(self):
        """Return what is to be seen; the line that moves comes last."""
        rows = [""]
        for part in self.getvalue().replace("\x1b[1A\x1b[2K", "\f").replace("\x1b[2K", "\b"):
            if part == "\n":
                rows.append("")
            elif part == "\f":  # one up, which is erased
                rows[-2:] = [""]
            elif part == "\b":
                rows[-1] = ""
            elif part != "\r":
                rows[-1] += part
        assert not any("\x1b" in row for row in rows)
        return rows


@pytest.fixture
def terminal(monkeypatch):
    return Screen(monkeypatch)


@pytest.fixture
def pipe(monkeypatch):
    return Screen(monkeypatch, terminal=False)


class Training:
    """Steps of a second each, of 100 images, of which a tenth is waited for; a log every 50."""

    def __init__(self, screen, spend, total=200):
        self.screen, self.spend, self.clock = screen, spend, Clock(100)
        writer = types.SimpleNamespace(write_scalars=lambda step, scalars: None)
        self.log = StepLog(50, total, self.clock, lambda step: 0.1, writer, screen)
        screen.begin(FACTS["supmim"].progress, total, 0)
        self.clock.begin()
        self.done = 0

    def steps(self, count):
        for _ in range(count):
            self.done += 1
            with self.clock.spending("data_wait"):
                self.spend(0.1)
            logs = self.done % 50 == 0  # which waits for the step
            self.spend(0.9 if logs else 0)
            values = {"class_loss": self.done, "train_top1": 0.5, "mim_loss": 2 * self.done}
            totals = {n: metrics.scalar(jnp.float32(x)) for n, x in values.items()}
            self.log.add(range(self.done, self.done + 1), one_step(totals))
            self.spend(0 if logs else 0.9)
        self.screen.line.tick()


def test_the_line_of_a_training_moves_between_two_lines_of_its_log(terminal, spend):
    with Terminal() as screen:
        training = Training(screen, spend)
        training.steps(4)
        # The loss is that of step 3, which is finished. Three more are: one takes a second.
        assert terminal.rows()[-1] == "4/200 2% class 3.000 mim 6.000 img/s 97 wait 13% left 3m"
        training.steps(1)
        assert terminal.rows()[-1].startswith("5/200 2% class 4.000 mim 8.000 img/s 98 wait 12%")
        training.steps(45)  # the mean of 50 steps, until another one is finished
        assert terminal.rows()[-1] == (
            "50/200 25% class 25.500 mim 51.000 top1 50% img/s 100 wait 10% left 2m"
        )
        training.steps(10)
        assert terminal.rows()[-1] == (
            "60/200 30% class 59.000 mim 118.000 top1 50% img/s 99 wait 11% left 2m"
        )
        training.steps(140)
    assert terminal.rows()[-2:] == [
        "200/200 100% class 175.500 mim 351.000 top1 50% img/s 100 wait 10% left 0s", ""
    ]  # fmt: skip


def test_the_devices_are_not_waited_for(terminal, spend):
    """What they have not computed yet is not shown."""
    late = types.SimpleNamespace(is_ready=lambda: False)
    shares = jnp.asarray([0.25, 0.5, 0.0])  # of two steps, in a call with room for three
    call = {"class_loss": metrics.Last(late), "train_top1": metrics.Last(shares)}
    assert metrics.ready(call, 2, ["class_loss"]) == {}
    assert metrics.ready(call, 2, ["train_top1", "mim_loss"]) == {"train_top1": 0.5}


def test_the_time_left_is_known_after_a_minute_and_counts_down(spend):
    phase = progress.Phase("training", 100)

    def left():
        return phase.seconds_left(time.monotonic())

    spend(500)  # compiling
    assert left() is None
    phase.advance()
    phase.measure(started=1)
    spend(59)
    assert left() is None  # the first step runs still
    spend(41)
    assert left() == 100 * 99 and phase.left(time.monotonic()) == "left 2h"
    phase.advance()
    assert left() == 100 * 98
    spend(40)
    assert left() == 100 * 98 - 40
    spend(300)  # an evaluation
    assert left() == 100 * 98 - 100
    phase.advance()
    assert left() == (440 / 2) * 97
    seconds = (0.0, 99.9, 100.0, 5999.0, 6000.0, 359_999.0, 360_000.0)
    assert [progress.brief(s) for s in seconds] == ["0s", "99s", "1m", "99m", "1h", "99h", "4d"]
    assert [progress.elapsed(s) for s in (0.9, 72, 3600 + 72)] == ["0:00", "1:12", "1:01:12"]


def test_what_takes_long_is_named_with_its_time_and_goes_when_it_ends(terminal, spend):
    with Terminal() as screen:
        spend(3)
        screen.line.tick()
        assert terminal.rows() == ["setting up 0:03"]
        with doing("scanning folder:photos"):
            spend(0.4)
            screen.line.tick()
            assert terminal.rows() == ["setting up 0:03"]
            spend(72)
            screen.line.tick()
            assert terminal.rows() == ["setting up: scanning folder:photos 1:12"]
        training = Training(screen, spend)
        spend(2)
        screen.line.tick()
        assert terminal.rows() == ["0/200 0% the first step 0:02"]
        for kind, shown in (("compile", "compiling the train step"), ("save", "saving"),
                            ("data_wait", "waiting for images")):  # fmt: skip
            with training.clock.spending(kind):
                spend(12)
                screen.line.tick()
                assert terminal.rows() == [f"0/200 0% {shown} 0:12"]
        training.steps(50)
        count = doing("the training source", 1200)
        with training.clock.spending("evaluate"), doing("knn"), count as advance:
            advance(300)
            spend(20)
            advance(100)
            screen.line.tick()
            assert terminal.rows() == [
                "50/200 25% evaluating: knn: the training source 400/1200 33% 0:20 left 40s"
            ]
            advance(900)  # the last batch is padded
            screen.line.tick()
            assert "the training source 1200/1200 100%" in terminal.rows()[0]
        screen.line.tick()
        assert terminal.rows()[0].startswith("50/200 25% class")
    assert terminal.rows()[0].startswith("50/200 25% class") and terminal.rows()[1:] == [""]


def test_the_evaluator_that_runs_or_draws_is_named(terminal, spend, tmp_path):
    seen = []

    def watch(*_):
        spend(1)
        progress._open[-1].tick()
        seen.append(terminal.rows()[-1])
        return {}

    watched = types.SimpleNamespace(run=watch, draw=watch)
    predictions = types.SimpleNamespace(unreadable=dict)
    with doing("evaluating"):
        suite = Suite({"knn": watched, "maps": watched}, predictions)
        suite.run({})
        suite.draw(tmp_path)
    assert seen == ["evaluating: knn 0:01", "evaluating: maps 0:01", "evaluating: drawing knn 0:01",
                    "evaluating: drawing maps 0:01"]  # fmt: skip
    assert terminal.rows() == [""]


def test_every_line_fits_its_terminal(monkeypatch, spend):
    for width in (80, 60, 40):
        terminal = Screen(monkeypatch, width=width)
        with Terminal() as screen:
            screen.begin(FACTS["supmim"].progress, 1_250_000, 0)
            training = {"class_loss": 6.912, "mim_loss": 12.345, "train_top1": 0.87,
                        "token_accuracy": 0.27, "images_per_second": 21_830.4,
                        "data_wait": 0.15}  # fmt: skip
            for step in range(1, 3):
                screen.advance(range(1_240_000 + step, 1_240_001 + step), {}, 0, {})
                spend(1)
            screen.show_step(1_240_002, training)
            screen.line.tick()
            (row,) = terminal.rows()
            assert row.startswith("1240002/1250000 99% ") and len(row) <= width
            assert width < 80 or row.endswith("mim 12.345 top1 87% img/s 21830 wait 15% left 2h")
            assert width != 60 or row.endswith("99% class 6.912 img/s 21830 wait 15% left 2h")
            with doing(f"scanning folder:/a\x1b\n{'x' * 300}", 9_999_999):
                spend(3)
                screen.line.tick()
                (row,) = terminal.rows()
                assert len(row) <= width and row.startswith("1240002/1250000 99% ")
                assert (
                    width < 80
                    or row[20:] == "scanning folder:/a\\x1b\\n" + 15 * "x" + "... 0/9999999 0% 0:03"
                )


def test_messages_stand_above_the_line_whoever_prints_them(terminal, spend, monkeypatch):
    terminal.take_over(monkeypatch)
    with Terminal() as screen:
        training = Training(screen, spend)
        training.steps(5)
        row = terminal.rows()[-1]
        screen.log("[a message] with brackets")
        print("a print")
        print("a warning", file=sys.stderr)
        assert terminal.rows() == ["[a message] with brackets", "a print", "a warning", row]
        screen.log("x" * 300)  # wrapped by the terminal, so that a path can be copied
        assert terminal.rows()[-2:] == ["x" * 300, row]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_it_the_terminal_is_as_it_was(terminal, spend, monkeypatch, error):
    terminal.take_over(monkeypatch)
    with pytest.raises(error), doing("decoding", 10) as advance:
        spend(1)
        advance(3)
        progress._open[-1].tick()
        assert terminal.rows() == ["decoding 3/10 30% 0:01 left 2s"]
        raise error
    assert terminal.rows() == [""] and sys.stdout is terminal and sys.stderr is terminal
    with pytest.raises(error), Terminal() as screen:
        spend(1)
        screen.line.tick()
        assert terminal.rows() == ["setting up 0:01"]
        raise error
    assert terminal.rows() == [""] and sys.stdout is terminal and not progress._open


def test_the_cursor_is_never_hidden_since_a_kill_could_not_bring_it_back(monkeypatch):
    monkeypatch.setattr(streams.Stream, "isatty", lambda self: True)
    monkeypatch.setenv("TERM", "xterm")
    out = streams.Stream(io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(progress, "SHORTEST", 0.0)
    with Terminal() as screen:
        screen.line.tick()
    text = out.buffer.getvalue().decode()
    assert "setting up 0:00" in text and "\x1b[?25" not in text


def test_elsewhere_a_line_is_printed_after_a_minute_of_silence(pipe, spend):
    def told():
        screen.line.tick()
        return pipe.getvalue().splitlines()[before:]

    before = 0
    with Terminal() as screen:
        spend(59)
        assert told() == []
        spend(1)
        assert told() == ["setting up 1:00"]
        assert told() == ["setting up 1:00"]  # not twice
        spend(59)
        screen.log("a message")
        before = 2
        spend(59)
        assert told() == []
        training = Training(screen, spend)
        with training.clock.spending("compile"):
            spend(61)
            assert told() == ["0/200 0% compiling the train step 1:01"]
        training.steps(40)
        assert len(told()) == 1
        training.steps(60)
        assert told()[1:] == [
            "50/200 class 25.500 mim 51.000 top1 50% img/s 100 wait 10% left 2m",
            "100/200 class 75.500 mim 151.000 top1 50% img/s 100 wait 10% left 1m",
        ]
        before = 5
        with training.clock.spending("evaluate"), doing("knn"):
            spend(100)
            assert told() == ["100/200 50% evaluating: knn 1:40"]
        spend(60)
        assert told()[1:] == ["100/200 50% training 5:21 left 99s"]
    assert "\x1b" not in pipe.getvalue() and max(map(len, pipe.getvalue().splitlines())) <= 80


def test_a_line_is_drawn_by_itself(terminal, monkeypatch):
    monkeypatch.setattr(progress, "REFRESH", 0.01)
    monkeypatch.setattr(progress, "SHORTEST", 0.0)
    with doing("decoding"):
        for _ in range(1000):
            if "decoding 0:00" in terminal.rows()[-1]:
                break
            time.sleep(0.01)
        assert "decoding 0:00" in terminal.rows()[-1]


def test_a_callback_is_called_and_no_progress_is_printed(terminal, spend):
    calls = []
    with Terminal(lambda *told: calls.append(told)) as screen:
        training = Training(screen, spend)
        with doing("scanning folder:photos"):
            spend(100)
            screen.line.tick()
        training.steps(100)
    assert [told[:2] for told in calls] == [(50, 200), (100, 200)]
    assert calls[0][2]["class_loss"] == 25.5
    assert terminal.getvalue() == ""


def test_only_the_first_of_several_hosts_shows_its_line(monkeypatch, capsys, spend):
    for number, shown in ((0, True), (1, False)):
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        with doing("target ids", 10):
            spend(61)
            progress._open[-1].tick()
        told = capsys.readouterr().err
        assert told == ("target ids 0/10 0% 1:01\n" if shown else "")
        with Terminal() as screen:
            spend(61)
            screen.line.tick()
            screen.log("a message")
        told = capsys.readouterr().out
        assert told == ("setting up 1:01\na message\n" if shown else "")


def test_a_caller_that_is_told_of_progress_sees_no_line(capsys, spend):
    for shown in (True, False):
        with doing("evaluating", shown=shown), doing("knn", 10):
            spend(61)
            progress._open[-1].tick()
        assert bool(capsys.readouterr().err) == shown


def test_what_is_printed_into_a_file_is_not_drawn_on_the_terminal(monkeypatch, spend):
    terminal, file = Screen(monkeypatch), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", file)
    with doing("decoding", 10):
        print("a result")
        spend(1)
        progress._open[-1].tick()
        assert terminal.rows() == ["decoding 0/10 0% 0:01"]
    assert file.getvalue() == "a result\n" and "a result" not in terminal.getvalue()


def test_a_window_tells_no_speed_before_it_has_settled(spend):
    clock = Clock(10)
    clock.begin()
    with clock.spending("data_wait"):
        spend(1)
    assert clock.speed(5) == {}
    with clock.spending("evaluate"):
        spend(100)
    spend(1)
    assert clock.speed(0) == {}
    assert clock.speed(5) == {"images_per_second": 25.0, "data_wait": 0.5}
    assert np.isclose(clock.summary(5)["images_per_second"], 25.0)
