"""Several processes, one run: they start together, agree, stop together and write once."""

import functools
import importlib.metadata
import json
import signal
import subprocess
import sys
import time

import pytest

from supmim import config as config_lib
from supmim.errors import ConfigError
from supmim.runtime import hosts
from supmim.workdir.files import read_results
from tests import processes, test_segmentation
from tests.conftest import digits, tiny_config


def freeze(workdir):
    workdir.mkdir(exist_ok=True)
    config = tiny_config(
        save_every=10, total_epochs=20, **{"mesh.fsdp": 2, "encoder.depth": 1, "decoder.depth": 0,
        "eval.evaluators": "classification", "checkpoint.keep_best": 0},
    )  # fmt: skip
    (workdir / "config.json").write_text(config_lib.to_json(config))
    return ["supmim", "train", f"--workdir={workdir}"]


def rows(workdir):
    kept = ("step", "class_loss", "mim_loss", "grad_norm", "train_top1", "token_accuracy")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in kept} for row in lines if "class_loss" in row]


def finish(workdir):
    """Two processes, from where the run is to its end."""
    command = ["supmim", "train", f"--workdir={workdir}"]
    done = processes.finished(processes.start(command, command))
    assert [code for code, _, _ in done] == [0, 0], done
    assert "compiled" in done[0][1] and "compiled" not in done[1][1]  # the first one writes
    assert (workdir / "report.html").is_file()


def test_a_signal_to_one_stops_all_at_one_step(tmp_path):
    workdir = tmp_path / "stopped"
    command = freeze(workdir)
    running = processes.start(command, command)
    metrics = workdir / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text()):
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    done = processes.finished(running)
    assert [code for code, _, _ in done] == [75, 75], done
    assert "stopped at step" in done[0][2]


@pytest.mark.slow
def test_a_stopped_run_of_several_processes_goes_on_bit_for_bit(tmp_path):
    test_a_signal_to_one_stops_all_at_one_step(tmp_path)
    finish(tmp_path / "stopped")
    freeze(tmp_path / "whole")
    finish(tmp_path / "whole")
    expected, found = rows(tmp_path / "whole"), rows(tmp_path / "stopped")
    assert found[-1] == expected[-1]
    results = [read_results(tmp_path / name) for name in ("whole", "stopped")]
    assert results[0] == results[1]


def test_processes_that_differ_refuse_and_name_the_keys(tmp_path):
    command = freeze(tmp_path / "run")
    other = [*freeze(tmp_path / "other"), "--config.optimizer.b2=0.9", "--config.log_every=7"]
    for code, _, told in processes.finished(processes.start(command, other)):
        assert code == 2
        assert "config.optimizer.b2: process 0 has 0.999, process 1 has 0.9" in told
        assert "config.log_every: process 0 has 5, process 1 has 7" in told
        assert f"--workdir: process 0 has '{tmp_path / 'run'}'" in told
        assert "Traceback" not in told
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.slow
def test_two_processes_write_the_target_ids_of_one(tmp_path):
    freeze(tmp_path / "run")
    preset = tmp_path / "preset.py"
    preset.write_text(
        "from supmim import config as config_lib\nfrom supmim.target_ids import files\n"
        "\nfiles.FILE_BYTES = 12 * 500\n\n\n"
        f"def get_config():\n    text = open({str(tmp_path / 'run/config.json')!r}).read()\n"
        "    config = config_lib.to_dict(config_lib.from_json(text, 'x'))\n"
        "    config.update_from_flattened_dict({'tokenizer.microbatch': 64, 'total_epochs': 2})\n"
        "    return config\n"
    )
    command = ["supmim", "data", "tokens", f"--config={preset}"]
    (alone,) = processes.finished(processes.start([*command, f"--out={tmp_path / 'one'}"]))
    assert alone[0] == 0, alone
    both = [*command, f"--out={tmp_path / 'two'}"]
    done = processes.finished(processes.start(both, both))
    assert [code for code, _, _ in done] == [0, 0], done
    count = -(-len(digits("train")) // 500)  # files of one epoch, as many as half of two
    assert f"{count} files written here, {count} by other hosts" in done[0][1]
    assert "files written" not in done[1][1]  # the first one tells
    found = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.ids*")}
        for name in ("one", "two")
    ]
    assert len(found[0]) == 2 * count and found[0] == found[1]
    metadata = [(tmp_path / name / "metadata.json").read_text() for name in ("one", "two")]
    assert metadata[0] == metadata[1]


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_processes_count_every_pixel_once_whether_they_share_rows_of_a_batch(tmp_path, tensor):
    runs = []
    for name, count in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        config = test_segmentation.small_config(
            **{
                "mesh.tensor": tensor,
                "data.limit": 21,
                "optimizer.warmup_steps": 0,
                "eval.evaluators": "all",
            }
        )
        (tmp_path / name / "config.json").write_text(config_lib.to_json(config))
        command = ["supmim", "train", f"--workdir={tmp_path / name}"]
        env = {"JAX_NUM_CPU_DEVICES": str(2 // count)}
        done = processes.finished(processes.start(*[command] * count, env=env))
        assert [code for code, _, _ in done] == [0] * count, done
        runs.append(read_results(tmp_path / name))
    one, two = runs
    assert one.keys() == two.keys() and len(one) > 5
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=1e-3), name


def test_an_error_of_the_first_process_is_everyones(tmp_path):
    command = freeze(tmp_path / "run")
    from supmim.workdir import lock

    with lock.hold(tmp_path / "run"):
        done = processes.finished(processes.start(command, command))
    for code, _, told in done:
        assert code == 2 and "is in use by process" in told


def test_an_error_of_one_process_keeps_its_exit_code():
    command = ["tests.processes", "leave", ""]
    waiting, leaving = processes.start(command, command)
    _, told = leaving.communicate(timeout=50)  # it would wait a minute for the other, and abort
    waiting.kill()
    waiting.communicate()
    assert leaving.returncode == 3, told


def test_the_first_process_changes_nothing_that_another_still_reads(tmp_path):
    (tmp_path / "file").write_text("before")
    command = ["tests.processes", "read", str(tmp_path / "file")]
    done = processes.finished(processes.start(command, command), timeout=60)
    assert [code for code, _, _ in done] == [0, 0], done
    assert (tmp_path / "file").read_text() == "after"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("127.0.0.1:1", "2", "0", False), "reached from its own machine only"),
        (("localhost:1", "2", "0", False), "reached from its own machine only"),
        (("[::1]:1", "2", "0", False), "reached from its own machine only"),
        (("10.0.0.1", "2", "0", False), "is not HOST:PORT"),
        (("10.0.0.1:99999", "2", "0", False), "is not HOST:PORT"),
        (("", "", "", True), "need --coordinator"),
        (("10.0.0.1:1", "", "", False), "needs --num-processes"),
        (("10.0.0.1:1", "2", "²", False), "needs --num-processes"),
        (("10.0.0.1:1", "2", "2", False), "is not below"),
        (("", "2", "", False), "need --coordinator"),
    ],
)
def test_flags_that_cannot_work_are_refused_at_once(flags, told, monkeypatch):
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    with pytest.raises(ConfigError, match=told):
        hosts.start(*flags)


