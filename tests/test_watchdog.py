"""What a run waits for is told, and ends: late and lost processes, stalls, faults on purpose."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from supmim import config as config_lib
from supmim.errors import ConfigError
from supmim.runtime import faults, preemption, progress, watchdog
from tests import processes
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[1]
IMPATIENT = "tests.impatient"
CANARY = "a-secret-that-is-nobodys-business"


def frozen(workdir, **changes):
    """A run of many steps, and the command that starts it."""
    workdir.mkdir()
    config = tiny_config(
        **{"save_every": 4, "total_epochs": 40, "steps_per_call": 2, "encoder.depth": 1,
           "mim_weight": 0.0, "eval.evaluators": "classification", "checkpoint.keep_best": 0,
           "log_every": 2, **changes},
    )  # fmt: skip
    (workdir / "config.json").write_text(config_lib.to_json(config))
    return [IMPATIENT, "train", f"--workdir={workdir}"]


def run(command, timeout=120, python=("-m",), **environment):
    done = subprocess.run(
        [sys.executable, *python, *command],
        capture_output=True, text=True, env=os.environ | environment, timeout=timeout,
    )  # fmt: skip
    return done.returncode, done.stderr


# What is told.


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({"a": "5 step", "b": "5 step"}, ""),
        ({"a": "5 step", "b": "4 step"}, "b (step, step 4)"),
        ({"a": "5 step", "b": "5 data_wait", "c": "5 step"}, "b (data_wait, step 5)"),
        ({"a": "5 data_wait", "b": "4 step"}, "b (step, step 4)"),
        ({"a": "5 step", "b": "starting"}, ""),
        ({}, ""),
    ],
)
def test_the_late_process_is_the_one_behind_or_the_one_that_does_something_else(notes, told):
    assert watchdog.late_ones(notes) == told


def test_a_step_may_take_ten_times_its_median_and_at_least_the_minutes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    watched = watchdog.Watchdog(0.5, lambda: "", print)
    assert watched.limit("") == watched.limit("data_wait") == 30
    for step, seconds in enumerate((300.0, 1.0, 90.0, 4.0), 1):  # the first compiles
        now[0] += seconds
        watched.step_done(step)
    assert watched.limit("") == 40
    assert watched.limit("evaluate") == 20 * 40
    others = {"process 1 on b": ("3 save", 0.0)}
    monkeypatch.setattr(watchdog.LIFE, "others", lambda: others)
    assert watched.limit("") == 20 * 40  # the others wait for its save


def test_a_line_a_minute_says_what_is_waited_for(monkeypatch):
    lines = []
    monkeypatch.setattr(watchdog, "LINE", 1.5)
    with watchdog.Watchdog(0.0, lambda: "data_wait", lines.append) as watched:
        watched.start(7)
        time.sleep(5.5)
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("waiting     for images, ") and "after step 7" in lines[0]


# How a run ends.


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("stall@step:9", "the next step"),
        pytest.param("stall@record:3", "images", marks=pytest.mark.slow),
    ],
)
def test_a_stall_ends_with_stacks_and_exit_code_7_and_the_run_goes_on(tmp_path, fault, what):
    changes = {"runtime.stall_minutes": 0.05, "data.workers": 0, "data.resident": "off"}
    command = frozen(tmp_path / "run", **changes)
    code, told = run(command, SUPMIM_FAULT=fault, PYTHONUNBUFFERED="1")
    assert code == 7, told
    assert f"waited in vain for {what}, " in told
    assert "faults.py" in told and "in reached" in told  # the stack of the thread that sleeps
    assert "continues from its newest checkpoint" in told


def test_what_moves_on_the_line_of_progress_is_no_stall(monkeypatch):
    lines = []
    monkeypatch.setattr(watchdog, "LINE", 2.5)
    watched = watchdog.Watchdog(0.0, lambda: "evaluate", lines.append)
    with progress.doing("embedding", 1000) as advance, watched:
        for _ in range(12):
            time.sleep(0.5)
            advance(1)
        assert not lines
        time.sleep(5.0)
    assert lines and lines[0].startswith("waiting     for the evaluation, ")


@pytest.mark.slow
def test_a_stall_in_the_set_up_ends_with_7(tmp_path):
    changes = {"runtime.stall_minutes": 0.02, "mim_weight": 1.0}  # it fits a tokenizer
    command = frozen(tmp_path / "run", **changes)
    code, told = run(command, SUPMIM_FAULT="stall@record:3", PYTHONUNBUFFERED="1")
    assert code == 7 and "waited in vain for the set-up, " in told, told


@pytest.mark.slow
def test_a_stall_in_an_evaluation_ends_with_7(tmp_path):
    command = frozen(tmp_path / "run", total_epochs=1)
    assert run(command)[0] == 0
    path = tmp_path / "run/config.json"
    path.write_text(path.read_text().replace('"stall_minutes": 10.0', '"stall_minutes": 0.02'))
    evaluation = [IMPATIENT, "evaluate", command[-1]]
    code, told = run(evaluation, SUPMIM_FAULT="stall@record:3", PYTHONUNBUFFERED="1")
    assert code == 7 and "waited in vain for the evaluation, " in told, told


def steps_logged(workdir):
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line)["step"] for line in text.splitlines()]


def two_running(tmp_path):
    """Two processes that have begun to train."""
    command = frozen(tmp_path / "run", total_epochs=2000)
    running = processes.start(command, command)
    while not steps_logged(tmp_path / "run"):
        assert all(process.poll() is None for process in running), processes.finished(running)
        time.sleep(0.1)
    return running


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_named_and_the_other_ends(tmp_path, number):
    running = two_running(tmp_path)
    running[number].kill()
    code, _, told = processes.finished(running, timeout=60)[1 - number]
    assert code == 6, told
    assert f"process {number}" in told and "Start all processes again" in told
    assert "Traceback" not in told


def test_a_process_that_stands_still_is_named(tmp_path):
    running = two_running(tmp_path)
    running[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    code = running[0].wait(timeout=60)
    running[1].kill()
    told = processes.finished(running)[0][2]
    assert code == 6 and "process 1 on " in told and "no sign of life" in told, told
    assert time.monotonic() - began < 40


def test_a_process_that_sleeps_is_named_as_late_and_all_end_with_7(tmp_path):
    command = frozen(tmp_path / "run", **{"runtime.stall_minutes": 0.1, "total_epochs": 2000})
    running = processes.start(command, command, env={"SUPMIM_FAULT": "stall@step:21/1"})
    done = processes.finished(running, timeout=120)
    assert [code for code, _, _ in done] == [7, 7], done
    assert "late: process 1 on " in done[0][2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [("stall@step:21/2", 7, "late: process 2 on "), ("kill@step:21/2", 6, "process 2 on ")],
)
def test_one_of_four_is_named_by_all_others(tmp_path, fault, code, told):
    changes = {"runtime.stall_minutes": 0.4, "total_epochs": 2000}
    command = frozen(tmp_path / "run", **changes)
    running = processes.start(*[command] * 4, env={"SUPMIM_FAULT": fault})
    done = processes.finished(running, timeout=300)
    others = [one for number, one in enumerate(done) if number != 2]
    assert [one[0] for one in others] == [code] * 3, done
    assert all(told in one[2] for one in others), done


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_of_two_that_compile_ends_both(tmp_path, number):
    """JAX's service, which passes signals on, would wait for a step that both begin."""
    changes = {"encoder.depth": 6, "total_epochs": 2000}
    command = frozen(tmp_path / "run", **changes)
    fresh = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"), "PYTHONUNBUFFERED": "1"}
    running = processes.start(command, command, env=fresh)
    while not (line := running[0].stdout.readline()).startswith("workdir"):
        assert line, processes.finished(running)
    running[number].send_signal(signal.SIGTERM)
    began = time.monotonic()
    done = processes.finished(running, timeout=60)
    assert [code for code, _, _ in done] == [75, 75], done
    assert time.monotonic() - began < 30
    assert "[U2] stopped before the first step of this start" in done[number][2]
    assert f"process {number} on " in done[1 - number][2] and "exit code 75" in done[1 - number][2]
    assert not steps_logged(tmp_path / "run")


