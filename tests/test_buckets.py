"""Workdirs in buckets: the same run as on a disk, whatever happens to the bucket."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import s3fs
from botocore.exceptions import ClientError
from gcsfs.retry import HttpError
from google.auth.exceptions import TransportError
from orbax.checkpoint import v1 as ocp
from PIL import Image

import supmim
from supmim import cli
from supmim import config as config_lib
from supmim.config.options import Checkpoint
from supmim.errors import BucketError, CheckpointError, ConfigError
from supmim.storage import buckets, claim, paths
from supmim.storage.growing import Growing
from supmim.train import train_and_evaluate
from supmim.workdir import digests, files, lock
from supmim.workdir.checkpoint import Checkpoints
from supmim.workdir.writer import METRICS, read_metrics
from tests import processes
from tests.bucket_servers import BUCKET, free_port
from tests.conftest import tiny_config

SLOW_ON_S3 = ["gs", pytest.param("s3", marks=pytest.mark.slow)]


@pytest.fixture
def root(scheme_and_server, server, request):
    """An empty folder in the bucket."""
    folder = paths.path(f"{scheme_and_server[0]}://{BUCKET}/{abs(hash(request.node.name))}")
    paths.delete(folder)
    return folder


def state_of(value):
    return {"params": {"w": jnp.full((64, 8), value, jnp.float32)}, "step": jnp.int32(value)}


def abstract():
    mesh = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh), state_of(0.0)
    )


NOTE = {"data": "digits"}


def test_paths_have_the_methods_of_pathlib(root):
    file = root / "a" / "b.txt"
    assert not file.exists() and not root.is_dir() and not file.is_file()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.unlink(missing_ok=True)
    files.write_text(file, "grüße")
    assert file.is_file() and file.parent.is_dir() and not file.is_dir() and root.exists()
    assert file.read_text(encoding="utf-8") == "grüße" and file.stat().st_size == 7
    with file.open("rb") as opened:
        assert opened.read() == "grüße".encode()
    files.write_text(file, "")
    assert file.read_bytes() == b"" and [path.name for path in root.iterdir()] == ["a"]
    assert paths.absolute(file) == file and file.name == "b.txt" and str(file).startswith(str(root))
    assert [str(path) for path in (root / "a").glob("*.txt")] == [str(file)]
    with pytest.raises(ConfigError, match="names no bucket"):
        paths.path(str(root)[:5])


def test_folders_are_copied_whole_and_renamed(root, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "BLOCK", 1000)
    chance = np.random.default_rng(0)
    wanted = {"x": 0, "a/y": 999, "a/z": 1000, "a/b/w": 4321}
    for name, size in wanted.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(chance.bytes(size))
    paths.upload(tmp_path / "in", root / "one")
    paths.rename(root / "one", root / "two")
    assert not (root / "one").exists()
    with paths.local_copy(root / "two") as copy:
        for name in wanted:
            assert (copy / name).read_bytes() == (tmp_path / "in" / name).read_bytes(), name
    assert not copy.exists()
    paths.delete(root / "two")
    paths.delete(root / "two")
    assert not (root / "two").exists()


@pytest.fixture(scope="module")
def config():
    return tiny_config(**{
        "save_every": 5, "eval_every": 8, "checkpoint.keep": 2, "encoder.depth": 1,
        "eval.evaluators": "classification",
        "checkpoint.keep_best_metric": "classification/top1"})  # fmt: skip


@pytest.fixture(scope="module")
def on_disk(config, tmp_path_factory):
    """The same run in a folder of this machine, and what `evaluate` adds to it."""
    workdir = tmp_path_factory.mktemp("disk") / "run"
    train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def in_bucket(scheme_and_server, config):
    workdir = paths.path(f"{scheme_and_server[0]}://{BUCKET}/run")
    train_and_evaluate(config, workdir)
    return workdir


def test_a_run_in_a_bucket_is_that_on_a_disk(in_bucket, on_disk):
    found = [name.removeprefix(f"{in_bucket}/") for name in buckets.sizes(in_bucket)]
    here = [str(path.relative_to(on_disk)) for path in paths.files_below(on_disk)]

    def alike(names):  # but for names that Orbax and TensorBoard draw
        return {re.sub(r"/d/[0-9a-f]{32}|tfevents.*", "", name) for name in names} - {"lock"}

    assert alike(found) == alike(here)
    first, second = map(files.read_results, (in_bucket, on_disk))
    assert first == {name: second[name] for name in second if "fewshot" not in name}
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(place / METRICS) if "loss" in row]
        for place in (in_bucket, on_disk)
    ]
    assert losses[0] == losses[1] and losses[0]
    assert equal_leaves(newest(in_bucket), newest(on_disk))
    assert read_metrics(in_bucket / METRICS)[-1]["step"] == 15
    page = (in_bucket / "report.html").read_text()
    assert f"{in_bucket}-again" in page and "supmim-" not in page


@pytest.mark.parametrize("scheme_and_server", SLOW_ON_S3, indirect=True)
def test_a_model_is_evaluated_embeds_and_is_exported_there(
    in_bucket, on_disk, root, tmp_path, capsys
):
    picture = tmp_path / "in" / "a.png"
    picture.parent.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(image).save(picture)
    for workdir in (in_bucket, on_disk):
        assert cli.run(["evaluate", f"--workdir={workdir}", "--evaluators=fewshot"]) == 0
    results = files.read_results(in_bucket)
    assert "fewshot/5_shot" in results and results == files.read_results(on_disk)
    outputs = []
    for source in (in_bucket, on_disk):
        for to in (root / source.name, tmp_path / source.name):
            out = to.with_name(to.name + ".npz")
            command = ["embed", f"--model={source}", f"--images={picture.parent}", f"--out={out}"]
            if not out.exists():
                assert cli.run(command) == 0
                offered = "supmim search" in capsys.readouterr().out  # which reads no bucket
                assert offered == (to.parent == tmp_path)
            with out.open("rb") as file, np.load(file) as stored:
                outputs.append(stored["embedding"])
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:])
    out = root / "timm"
    assert cli.run(["export", f"--model={in_bucket}", "--to=timm", f"--out={out}"]) == 0
    assert '"local-dir:timm"' in capsys.readouterr().out  # of a copy: timm reads no bucket
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    loaded = supmim.load(str(out))
    assert loaded.name == str(out)
    assert np.allclose(loaded.embed([picture]), outputs[0], atol=1e-4)
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(out))):
        supmim.load(str(out))


QUICK = {"eval.evaluators": "classification", "checkpoint.keep_best": 0}


@pytest.mark.parametrize("scheme_and_server", ["gs"], indirect=True)
def test_an_encoder_begins_with_that_of_a_bucket(in_bucket, on_disk, tmp_path):
    changes = {"init.model": str(in_bucket), "mim_weight": 0.0, "encoder.depth": 1} | QUICK
    one = train_and_evaluate(tiny_config(**changes), tmp_path / "one")
    two = train_and_evaluate(
        tiny_config(**changes | {"init.model": str(on_disk)}), tmp_path / "two"
    )
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("scheme_and_server", ["gs"], indirect=True)
def test_a_sweep_in_a_bucket(root, tmp_path):
    sweep = tmp_path / "sweep.py"
    (tmp_path / "preset.py").write_text(PRESET)
    sweep.write_text(SWEEP)
    command = ["sweep", "run", f"--sweep={sweep}", f"--folder={root}"]
    assert cli.run(command) == 0
    members = root / "members"
    assert sorted(path.name for path in members.iterdir()) == ["long", "short"]
    assert "report " in (members / "short" / "log.txt").read_text()
    assert files.read_json(members / "long" / "exit.json") == {"exit_code": 0}
    assert cli.run(["sweep", "table", f"--folder={root}", "--metric=classification/top1"]) == 0
    assert (root / "table.csv").read_text().count("\n") == 3 and (root / "table.png").is_file()
    assert cli.run(["sweep", "status", f"--folder={root}"]) == 0
    assert cli.run(["sweep", "run", f"--folder={root}", "--engine=slurm"]) == 2


PRESET = """
from tests.conftest import tiny_preset

