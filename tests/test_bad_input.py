"""Rows I1, I6, I7 and N5: damaged images, dying readers, small sets, wrong labels."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from supmim import cli, sharding
from supmim import config as config_lib
from supmim.data import images, pipeline, stream
from supmim.data.bad_records import BadRecords, excess
from supmim.data.sources import base, folders
from supmim.errors import DataError, DeviceError
from supmim.workdir.files import read_json_lines, read_results
from tests.conftest import plain_readers, tiny_config
from tests.files import Deadly, Files
from tests.pictures import damaged, encoded, photo

pytestmark = pytest.mark.usefixtures("all_undrawn")

DATA = tiny_config(**{"data.image_size": 8, "data.channels": 3, "data.crop": "inception"}).data
DAMAGED = damaged()


def training(source, batch_size=5):
    return stream.Training(images.training(source, DATA), 0, batch_size, np.arange(batch_size))


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_image_is_replaced_by_the_next_that_can_be_read(kind):
    whole, holed = training(Files()), training(Files(at3=DAMAGED[kind]))
    replaced = 0
    for step in range(12):
        expected, (batch, met) = whole(step)[0], holed(step)
        rows = expected["index"] == 3
        assert [bad.index for bad in met] == [3] * rows.sum()
        replaced += rows.sum()
        np.testing.assert_array_equal(batch["index"], np.where(rows, 4, expected["index"]))
        for name in ("image", "label", "epoch", "valid"):
            np.testing.assert_array_equal(batch[name][~rows], expected[name][~rows])
        own = whole.images.take([4] * rows.sum(), expected["epoch"][rows])[0]
        np.testing.assert_array_equal(batch["image"][rows], own["image"])
        np.testing.assert_array_equal(batch["label"][rows], own["label"])
    assert replaced == 3  # once an epoch


def test_the_replacement_wraps_and_passes_over_other_bad_ones():
    holed = training(Files(at18=b"", at19=b"", at0=b""))
    seen = np.concatenate([holed(step)[0]["index"] for step in range(4)])
    assert sorted(seen) == sorted([*range(1, 18), 1, 1, 1])
    with pytest.raises(DataError, match="none of its 20 images can be read"):
        training(Files(**{f"at{i}": b"" for i in range(20)}))(0)


def test_the_same_batches_come_from_processes_and_after_a_start_in_the_middle():
    source = Files(at3=DAMAGED["truncated"], at7=b"")
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])

    def read(start, workers):
        met = []
        batches = pipeline.train_batches(
            images.training(source, DATA), 0, 5, mesh, start, 8, plain_readers(met.extend, workers)
        )
        return [jax.tree.map(np.asarray, batch) for batch in batches], met

    plain, met = read(0, 0)
    for start, workers in ((3, 0), (5, 1)):
        others, met_there = read(start, workers)
        jax.tree.map(np.testing.assert_array_equal, plain[start:], others)
        assert set(met_there) <= set(met)
    assert {bad.index for bad in met} == {3, 7} and met[0].why in ("empty file", met[0].why)


def test_bad_records_are_listed_once_and_too_many_end_the_run(tmp_path):
    path, told = tmp_path / "bad_records.jsonl", []
    bad = [images.Bad(i, f"file\n{i}", "damaged JPEG: x") for i in range(3)]
    note = BadRecords(path, told.append).of(Files(), 0.1)
    note(bad[:1])
    note(bad[:2])
    with path.open("a") as file:
        file.write('[]\n{"source": "fi')  # a kill cut the line
    again = BadRecords(path, told.append).of(Files(), 0.1)  # a resumed run knows them,
    again([])  # and takes those for mended that it does not meet
    again(bad[:2])
    lines = read_json_lines(path)
    assert [line["index"] for line in lines] == [0, 1] and len(told) == 2
    assert lines[0] == {"source": "files", "index": 0, "name": "file\n0", "why": "damaged JPEG: x"}
    assert told[0] == "unreadable  file\\n0: damaged JPEG: x"
    message = "3 of 20 images of files can't be read, more than the 2 that --config.data.bad_sh"
    with pytest.raises(DataError, match=message):
        again(bad)
    BadRecords(path, told.append).of(Files(), 1.0)(bad)  # an evaluation goes on


@pytest.mark.parametrize(
    ("share", "length", "most"),
    [(0.001, 1, 1), (0.001, 200, 1), (0.001, 1000, 1), (0.001, 1001, 2), (0.001, 3000, 3),
     (0.0, 200, 0), (0.07, 100, 7), (1.0, 20, 20)],
)  # fmt: skip
def test_the_share_of_bad_records_is_rounded_up_so_that_one_is_never_too_many(share, length, most):
    assert not excess(most, length, share, "image", "x")
    assert f"more than the {most} that" in excess(most + 1, length, share, "image", "x")


def test_a_list_of_bad_records_that_a_kill_cut_short_is_gone_on_with(tmp_path):
    path, bad = tmp_path / "bad_records.jsonl", [images.Bad(i, f"{i}", "x") for i in range(3)]
    BadRecords(path, print).of(Files(), 1.0)(bad[:2])
    path.write_bytes(path.read_bytes()[:-9])
    BadRecords(path, print).of(Files(), 1.0)(bad)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_evaluation_leaves_bad_images_out_in_their_place():
    source = Files(at3=DAMAGED["middle"], at19=b"")
    evaluation = stream.Evaluation(images.evaluation(source, DATA), 8, np.arange(8))
    batches, met = zip(*(evaluation(step) for step in range(3)), strict=True)
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert np.flatnonzero(valid == 0).tolist() == [3, 19, 20, 21, 22, 23]
    assert [bad.index for part in met for bad in part] == [3, 19]


@pytest.mark.parametrize(
    ("label", "told"),
    [(2, "file 4: label 2 is outside 0..1"), (-1, "file 4: label -1 is"), (0.5, "not an integer")],
)
def test_a_label_that_names_no_class_ends_the_run_with_its_file(label, told):
    """N5, from a thread and from a reader process."""
    source = Files(labels=[0, 1, 0, 1, label] * 4)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    for workers in (0, 1) if label == 2 else (0,):
        with pytest.raises(DataError, match=told):
            next(pipeline.train_batches(
                images.training(source, DATA), 0, 20, mesh, 0, 1, plain_readers(workers=workers)
            ))  # fmt: skip


def test_a_killed_reader_is_named_and_restarted_once(tmp_path):
    flag, told = tmp_path / "once", []
    parts = {"images": images.training(Files(), DATA), "seed": 0, "batch_size": 5,
             "rows": np.arange(5)}  # fmt: skip
    expected = [stream.Training(**parts)(step)[0] for step in range(6)]
    flag.touch()
    readers = pipeline.Readers(2, lambda met: None, told.append)
    batches = list(pipeline.read_steps(Deadly(flag, **parts), 0, 6, readers))
    jax.tree.map(np.testing.assert_array_equal, batches, expected)
    assert len(told) == 1 and "most likely because memory ran out" in told[0]
    assert "--config.data.workers=1" in told[0]
    flag.with_name("always").touch()
    alone = pipeline.Readers(1, lambda met: None, told.append)
    with pytest.raises(DeviceError, match="exit code -9.*already restarted once"):
        list(pipeline.read_steps(Deadly(flag, **parts), 0, 6, alone))
    assert len(told) == 2


READER = """
import os, time
from supmim.data import pipeline
child = os.fork()
if not child:
    pipeline._init_reader()
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_reader_outlives_a_sigterm_but_not_its_run():
    """Slurm signals every process of a job; the readers are needed until the run has saved."""
    command = [sys.executable, "-W", "ignore", "-c", READER]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with run.stdout as out:
        reader = int(out.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(reader, number)
    time.sleep(1.5)
    assert "sleeping" in status_of(reader)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 20
    while "zombie" not in status_of(reader):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def status_of(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            return file.read()
    except OSError:
        return "zombie"


def test_readers_are_as_many_as_processors_and_memory_allow(monkeypatch):
    source = Files()
    monkeypatch.setattr(pipeline.cgroup, "usable_cores", lambda: 12)
    monkeypatch.setattr(pipeline.host_memory, "available", lambda: 100.0)
    assert pipeline.num_workers(source, -1) == 12
    monkeypatch.setattr(pipeline.host_memory, "available", lambda: 8.0)
    assert pipeline.num_workers(source, -1) == 4
    assert pipeline.num_workers(source, 9) == 9 and pipeline.num_workers(source, 0) == 0
    held = base.InMemory("x", np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int), "ab")
    assert pipeline.num_workers(held, -1) == 0


def folder_of(root, count=60, bad=()):
    for index in range(count):
        path = root / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = photo(16, 16) // (1 + index % 2) + index
        path.write_bytes(b"" if index in bad else encoded(pixels, "PNG"))
    return root


SMALL = ["--config.data.image_size=8", "--config.batch_size=16", "--config.eval.batch_size=16",
         "--config.total_epochs=2", "--config.optimizer.warmup_steps=2", "--config.log_every=2",
         "--config.data.workers=0", "--config.data.holdout=0.2", "--config.encoder.depth=1",
         "--config.encoder.width=16", "--config.encoder.mlp_dim=16", "--config.decoder.width=16",
         "--config.tokenizer.fit_steps=2", "--config.save_every=0"]  # fmt: skip


def run(folder, workdir, *more):
    return cli.run(["train", "--config=digits", f"--config.data.train=folder:{folder}",
                    f"--workdir={workdir}", *SMALL, *more])  # fmt: skip


def test_a_folder_trains_with_nothing_else_and_bad_images_are_noted(tmp_path, capsys):
    folder = folder_of(tmp_path / "pictures", bad=range(0, 60, 12))
    assert run(folder, tmp_path / "strict") == 3
    assert "more than the 1 that --config.data.bad_share=0.001 allows" in capsys.readouterr().err
    workdir = tmp_path / "run"
    more = ["--config.data.bad_share=0.2", "--config.eval.evaluators=knn", "--config.mim_weight=0"]
    assert run(folder, workdir, *more) == 0
    lines = [json.loads(x) for x in (workdir / "bad_records.jsonl").read_text().splitlines()]
    assert {line["why"] for line in lines} == {"empty file"}
    results = json.loads((workdir / "results.json").read_text())
    by_part = {part: sum(f"({part})" in line["source"] for line in lines)
               for part in ("kept", "held out")}  # fmt: skip
    assert sum(by_part.values()) == 5
    assert results.get("unreadable/train", 0) == by_part["kept"]
    assert results.get("unreadable/eval", 0) == by_part["held out"]
    config = json.loads((workdir / "config.json").read_text())["config"]
    assert config["classifier"]["num_classes"] == 2
    assert run(folder, workdir, *more) == 0  # num_classes=0 is the same


def test_one_bad_image_in_a_small_folder_is_listed_and_a_run_goes_on_as_after_a_stop(tmp_path):
    folder, workdir = folder_of(tmp_path / "pictures", bad=[7]), tmp_path / "run"
    quick = ["--config.mim_weight=0", "--config.eval.evaluators=classification",
             "--config.checkpoint.keep_best=0", "--config.save_every=3"]  # fmt: skip
    assert run(folder, workdir, *quick) == 0
    last = workdir / "checkpoints" / "6"
    results, state = read_results(workdir), ocp.load(last)
    shutil.rmtree(last)  # as if stopped after step 3
    (workdir / "results.json").unlink()
    assert cli.run(["train", f"--workdir={workdir}"]) == 0
    assert read_results(workdir) == results
    jax.tree.map(np.testing.assert_array_equal, ocp.load(last), state)
    (listed,) = read_json_lines(workdir / "bad_records.jsonl")
    assert Path(listed["name"]).name == "7.png" and "(kept)" in listed["source"]


def test_a_changed_folder_is_refused_unless_it_is_meant(tmp_path, capsys):
    folder, workdir = folder_of(tmp_path / "pictures"), tmp_path / "run"
    quick = ["--config.mim_weight=0", "--config.eval.evaluators=classification",
             "--config.checkpoint.keep_best=0"]  # fmt: skip
    for name in "12":
        (folder / "few").mkdir(exist_ok=True)
        (folder / "few" / f"{name}.png").write_bytes(encoded(photo(16, 16), "PNG"))
    assert run(folder, workdir, *quick) == 0
    told = capsys.readouterr().out
    assert "evaluation  12 images of folder:" in told and "images      50 of folder:" in told
    assert "warning     1 of 3 classes without an evaluation image: few\n" in told
    (workdir / "results.json").unlink()
    (folder / "a" / "new.png").write_bytes(encoded(photo(16, 16), "PNG"))
    assert cli.run(["train", f"--workdir={workdir}"]) == 3
    told = capsys.readouterr().err
    assert "length: was" in told and "--allow-data-change" in told
    (folder / "b").rename(folder / "zebra")
    assert cli.run(["train", f"--workdir={workdir}", "--allow-data-change"]) == 3
    assert "classes: was" in capsys.readouterr().err
    (folder / "zebra").rename(folder / "b")
    assert cli.run(["train", f"--workdir={workdir}", "--allow-data-change"]) == 0
    assert "continuing with other data" in capsys.readouterr().out
    (folder / "a" / "new.png").unlink()
    _, held_out = folders.shares(folder, 0.2, labelled=True)
    (folder / held_out.path(0)).unlink()
    assert cli.run(["evaluate", f"--workdir={workdir}", "--evaluators=classification"]) == 0
    told = capsys.readouterr().out
    assert "the data differs from that of the run:" in told
    assert "  length: was 50, is 49\n" in told and "  evaluated sha256: was" in told


def test_fewer_images_than_a_batch_are_told(tmp_path, capsys):
    folder = folder_of(tmp_path / "pictures", count=12)
    assert run(folder, tmp_path / "run", "--config.batch_size=32") == 3
    assert " in 2 epochs; set --config.batch_size=" in capsys.readouterr().err


def resident():
    """MiB of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_memory_does_not_grow_over_2000_batches():
    """M2: below one per cent."""
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    batches = pipeline.train_batches(
        images.training(Files(), DATA), 0, 2, mesh, 0, 2300, plain_readers()
    )
    for _ in range(300):
        next(batches)
    before = resident()
    for _ in batches:
        pass
    assert resident() < 1.01 * before


TRAINING = """
import ctypes, gc, os, pathlib, sys
from supmim import config, train
from supmim.report.step_log import StepLog

libc, add, seen = ctypes.CDLL(None), StepLog.add, {}

def noted(self, steps, totals):
    add(self, steps, totals)
    if steps[-1] in (800, 2800):
        gc.collect()
        libc.malloc_trim(0)  # what is free goes back to the system
        with open("/proc/self/statm") as file:
            seen[steps[-1]] = int(file.read().split()[1])

StepLog.add = noted
workdir = pathlib.Path(sys.argv[1])
train.train_and_evaluate(config.from_json((workdir / "config.json").read_text(), ""), workdir)
print("grew", seen[2800] / seen[800])
"""


@pytest.mark.slow
def test_memory_does_not_grow_over_2000_steps_of_a_training(tmp_path):
    """M2: below one per cent, with saves and evaluations in between."""
    config = tiny_config(
        batch_size=16, total_steps=2801, log_every=50, save_every=400, eval_every=400,
        **{"encoder.depth": 1, "eval.evaluators": "classification", "checkpoint.keep_best": 0,
           "data.resident": "off", "data.workers": 0},
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    command = [sys.executable, "-c", TRAINING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grew = float(done.stdout.rpartition("grew ")[2])
    assert grew < 1.01, grew