def test_the_start_is_found_in_the_environment(monkeypatch, tmp_path):
    for name in ("SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    assert hosts.detected() == ""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "x")
    assert hosts.detected() == ""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    assert hosts.detected() == "16 Slurm tasks"
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setattr(hosts.accelerator, "visible", lambda: "tpu")
    monkeypatch.delenv("JAX_PLATFORMS")
    assert hosts.detected() == "the workers of this TPU pod"  # asks the metadata server
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert hosts.detected() == ""
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert hosts.detected() == "the workers of this TPU pod"


def test_waiting_is_told_and_ends_with_exit_code_6():
    script = """
import time
from supmim.runtime import hosts
with hosts.waiting("4 processes at 10.0.0.1:9", timeout=0.5, every=0.2):
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stderr.count("waiting for 4 processes at 10.0.0.1:9") == 3
    assert "in vain" in done.stderr and "start all of them again" in done.stderr


def test_one_host_must_be_one(monkeypatch):
    monkeypatch.setattr(hosts, "gather", lambda name: [name, "other"])
    with pytest.raises(ConfigError, match="processes are on other, this"):
        hosts.check_names("this", one_host=True)
    hosts.check_names("this", one_host=False)


def test_processes_of_other_libraries_or_code_refuse_and_name_them(monkeypatch, tmp_path):
    config, told = tiny_config(), []

    def of_another(text, **changes):
        """What this process says of itself, and what one with other libraries would."""
        told.append(text)
        return [text, json.dumps(json.loads(text) | changes)]

    version = importlib.metadata.version("optax")
    monkeypatch.setattr(hosts, "gather", functools.partial(of_another, optax="0.1"))
    with pytest.raises(ConfigError, match=rf"optax: process 0 has '{version}', process 1 .*'0.1'"):
        hosts.agree(config, {"debug": False})
    for name in ("jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "numpy"):
        assert json.loads(told[0])[name] == importlib.metadata.version(name)
    monkeypatch.setattr(hosts, "gather", lambda text: [text, told[0]])
    hosts.agree(config, {"debug": False})
    (tmp_path / "supmim/runtime").mkdir(parents=True)
    (tmp_path / "supmim/losses.py").write_text("# a line that the other hosts lack")
    monkeypatch.setattr(hosts, "__file__", str(tmp_path / "supmim/runtime/hosts.py"))
    with pytest.raises(ConfigError, match="supmim's code: process 0 has"):
        hosts.agree(config, {"debug": False})