def get_config():
    quick = {"eval.evaluators": "classification", "checkpoint.keep_best": 0}
    return tiny_preset(**{"mim_weight": 0.0} | quick)
"""
SWEEP = """
PRESET = "preset.py"

def get_sweep():
    return {"short": {"total_epochs": 1}, "long": {"total_epochs": 2}}
"""


def newest(workdir):
    """The leaves of the newest checkpoint."""
    checkpoints = Checkpoints(workdir / "checkpoints", print)
    path = checkpoints.folder / str(checkpoints.steps()[-1])
    assert digests.damage(path) == ""
    return jax.tree.leaves(ocp.load(str(digests.at_hand(path))))


def equal_leaves(one, two):
    return len(one) == len(two) and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def saved(root, value, told, growing=None):
    """Save a step with this value, in a process that begins now."""
    hook = growing.upload if growing else lambda: None
    checkpoints = Checkpoints(root / "checkpoints", told.append, Checkpoint(1, 0), hook)
    assert checkpoints.restore(abstract()) or value == 1
    checkpoints.save(value, state_of(value), {}, NOTE)
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("scheme_and_server", SLOW_ON_S3, indirect=True)
def test_a_kill_at_any_write_leaves_the_last_whole_checkpoint(root, server):
    """Only so many writes reach the bucket; then everything is as after SIGKILL."""
    steps = []
    for writes in range(100):
        told, run = [], root / str(writes)
        growing = Growing(run)
        growing.file(METRICS).write_text('{"step": 1}\n')
        saved(run, 1, told, growing)
        with growing.file(METRICS).open("a") as file:
            file.write('{"step": 2}\n')
        server.writes_left = writes
        saved(run, 2, told, growing)
        whole, server.writes_left = server.writes_left > 0, None
        restored = Checkpoints(run / "checkpoints", told.append).restore(abstract())
        step = int(restored.state["step"])
        assert np.all(restored.state["params"]["w"] == step), writes
        lines = [row["step"] for row in read_metrics(run / METRICS)]
        assert lines in ([1], [1, 2]) and step in lines
        steps.append(step)
        again = saved(run, step + 1, told)
        assert again.steps() == [step + 1]
        last = f"checkpoints/{step + 1}"
        whole_one = {f"{last}/{name}" for name in again.note(step + 1)["files"]}
        found = {name.removeprefix(f"{run}/") for name in buckets.sizes(run)}
        assert found == whole_one | {f"{last}/{digests.DIGESTS}", METRICS}
        growing.close()
        if whole:
            break
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 2 and len(steps) > 12


def test_files_that_grow_are_fetched_and_uploaded_whole(root):
    first = Growing(root)
    first.file(METRICS).write_text("one\n")
    first.upload()
    (first.folder / "profile").mkdir()
    (first.folder / "profile" / "trace").write_text("x")
    first.close()
    assert not first.folder.exists()
    assert (root / "profile" / "trace").read_text() == "x"
    second = Growing(root)  # on another machine
    with second.file(METRICS).open("a") as file:
        file.write("two\n")
    second.close()
    assert (root / METRICS).read_text() == "one\ntwo\n"


def test_files_that_did_not_grow_are_not_uploaded_again(root, server):
    growing = Growing(root)
    growing.file("a").write_text("a")
    growing.upload()
    server.met.clear()
    growing.upload()
    assert not server.met
    growing.close()


def test_a_hundred_faults_lose_nothing(root, server):
    """Of six kinds, at a third of the requests: errors, resets, lost, cut and late answers."""
    server.faults, told, value = 100, [], 0
    while server.faults:
        value += 1
        saved(root, value, told)
        with paths.whole(root / "config.json") as part:
            part.write_text("x" * value)
        assert (root / "config.json").read_text() == "x" * value
    assert set(server.kinds) == set(server.KINDS) and len(server.kinds) == 100
    restored = Checkpoints(root / "checkpoints", told.append).restore(abstract())
    assert int(restored.state["step"]) == value and not told


def test_a_bucket_that_stays_away_is_told_and_then_an_error(root, server, monkeypatch, capsys):
    monkeypatch.setattr(buckets, "PATIENCE", 0.6)
    monkeypatch.setattr(buckets, "TELL_EVERY", 0.2)
    files.write_text(root / "x", "x")
    server.away = True
    with pytest.raises(BucketError, match=r"\[R26\] a bucket could not be reached for 0") as caught:
        (root / "x").read_bytes()
    assert caught.value.exit_code == 4
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 4 and all("trying again: " in line for line in lines)
    told = []
    checkpoints = Checkpoints(root / "checkpoints", told.append)
    server.away = False
    assert checkpoints.steps() == []
    server.away = True
    with pytest.raises(CheckpointError, match="3 saves in a row failed"):
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {}, NOTE)
            checkpoints.wait()
    server.away = False
    checkpoints = saved(root, 1, told)
    assert checkpoints.steps() == [1]


def test_a_missing_bucket_and_a_refusal_end_a_run_at_its_start(root, server, capsys):
    scheme = os.fspath(root)[:2]
    make = {"gs": "gcloud storage buckets create gs://nowhere", "s3": "aws s3 mb s3://nowhere"}
    assert cli.run(["train", "--config=digits", f"--workdir={scheme}://nowhere/run"]) == 4
    error = capsys.readouterr().err
    assert "[R27] the bucket" in error and make[scheme] in error and "Traceback" not in error
    server.writes_left = 0
    assert cli.run(["train", "--config=digits", f"--workdir={root}/run"]) == 4
    server.writes_left = None
    log_in = {"gs": "gcloud auth application-default login", "s3": "aws configure"}
    assert log_in[scheme] in capsys.readouterr().err
    assert cli.run(["evaluate", f"--workdir={root}/run"]) == 2
    assert "holds no run" in capsys.readouterr().err


TRIED = r"""workdir     {}
  write   +[\d,]+\.\d ms
  list    +[\d,]+\.\d ms
  read    +[\d,]+\.\d ms
  delete  +[\d,]+\.\d ms