# Faults on purpose.


@pytest.fixture(scope="module")
def full_once(tmp_path_factory):
    """A run whose disk was full at one save, with a secret in its environment."""
    workdir = tmp_path_factory.mktemp("full") / "run"
    secrets = {"AWS_SECRET_ACCESS_KEY": CANARY, "HF_TOKEN": CANARY, "WHATEVER": CANARY}
    return workdir, *run(frozen(workdir, total_epochs=1), SUPMIM_FAULT="full@save:8", **secrets)


def test_a_full_disk_at_one_save_costs_that_save_alone(full_once):
    workdir, code, told = full_once
    assert code == 0, told
    assert "full at save 8" in told
    assert "8" not in {path.name for path in (workdir / "checkpoints").iterdir()}


READ_ONLY = """
import errno, os, sys
from supmim.__main__ import main

mkdir = os.mkdir

def refusing(path, *rest, **named):
    if "orbax-checkpoint-tmp" in str(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    return mkdir(path, *rest, **named)

os.mkdir = refusing
main()
"""


def test_a_folder_that_has_become_read_only_ends_the_run_at_once_with_4(tmp_path):
    """Orbax's threads would keep the process for minutes after its last word."""
    command = frozen(tmp_path / "run")
    began = time.monotonic()
    code, told = run(["-c", READ_ONLY, *command[1:]], timeout=100, python=())
    assert code == 4 and "[R22] 3 saves in a row failed" in told, told
    assert "Read-only file system" in told and told.count("\n") < 6, told
    assert time.monotonic() - began < 90


