"""Killed at random instants or asked to stop: the run goes on bit for bit."""

import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from supmim import config as config_lib
from supmim.workdir.files import read_results
from tests.conftest import tiny_config


def start(workdir):
    return subprocess.Popen(
        [sys.executable, "-m", "supmim", "train", f"--workdir={workdir}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def new_workdir(folder):
    """A workdir that only has its config: what `--workdir` alone continues."""
    config = tiny_config(
        log_every=1,
        save_every=3,
        batch_size=48,
        **{
            "encoder.depth": 1,
            "mim_weight": 0.0,
            "optimizer.ema_decay": 0.9,
            "data.mixup": 0.2,
            "eval.evaluators": "classification",
            "checkpoint.keep_best": 0,
        },
    )
    folder.mkdir()
    (folder / "config.json").write_text(config_lib.to_json(config))
    return folder


def end_of(workdir):
    results = read_results(workdir)
    return results, ocp.load(workdir / "checkpoints" / str(results["step"]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = new_workdir(tmp_path_factory.mktemp("undisturbed") / "run")
    child = start(workdir)
    _, err = child.communicate()
    assert child.returncode == 0, err
    return end_of(workdir)


def assert_same_end(workdir, undisturbed):
    results, state = end_of(workdir)
    assert results == undisturbed[0]
    jax.tree.map(np.testing.assert_array_equal, state, undisturbed[1])


def wait_for_steps(child, count):
    """Returns after so many lines of progress."""
    while count:
        line = child.stdout.readline()
        assert line, child.stderr.read()
        count -= "class" in line and "/31" in line


def kill(workdir, chance):
    """One start, ended within a step, a save, its digests or its clean-up."""
    child = start(workdir)
    wait_for_steps(child, chance.randint(1, 7))
    time.sleep(chance.uniform(0, 0.15))
    child.send_signal(signal.SIGKILL)
    child.communicate()


@pytest.mark.slow
def test_killed_at_random_instants(tmp_path, undisturbed):
    workdir, chance = new_workdir(tmp_path / "run"), random.Random(0)
    for _ in range(3):
        kill(workdir, chance)
    child = start(workdir)
    _, err = child.communicate()
    assert child.returncode == 0, err
    assert_same_end(workdir, undisturbed)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,  # as SIGTERM is handled, which test_hosts.py has
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_killed_then_asked_to_stop_saves_exits_75_and_goes_on(tmp_path, undisturbed, number):
    workdir = new_workdir(tmp_path / "run")
    kill(workdir, random.Random(0))
    child = start(workdir)
    wait_for_steps(child, 4)
    child.send_signal(number)
    _, err = child.communicate()
    assert child.returncode == 75, err
    assert "stopped at step" in err and "Traceback" not in err
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    assert f"stopped at step {max(steps)} of 31" in err
    child = start(workdir)
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert f"continues from step {max(steps)}" in out
    assert_same_end(workdir, undisturbed)