"""


def test_the_doctor_tries_a_bucket_and_leaves_nothing(root, server, capsys):
    files.write_text(root / "x", "x")
    before = buckets.sizes(root)
    server.delay = 0.02
    assert cli.run(["doctor", f"--workdir={root}"]) == 0
    out = capsys.readouterr().out
    tried = re.search(TRIED.format(re.escape(str(root))), out)
    assert tried and out.endswith(tried[0]) and max(map(len, out.splitlines())) <= 80
    assert len({len(line) for line in tried[0].splitlines()[1:]}) == 1
    assert cli.run(["doctor", "--json", f"--workdir={root}"]) == 0
    took = json.loads(capsys.readouterr().out)["workdir"]
    assert list(took) == ["write", "list", "read", "delete"]
    assert all(0.02 <= seconds < 60 for seconds in took.values())
    names = re.findall(r"doctor-[0-9a-f]{16}", str(server.met))
    assert len(set(names)) == 2  # another each time: hosts of a pod do not meet
    assert {method for method, _ in server.met} >= {"GET"} and buckets.sizes(root) == before


def test_the_doctor_tells_what_a_bucket_lacks(root, server, capsys, monkeypatch):
    scheme = os.fspath(root)[:2]
    advice = buckets.ADVICE[scheme]
    assert cli.run(["doctor", f"--workdir={scheme}://nowhere/run"]) == 4
    error = capsys.readouterr().err
    assert error.startswith(f"supmim: [R27] the bucket {scheme}://nowhere does not exist: ")
    assert advice[1].format("nowhere") in error and "Traceback" not in error
    server.writes_left = 0
    assert cli.run(["doctor", f"--workdir={root}"]) == 4
    error = capsys.readouterr().err
    assert f"[R27] the bucket {scheme}://{BUCKET} cannot be used" in error and advice[0] in error
    server.writes_left = None
    for method, wrong in (("read_text", lambda *_, **__: "x"), ("iterdir", lambda *_: iter(()))):
        with monkeypatch.context() as patch:
            patch.setattr(buckets.BucketPath, method, wrong)
            assert cli.run(["doctor", f"--workdir={root}"]) == 4
        assert "a file that was just written" in capsys.readouterr().err
        assert not buckets.sizes(root)


def test_half_a_file_that_was_fetched_is_not_uploaded_over_the_whole_one(root, monkeypatch):
    files.write_text(root / METRICS, "one\ntwo\n")

    def broken(source, to):
        to.write_text("one")
        raise BucketError("it was away")

    second = Growing(root)
    with monkeypatch.context() as patch:
        patch.setattr(paths, "download", broken)
        with pytest.raises(BucketError, match="it was away"):
            second.file(METRICS)
    second.close()
    assert (root / METRICS).read_text() == "one\ntwo\n"


def test_an_answer_that_fails_is_not_taken_for_nothing(root, server, monkeypatch):
    """Else a run would begin anew, and delete what it does not know."""
    monkeypatch.setattr(buckets, "PATIENCE", 0.2)
    server.away = True
    for ask in ("exists", "is_dir", "is_file"):
        with pytest.raises(BucketError, match="could not be reached") as caught:
            getattr(root, ask)()
        assert caught.value.fault == "R26"


def test_a_server_that_cannot_be_reached_is_away(scheme_and_server, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 0.2)
    kind = type(buckets.filesystem(scheme_and_server[0]))
    address = f"http://127.0.0.1:{free_port()}"
    access = {"gs": {"token": "anon"}, "s3": {"key": "x", "secret": "y"}}[scheme_and_server[0]]
    closed = kind(endpoint_url=address, skip_instance_cache=True, **access)
    with pytest.raises(BucketError) as caught:
        closed.cat_file(f"{BUCKET}/x")
    assert caught.value.fault == "R26"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("scheme_and_server", ["gs"], indirect=True)
def test_a_login_that_cannot_be_renewed_now_is_tried_again(root, monkeypatch, wrapped):
    """gcsfs gives a broken connection to the login's server as 401, or as it is."""
    files.write_text(root / "a", "x")
    credentials, failures = root.files.credentials, [1, 1]
    apply = credentials.apply

    def broken(out):
        if failures:
            failures.pop()
            cause = TransportError("no route to the login's server")
            if not wrapped:
                raise cause
            raise HttpError({"code": 401, "message": "Invalid Credentials"}) from cause
        apply(out)

    monkeypatch.setattr(credentials, "apply", broken)
    assert (root / "a").read_text() == "x" and not failures