def test_nothing_of_the_environment_reaches_a_file(full_once):
    workdir, _, told = full_once
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert CANARY not in told
    secret = re.compile(r"(^|[._])(secret|token|password|passwd|key|credentials?)s?($|_)")
    assert not [path for path in config_lib.OPTIONS if secret.search(path)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["term", "hup"])
def test_a_signal_at_a_step_saves_and_the_same_command_goes_on(tmp_path, kind):
    command = frozen(tmp_path / "run", total_epochs=1)
    code, told = run(command, SUPMIM_FAULT=f"{kind}@step:5")
    assert code == 75 and f"SIG{kind.upper()}: finishing the step and saving" in told, told
    assert "stopped at step" in told
    assert run(command)[0] == 0


@pytest.mark.parametrize("text", ["stall", "stall@step", "sleep@step:1", "stall@home:1"])
def test_a_fault_that_is_none_is_told(monkeypatch, text):
    monkeypatch.setenv(faults.VARIABLE, text)
    faults.asked.cache_clear()
    with pytest.raises(ConfigError, match=r"is not KIND@PLACE:NUMBER, with kill, .* at step"):
        faults.asked()
    faults.asked.cache_clear()


# Signals before the first step.

BEFORE = """
import sys, time
from supmim.errors import Interrupted
from supmim.runtime.preemption import NOTHING, StopSignal
try:
    with StopSignal(NOTHING) as stop:
        print("ready", flush=True)
        if sys.argv[1] == "python":
            time.sleep(60)
        if sys.argv[1] == "swallowed":
            for _ in range(600):
                try:
                    time.sleep(0.1)
                except Interrupted:
                    pass
        import jax, jax.numpy as jnp
        jax.block_until_ready(jax.jit(lambda x: jax.lax.while_loop(
            lambda y: y < 2.0, lambda y: y * 0.5, x))(jnp.ones(())))
except Interrupted as error:
    print(f"supmim: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("where", ["python", "swallowed", "xla"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_the_run_in_seconds(where, number):
    child = subprocess.Popen(
        [sys.executable, "-c", BEFORE, where],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    time.sleep(2 if where == "xla" else 0.2)
    began = time.monotonic()
    child.send_signal(number)
    try:
        _, told = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 75 and time.monotonic() - began < 5, told
    assert told.count("before the first step of this start: nothing is lost") == 1, told
    assert where == "python" or f"{number.name}: ending" in told


def test_a_terminal_that_closes_sends_sighup_twice_and_the_run_still_saves():
    code = """
import os, signal, time
from supmim.runtime.preemption import StopSignal
with StopSignal() as stop:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)
    print(stop.asked())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_caller_that_catches_an_interruption_lives_on():
    code = """
import os, signal, time
from supmim.errors import Interrupted
from supmim.runtime import preemption
preemption.GRACE = 0.5
try:
    with preemption.StopSignal(preemption.NOTHING):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
except Interrupted:
    time.sleep(1.5)
    print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_nohup_keeps_a_run_alive():
    code = """
import os, signal, time
from supmim.runtime.preemption import StopSignal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.5)
    print(stop.asked())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize(
    ("number", "wait"), [(signal.SIGINT, 0.1), (signal.SIGTERM, 0.4), (signal.SIGHUP, 0.8)]
)
def test_a_signal_while_modules_are_imported_is_no_traceback(tmp_path, number, wait):
    command = ["supmim", "train", "--config=digits", f"--workdir={tmp_path / 'run'}"]
    child = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "supmim.runtime.start_up" not in child.stderr.readline():
        pass  # before it, Python itself takes signals
    time.sleep(wait)
    child.send_signal(number)
    try:
        _, told = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 75, told[-2000:]
    assert f"supmim: {number.name}: end" in told and "Traceback" not in told


@pytest.mark.parametrize("in_thread", [False, True])
def test_one_of_several_gives_jax_its_sigterm_back(monkeypatch, in_thread):
    """Whether it took it or, in another thread, could not."""
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
    jaxs = ctypes.cast(handler, ctypes.c_void_p).value
    previous = preemption.handler_of_sigterm(jaxs)

    def work():
        with preemption.StopSignal(preemption.NOTHING):
            pass

    try:
        if in_thread:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        else:
            work()
    finally:
        found = preemption.handler_of_sigterm(previous)
    assert found == jaxs