@pytest.mark.parametrize("scheme_and_server", ["s3"], indirect=True)
def test_an_s3_server_need_not_name_the_condition_that_failed(root, monkeypatch):
    async def refused(*_, **__):
        answer = {"ResponseMetadata": {"HTTPStatusCode": 412}, "Error": {"Code": "412"}}
        raise OSError(22, "precondition") from ClientError(answer, "PutObject")

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refused)
    with pytest.raises(FileExistsError):
        buckets.create(root / "lock", "x")


def test_names_that_look_like_patterns_are_names(root):
    for name in ("run[1]/a", "run1/a", "run?/a", "runs/a"):
        files.write_text(root / name, "x")
    assert not (root / "run").exists() and (root / "run?").is_dir()
    paths.delete(root / "run[1]")
    (root / "run?" / "a").unlink()
    paths.rename(root / "run1", root / "new*")
    left = [name.removeprefix(f"{root}/") for name in buckets.sizes(root)]
    assert left == ["new*/a", "runs/a"]


def test_a_download_stays_in_its_folder(root, tmp_path, monkeypatch):
    for name in ("../x", "a//b", "/etc/x"):
        monkeypatch.setattr(buckets, "sizes", lambda folder, name=name: {f"{folder}/{name}": 1})
        with pytest.raises(BucketError, match="which cannot be a file name"):
            paths.download(root, tmp_path / "to")
    assert not list(tmp_path.iterdir())


def test_a_full_temporary_folder_is_no_damage(root, monkeypatch):
    checkpoints = saved(root, 1, [])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths, "download", full)
    digests._copy.cache_clear()
    with pytest.raises(CheckpointError, match="No space left on device.*TMPDIR"):
        checkpoints.restore(abstract())
    assert checkpoints.steps() == [1] and (root / "checkpoints/1" / digests.DIGESTS).is_file()


def test_old_checkpoints_that_cannot_be_deleted_fail_no_save(root, monkeypatch):
    def refused(_):
        raise BucketError("no leave")

    told = []
    monkeypatch.setattr(Checkpoints, "_prune", refused)
    assert saved(root, 1, told).steps() == [1]
    assert told == ["old checkpoints could not be deleted: BucketError: no leave"]


def test_complete_checkpoints_that_a_run_does_not_know_are_kept(root):
    first = saved(root, 1, [])
    paths.upload(digests.at_hand(root / "checkpoints/1"), root / "checkpoints/7")
    files.write_text(root / "checkpoints/8/left", "x")  # of a killed save
    first.save(2, state_of(2), {}, NOTE)
    first.wait()
    found = sorted(path.name for path in (root / "checkpoints").iterdir())
    assert found == ["2", "7"]


def test_a_run_that_ends_lets_its_save_end(root):
    checkpoints = Checkpoints(root / "checkpoints", print)
    ended = []
    checkpoints._finishing = threading.Thread(target=lambda: (time.sleep(0.3), ended.append(1)))
    checkpoints._finishing.start()
    checkpoints.finish()
    assert ended


def test_the_doctor_waits_once_for_a_bucket_that_is_away(root, server, capsys, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 0.3)
    monkeypatch.setattr(buckets.BucketPath, "unlink", lambda _: pytest.fail("it waits again"))
    server.away = True
    assert cli.run(["doctor", f"--workdir={root}"]) == 4
    assert capsys.readouterr().err.startswith("supmim: [R26] a bucket could not be reached for")


def test_the_doctor_names_the_extra_that_is_missing(scheme_and_server, capsys, monkeypatch):
    scheme = scheme_and_server[0]

    def missing():
        raise ImportError(scheme)

    monkeypatch.setattr(buckets, {"gs": "_google", "s3": "_amazon"}[scheme], missing)
    buckets.filesystem.cache_clear()
    assert cli.run(["doctor", f"--workdir={scheme}://{BUCKET}/x"]) == 2
    told = capsys.readouterr()
    assert f"pip install -e '.[{buckets.EXTRAS[scheme][0]}]'" in told.err and not told.out


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(claim, "RENEW_EVERY", 0.2)
    monkeypatch.setattr(claim, "STALE", 1.0)


def test_a_second_run_is_refused_and_a_dead_one_taken_over(root, brisk, capsys):
    with lock.hold(root):
        assert lock.held(root)
        refused = pytest.raises(ConfigError, match=r"in use by process \d+ on .*, for 0 minutes")
        with refused, lock.hold(root):
            pass
        assert lock.held(root)
        owner = json.loads((root / "lock").read_text())
    assert not lock.held(root) and not (root / "lock").exists()
    files.write_json(root / "lock", owner | {"host": "elsewhere"})
    began = time.monotonic()
    with lock.hold(root):
        assert time.monotonic() - began >= 1.0
        assert json.loads((root / "lock").read_text())["token"] != owner["token"]
    out = capsys.readouterr().out
    assert "held by process" in out and "on elsewhere" in out and "it is taken over" in out
    files.write_json(root / "lock", owner | {"pid": 2**22 + 1})  # of this machine, and gone
    began = time.monotonic()
    with lock.hold(root):
        assert time.monotonic() - began < 1.0


def test_a_lock_of_another_container_is_not_that_of_a_dead_process_here(root, brisk):
    with lock.hold(root):
        owner = json.loads((root / "lock").read_text())
    files.write_json(root / "lock", owner | {"pid": 2**22 + 1, "machine": "another"})
    began = time.monotonic()
    with lock.hold(root):
        assert time.monotonic() - began >= 1.0


def test_what_is_no_lock_is_watched_and_replaced(root, brisk):
    for text in ("{}", "[]", "no JSON"):
        files.write_text(root / "lock", text)
        began = time.monotonic()
        with lock.hold(root):
            assert time.monotonic() - began >= 1.0


def test_a_lock_that_another_has_just_taken_over_is_not_deleted(root, brisk, monkeypatch):
    files.write_json(root / "lock", {"host": "gone", "pid": 1})

    def taken_over(text):
        if "taken over" in text:
            pytest.fail("it was deleted")

    reads, read = [], claim._read

    def late(path):
        reads.append(path)
        if len(reads) == 3:  # after the watch
            files.write_json(root / "lock", {"host": "new", "pid": 2})
        return read(path)

    now = iter([0.0, 0.5, 0.5, 0.5, 2.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(claim, "time", clock)
    monkeypatch.setattr(claim, "tell", taken_over)
    monkeypatch.setattr(claim, "_read", late)
    claim._wait_until_stale(root / "lock", sleep=lambda _: None)
    assert json.loads((root / "lock").read_text())["host"] == "new"


def test_a_lost_lock_is_noticed_before_a_save_counts(root, monkeypatch):
    class Ended(BaseException):
        """Stands for os._exit."""

    def lost(path, found):
        raise Ended(found["host"])

    monkeypatch.setattr(claim, "_lost", lost)
    monkeypatch.setattr(claim, "RENEW_EVERY", 60.0)
    checkpoints = Checkpoints(root / "checkpoints", print)
    with lock.hold(root):
        checkpoints._staging.verify()
        files.write_json(root / "lock", {"host": "b"})
        written = types.SimpleNamespace(result=lambda: None)
        for uploads in (True, False):  # by one process, or written by several
            checkpoints._staging.uploads = uploads
            with pytest.raises(Ended, match="b"):
                checkpoints._finish(written, {"step": 1})
        (root / "lock").unlink()


LOSES = """
import sys, time
from supmim.storage import claim, paths
from supmim.workdir import lock
claim.RENEW_EVERY = 0.2
root = paths.path(sys.argv[1])
with lock.hold(root):
    claim.buckets.filesystem(sys.argv[1][:2]).pipe_file(sys.argv[1] + "/lock", b'{"host": "b"}')
    time.sleep(60)
"""


def test_a_run_whose_lock_was_taken_over_ends_at_once(root):
    command = [sys.executable, "-c", LOSES, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 4 and "taken over by process None on b" in done.stderr
    assert json.loads((root / "lock").read_text()) == {"host": "b"}


def test_several_processes_and_s3_are_refused(monkeypatch, scheme_and_server):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    folder = paths.path(f"{scheme_and_server[0]}://{BUCKET}/several")
    if scheme_and_server[0] == "s3":
        with pytest.raises(ConfigError, match="Orbax writes arrays to a disk or to gs:// only"):
            Checkpoints(folder, print)
    else:
        assert not Checkpoints(folder, print)._staging.uploads


def started(workdir, environment):
    """The training of a workdir in a process of its own, with one device."""
    return subprocess.Popen(
        [sys.executable, "-m", "supmim", "train", f"--workdir={workdir}"],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_killed_three_times_ends_alike_on_empty_machines(root, tmp_path):
    """Each start has a home and a folder for temporary files of its own, both empty."""
    run, disk = root / "run", tmp_path / "disk"
    disk.mkdir()
    config = tiny_config(total_epochs=8, save_every=10, steps_per_call=1, **QUICK)
    for workdir in (run, disk):
        files.write_text(workdir / "config.json", config_lib.to_json(config))
    for number, step in enumerate((20, 50, 90, 0)):
        places = {"HOME": tmp_path / f"home{number}", "TMPDIR": tmp_path / f"temporary{number}"}
        for place in places.values():
            place.mkdir()
        environment = {name: str(place) for name, place in places.items()}
        process = started(run, environment)
        while step and not (run / "checkpoints" / str(step) / digests.DIGESTS).is_file():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        if step:
            process.kill()
        out = process.communicate(timeout=200)[0]
        assert process.returncode == (-9 if step else 0) and "Traceback" not in out, out
    process = started(disk, {})
    assert process.communicate(timeout=200) and process.returncode == 0
    assert equal_leaves(newest(run), newest(disk))
    logged = [
        [(row["step"], row["loss"]) for row in read_metrics(place / METRICS) if "loss" in row]
        for place in (run, disk)
    ]
    assert logged[0] == logged[1] and len(logged[0]) >= 24


@pytest.mark.slow
@pytest.mark.parametrize("scheme_and_server", ["gs"], indirect=True)
def test_two_processes_save_in_a_bucket(root):
    """Each has some of the arrays: Orbax writes them to the bucket itself."""
    small = {"mesh.fsdp": 2, "encoder.depth": 1, "mim_weight": 0.0}
    config = tiny_config(save_every=9, **small | QUICK)
    files.write_text(root / "config.json", config_lib.to_json(config))
    both_do("train", root)
    checkpoints = Checkpoints(root / "checkpoints", print)
    assert checkpoints.steps()[-1] == 15 and not digests.damage(checkpoints.folder / "15")
    assert files.read_results(root)["step"] == 15 and not (root / "lock").exists()


def both_do(verb, root):
    command = ["supmim", verb, f"--workdir={root}"]
    for code, out, error in processes.finished(processes.start(command, command), 150):
        assert code == 0, out + error


@pytest.mark.slow
@pytest.mark.parametrize("scheme_and_server", ["gs"], indirect=True)
def test_two_processes_evaluate_what_is_in_a_bucket(root):
    test_two_processes_save_in_a_bucket(root)
    before = files.read_results(root)
    both_do("evaluate", root)
    assert files.read_results(root) == before
