"""The verbs train and evaluate, in one process: what a run leaves, refuses and repeats."""

import dataclasses
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from supmim import assemble, cli, masking, sharding, tokenizers, train
from supmim import config as config_lib
from supmim.assemble import DEFAULT_START
from supmim.commands import train as train_command
from supmim.config import checks, options
from supmim.data import sources
from supmim.data.augment import views
from supmim.data.sources import base
from supmim.data.sources import digits as digits_source
from supmim.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    Interrupted,
    NumericsError,
)
from supmim.planning import program
from supmim.report.step_log import StepLog
from supmim.report.terminal import Terminal
from supmim.runtime import progress
from supmim.runtime.preemption import StopSignal
from supmim.tokenizers import losses, perceptual
from supmim.workdir import checkpoint, model
from supmim.workdir.checkpoint import Checkpoints
from supmim.workdir.files import NOTES, read_results, write_results
from supmim.workdir.folder import Workdir
from supmim.workdir.writer import read_metrics
from tests.conftest import digits, tiny_config

DIGITS = str(Path(__file__).parents[1] / "configs/digits.py")


def frozen(**changes):
    small = {"save_every": 5, "eval_every": 5}
    if changes.get("task") != "tokenizer":
        small |= {"encoder.depth": 1}
    return tiny_config(**small | changes)


def state_in(workdir, step):
    return ocp.load(workdir / "checkpoints" / str(step))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def phases():
    """What the run of `finished` says that it does."""
    return set()


@pytest.fixture(scope="module")
def drawn():
    """The steps after which the run of `finished` draws."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, phases, drawn):
    """A run of 15 steps, with averaged parameters, dropout and mixing, that came to its end."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    config = frozen(**{"optimizer.ema_decay": 0.9, "encoder.dropout": 0.1, "data.mixup": 0.2,
                       "checkpoint.keep": 9})  # fmt: skip
    restart, draw = progress.Phase.restart, train.draw

    def record(phase, what, *counts):
        phases.add(what)
        restart(phase, what, *counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.Phase, "restart", record)
        patch.setattr(train, "draw", lambda *args: drawn.append(args[-1]) or draw(*args))
        results = train.train_and_evaluate(config, workdir)
    return config, workdir, results


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be harmed."""
    config, workdir, results = finished
    shutil.copytree(workdir, tmp_path / "tiny")
    return config, tmp_path / "tiny", results


def test_a_run_leaves_what_the_design_says(finished):
    config, workdir, results = finished
    for name in ("config.json", "model.json", "metrics.jsonl", "results.json", "report.html",
                 "parameters.txt",
                 "checkpoints/15/digests.json", "tokenizer/tokenizer.safetensors",
                 "pictures/curves.png", "pictures/reconstructions.png",
                 "pictures/neighbours.png", "pictures/confusion.png"):  # fmt: skip
        assert (workdir / name).is_file(), name
    assert list(workdir.glob("events.out.tfevents*")) and not list(workdir.rglob("*.part"))
    assert read_results(workdir) == {"step": 15, **results}
    shares = {name: x for name, x in results.items() if name != "classification/loss"}
    assert all(0 <= value <= 1 for value in shares.values())
    for name in ("classification/top1", "classification/top5", "knn/recall_at_1", "knn/dino_k20",
                 "reconstruction/token_accuracy", "floor/token_accuracy", "floor/top1",
                 "floor/knn_pixels_cosine", "floor/knn_pixels_euclidean"):  # fmt: skip
        assert name in results


def test_a_run_says_what_takes_long(finished, phases):
    assert phases == {
        "setting up", "scanning digits:train", "fitting the tokenizer (k-means)",
        "reading the checkpoint", "creating the parameters",
        "putting the images on the devices", "the first step", "waiting for images",
        "compiling the train step", "saving", "drawing",
        "evaluating", "classification", "knn", "reconstruction",
        "the training source", "the evaluation source",
        "drawing classification", "drawing knn", "drawing reconstruction", "drawing the curves",
    }  # fmt: skip


def test_model_json_says_what_the_outputs_mean_and_what_images_it_takes(finished):
    config, workdir, _ = finished
    crop = {"view": "short_side", "resize": 8, "size": 8, "interpolation": "bilinear"}
    expected = {"class_names": digits("train").class_names, "channels": 1, **crop}
    about = {"mean": (0.5,), "std": (0.5,), "loss": "softmax"}
    assert vars(model.read(workdir)) == expected | about
    stored = json.loads((workdir / "model.json").read_text())
    assert json.loads((workdir / "results.json").read_text())["model"] == stored
    assert "class names: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9;" in (workdir / "report.html").read_text()
    pixels = jnp.linspace(0, 1, 256)
    np.testing.assert_allclose(
        views.to_input(pixels), (pixels - views.MEAN) / views.STD, rtol=0, atol=1e-7
    )


def test_every_result_of_which_more_is_better_can_rank_checkpoints(finished):
    config, _, results = finished
    less = {"classification/loss", "classification/calibration_error"}
    more = {name for name in results if not name.startswith("floor/")} - less
    assert more == set(checks.rankings(config, config.evaluator_names))


def test_results_say_of_which_checkpoint_and_by_which_protocol(finished, copied):
    _, workdir, results = copied
    stored = json.loads((workdir / "results.json").read_text())
    numbers = {name: x for name, x in stored.items() if name not in NOTES}
    assert numbers == {"step": 15, **results}
    digest = checkpoint.Checkpoints(workdir / "checkpoints", print).digest(15)
    assert stored["checkpoint"] == {"step": 15, "digest": digest} and len(digest) == 64
    seen = stored["data"]
    assert (seen["train"]["name"], seen["eval"]["name"]) == ("digits:train", "digits:test")
    assert seen["eval"]["images"] == 297 and seen["view"]["view"] == "short_side"
    said = stored["protocols"]
    assert list(said) == ["classification", "knn", "reconstruction"]
    assert said["knn"]["k"] == [10, 20, 100, 200] and said["knn"]["T"] == 0.07
    assert (said["knn"]["queries"], said["knn"]["bank"]) == (297, 1500)
    assert cli.run(["evaluate", f"--workdir={workdir}", "--evaluators=fewshot"]) == 0
    joined = json.loads((workdir / "results.json").read_text())
    fewshot = joined["protocols"].pop("fewshot")
    assert joined["protocols"] == said and fewshot["judged_by"] == 297
    assert joined["checkpoint"] == stored["checkpoint"]
    assert "L2-normalised" in (workdir / "report.html").read_text()
    of_step = ["evaluate", f"--workdir={workdir}", "--evaluators=knn", "--step=5"]
    assert cli.run(of_step) == 0
    earlier = json.loads((workdir / "results_step_5.json").read_text())
    assert earlier["checkpoint"]["step"] == 5 and earlier["checkpoint"]["digest"] != digest
    assert list(earlier["protocols"]) == ["knn"]


def test_metrics_hold_what_is_asked_of_them(finished):
    rows = read_metrics(finished[1] / "metrics.jsonl")
    logged = [row for row in rows if "class_loss" in row]
    assert [row["step"] for row in logged] == [5, 10, 15]
    expected = {"class_loss", "mim_loss", "token_accuracy", "train_top1", "grad_norm",
              "learning_rate", "images_per_second", "data_wait", "compile_seconds", "code_usage",
              "code_perplexity", "skipped_steps", "loss"}  # fmt: skip
    assert expected <= logged[0].keys()
    assert [row["step"] for row in rows if "knn/recall_at_1" in row] == [5, 10, 15]
    assert "Sharding" in (finished[1] / "parameters.txt").read_text()


def test_a_finished_run_prints_its_result_and_writes_nothing(finished, capsys):
    config, workdir, results = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")
              if path.name != "lock"}  # fmt: skip
    assert cli.run(["train", f"--workdir={workdir}"]) == 0
    out = capsys.readouterr().out
    assert "holds a finished run" in out and f"{100 * results['knn/recall_at_1']:.2f} %" in out
    after = {path: path.stat().st_mtime_ns for path in before}
    assert before == after


@pytest.mark.usefixtures("undrawn")
def test_resumed_at_a_checkpoint_is_as_never_stopped(copied, finished):
    """Law 2; saves fall on log steps here, so the metrics are equal too."""
    config, workdir, results = copied
    again = train.train_and_evaluate(config, workdir, assemble.Start(resume="5"))
    assert again == results
    assert_equal(state_in(workdir, 15), state_in(finished[1], 15))
    drop = ("images_per_second", "data_wait", "compile_seconds")
    times = ("goodput/", "wall_seconds/", "cpu_seconds/")
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in drop and not k.startswith(times)}
         for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (workdir, finished[1])
    )  # fmt: skip
    assert ours == theirs


def test_a_run_that_goes_back_to_an_earlier_step_is_no_longer_finished(tmp_path):
    folder = Workdir(tmp_path)
    write_results(tmp_path, {"knn/recall_at_1": 0.9}, {"checkpoint": {"step": 15}})
    assert folder.results() == {"knn/recall_at_1": 0.9}
    # Killed after this, it must not pass for finished.
    folder.begin_run(frozen(), {}, model.of(frozen(), ("a",)))
    assert folder.results() == {} and not (tmp_path / "results.json").exists()


def test_a_save_that_was_lost_is_told_within_two_steps(tmp_path, undrawn, monkeypatch, capsys):
    class Lost:
        def result(self):
            raise OSError(28, "No space left on device")

    save_async = ocp.save_async
    monkeypatch.setattr(
        ocp,
        "save_async",
        lambda to, *a, **k: Lost() if to.endswith("/5") else save_async(to, *a, **k),
    )
    monkeypatch.setattr(train, "evaluate", lambda *_: {})
    quick = {"eval.evaluators": "classification", "checkpoint.keep_best": 0}
    train.train_and_evaluate(frozen(mim_weight=0.0, log_every=1, **quick), tmp_path)
    out = capsys.readouterr().out
    told = out.index("a checkpoint could not be saved")
    assert out.index("\n4/15 ") < told < out.index("\n8/15 ")


def test_a_run_stopped_between_checkpoint_and_evaluation_is_evaluated(copied):
    config, workdir, results = copied
    (workdir / "results.json").unlink()
    (workdir / "report.html").unlink()
    assert train.train_and_evaluate(config, workdir) == results
    assert (workdir / "report.html").is_file()


@pytest.mark.usefixtures("undrawn")
def test_the_commands_of_the_report_repeat_the_run(copied):
    _, workdir, results = copied
    workdir = workdir.rename(workdir.with_name("it's <tiny>"))
    assert cli.run(["evaluate", f"--workdir={workdir}", "--evaluators=fewshot"]) == 0
    (commands,) = re.findall("<pre>(mkdir .*?)</pre>", (workdir / "report.html").read_text(), re.S)
    for command in html.unescape(commands).split(" &&\n"):
        program, *args = shlex.split(command)
        if program == "supmim":
            assert cli.run(args) == 0
        else:
            subprocess.run([program, *args], check=True)
    again = read_results(workdir.with_name("it's <tiny>-again"))
    assert again == read_results(workdir) and again.keys() > results.keys()


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


def killed_in(monkeypatch, config, workdir, module, name, at):
    """A start of a run that ends as `module.name` is called for step `at`, before it acts."""
    function = vars(module)[name]

    def fatal(*args, **kwargs):
        if at in args:
            raise Killed
        return function(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, name, fatal)
        train.train_and_evaluate(config, workdir)


IN_IT = (Checkpoints, "save", 5)  # its numbers are written down, and are written again
AFTER_IT = (Checkpoints, "save", 10)
BEFORE_IT = (train, "evaluate", 15)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "kills", [[IN_IT], pytest.param([IN_IT, AFTER_IT, BEFORE_IT], marks=pytest.mark.slow)]
)
def test_an_evaluation_that_a_kill_cost_is_made_at_the_next_start(
    finished, tmp_path, monkeypatch, kills
):
    """None is missing, none twice."""
    config, workdir, results = finished
    harmed = tmp_path / "harmed"
    for kill in kills:
        killed_in(monkeypatch, config, harmed, *kill)
    assert train.train_and_evaluate(config, harmed) == results
    evaluated, expected = (
        [row for row in read_metrics(folder / "metrics.jsonl") if "knn/recall_at_1" in row]
        for folder in (harmed, workdir)
    )
    assert evaluated == expected and [row["step"] for row in expected] == [5, 10, 15]
    for step in (5, 10, 15):
        notes = (Checkpoints(f / "checkpoints", print).note(step) for f in (harmed, workdir))
        assert len({json.dumps(note["results"]) for note in notes}) == 1


def test_the_best_evaluation_is_saved_when_it_happens(tmp_path, undrawn, monkeypatch, capsys):
    """Between the saves too; the newest checkpoint stays beside it. What can't rank is told."""
    score = {3: 0.2, 6: 0.1, 9: 0.5, 12: None, 15: 0.4}
    found = {step: {"knn/recall_at_1": x} if x else {"other": 1.0} for step, x in score.items()}
    monkeypatch.setattr(train, "evaluate", lambda *args: found[args[-1]])
    monkeypatch.setattr(train, "conclude", lambda *_: None)
    config = frozen(mim_weight=0.0, eval_every=3, save_every=6, **{"checkpoint.keep": 1})
    train.train_and_evaluate(config, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", print)
    notes = {step: checkpoints.note(step)["results"] for step in checkpoints.steps()}
    assert notes == {9: found[9], 15: found[15]}
    assert capsys.readouterr().out.count("the best checkpoint is not kept: these results") == 1


@pytest.mark.slow
def test_two_runs_with_one_seed_end_equal(finished, tmp_path):
    """Law 1, through the whole loop."""
    config, workdir, results = finished
    assert train.train_and_evaluate(config, tmp_path / "again") == results
    assert_equal(state_in(tmp_path / "again", 15), state_in(workdir, 15))


def test_another_config_in_the_workdir_is_refused_by_name(finished):
    config, workdir, _ = finished
    other = config_lib.replaced(config, {"encoder.depth": 3, "log_every": 1})
    with pytest.raises(ConfigError) as caught:
        train.train_and_evaluate(other, workdir)
    message = str(caught.value)
    assert "config.encoder.depth: the workdir has 1, but you ask for 3" in message
    assert "log_every" not in message and "Choose another --workdir" in message


def test_results_of_other_images_are_not_those_of_a_finished_run(finished):
    """A folder may move while a run goes on; then its fingerprint tells what it holds."""
    config, workdir, _ = finished
    asked = {"data.eval": "digits:validation", "data.workers": 1, "data.eval_view": "stretch"}
    with pytest.raises(ConfigError) as caught:
        train.train_and_evaluate(config_lib.replaced(config, asked), workdir)
    message = str(caught.value)
    assert "config.data.eval: its results have '', but you ask for 'digits:validation'" in message
    assert "config.data.eval_view:" in message and "workers" not in message


@pytest.mark.usefixtures("undrawn")
def test_an_attempt_that_failed_before_it_began_blocks_nothing(tmp_path):
    args = ["train", f"--workdir={tmp_path}", f"--config={DIGITS}", "--config.total_epochs=1",
            "--config.batch_size=48", "--config.eval.batch_size=48",
            "--config.optimizer.warmup_steps=2"]  # fmt: skip
    for wrong, code in (
        ("--config.tokenizer.codebook_size=30000", 2),
        ("--config.data.train=folder:/nowhere", 3),
        ("--config.init.model=/nowhere", 4),
    ):
        new = f"--workdir={tmp_path / 'a' / 'b'}"
        assert cli.run([*args, new, wrong]) == code and not (tmp_path / "a").exists()
    assert cli.run([*args, "--config.tokenizer.codebook_size=30000"]) == 2
    assert not list(tmp_path.iterdir())
    assert cli.run([*args, "--config.optimizer.warmup_steps=400"]) == 2
    assert cli.run([*args, "--config.eval.batch_size=20"]) == 2
    stale = (tmp_path / "tokenizer").exists(), (tmp_path / "config.json").exists()
    quick = {"optimizer.warmup_steps": 0, "eval.evaluators": "classification",
             "checkpoint.keep_best": 0}  # fmt: skip
    train.train_and_evaluate(frozen(batch_size=744, mim_weight=0.0, **quick), tmp_path)
    assert stale == (False, False)


def test_other_data_is_refused_by_field(copied, monkeypatch):
    config, workdir, _ = copied
    (workdir / "results.json").unlink()
    load = digits_source.load

    def other(*args):
        source = load(*args)
        source.label = np.roll(source.label, 1)
        return source

    monkeypatch.setattr(digits_source, "load", other)
    with pytest.raises(DataError, match="sha256: was .*, is "):
        train.train_and_evaluate(config, workdir)


def test_a_missing_resume_exits_4(finished, capsys):
    assert cli.run(["train", f"--workdir={finished[1]}", "--resume=7"]) == 4
    assert "nearest: 5, 10, 15" in capsys.readouterr().err


def test_a_run_takes_the_whole_steps_of_all_its_epochs():
    config = frozen(total_epochs=2)  # of 1,500 images, in batches of 96
    assert assemble.steps_of(config, digits("train")) == 3000 // 96 == 31


def test_nothing_is_due_after_the_last_step_and_every_0_is_never():
    assert [done for done in range(1, 16) if train.due(done, 5, 15)] == [5, 10]
    assert not any(train.due(done, 0, 15) for done in range(1, 16))


def test_a_warmup_longer_than_the_run_is_told(tmp_path):
    with pytest.raises(ConfigError, match="warmup_steps=99 is not below the 15 steps"):
        train.train_and_evaluate(frozen(**{"optimizer.warmup_steps": 99}), tmp_path)


def test_a_batch_larger_than_the_data_is_told(tmp_path):
    config = frozen(batch_size=1504)
    with pytest.raises(DataError, match="1,500 images, too few to fill a batch"):
        train.train_and_evaluate(config, tmp_path)


def test_evaluate_gives_the_results_of_the_run(copied, capsys):
    _, workdir, results = copied
    args = ["evaluate", f"--workdir={workdir}"]
    assert cli.run([*args, "--evaluators=knn"]) == 0
    out = capsys.readouterr().out
    assert "knn/recall_at_1" in out and "classification/top1" not in out
    assert read_results(workdir) == {"step": 15, **results}
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert cli.run([*args, "--step=5", "--evaluators=knn"]) == 0
    assert "step 5 of" in capsys.readouterr().out
    assert (workdir / "pictures/step_5/neighbours.png").is_file()
    assert kept == sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert cli.run([*args, "--step=6"]) == 4
    assert cli.run([*args, "--evaluators=fid"]) == 2


def test_evaluate_without_a_checkpoint_exits_4(finished, tmp_path, capsys):
    shutil.copy(finished[1] / "config.json", tmp_path)
    assert cli.run(["evaluate", f"--workdir={tmp_path}"]) == 4
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_gradients_that_stay_nan_end_with_a_post_mortem(tmp_path, monkeypatch):
    to_float = views.to_float
    monkeypatch.setattr(views, "to_float", lambda image: jnp.nan * to_float(image))
    with pytest.raises(NumericsError, match="5 steps in a row, the last is step 5"):
        train.train_and_evaluate(frozen(mim_weight=0.0), tmp_path)
    steps = json.loads((tmp_path / "postmortem.json").read_text())["steps"]
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5] and len(steps[0]["index"]) == 96
    assert not (tmp_path / "results.json").exists()


def test_a_checkpoint_of_another_architecture_is_told(copied):
    config, workdir, _ = copied
    (workdir / "results.json").unlink()
    text = (workdir / "config.json").read_text().replace('"mlp_dim": 32', '"mlp_dim": 48')
    (workdir / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"mlp/up/kernel: stored float32\[16, 32\], expected"):
        train.train_and_evaluate(config_lib.from_json(text, ""), workdir)


def pictures(root, count=800):
    """The digits as PNG files in a folder per class."""
    source = digits("train")
    for index in range(count):
        record = source[index]
        folder = root / str(record.label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(record.image[..., 0]).save(folder / f"{index}.png")
    return root


def recording(group, seen, prefix=""):
    """A group of options as an instance of a subclass that notes which options are read.

    `vars`, by which configs are copied, compared and written down, does not read.
    """

    class Recording(type(group)):
        def __getattribute__(self, name):
            if prefix + name in options.OPTIONS:
                seen.add(prefix + name)
            return super().__getattribute__(name)

    values = {
        name: recording(value, seen, f"{name}.") if dataclasses.is_dataclass(value) else value
        for name, value in vars(group).items()
    }
    return Recording(**values)


def traced(programs, *arguments):
    """Programs whose steps are traced, which reads the options, but neither compiled nor taken."""
    _, totals = programs.train_steps.eval_shape(*arguments)

    def step(state, batches, count, rng):
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), totals)
        return state.replace(step=state.step + count), jax.tree.map(lambda x: x[:count], ones)

    return programs._replace(train_steps=step)


def test_every_option_is_read(tmp_path, monkeypatch):
    """Law 9: the recorder is attached after validation and JSON."""
    seen: set[str] = set()
    arms = [
        {"data.flip": True, "data.mixup": 0.1, "data.randaug_num": 1, "optimizer.ema_decay": 0.9,
         "data.labels": 0.5, "data.unlabelled": "rest", "data.unlabelled_batch": 8,
         "tokenizer.name": "feature_codes", "tokenizer.filters": 4, "tokenizer.network_steps": 2},
        {"eval.evaluators": "classification", "checkpoint.keep_best": 0, "mim.passes": "one",
         "mim.masking": "variable", "encoder.scan": True, "encoder.depth": 2, "mesh.fsdp": 2,
         "data.train": f"folder:{pictures(tmp_path / 'pictures')}", "data.crop": "inception",
         "data.workers": 0},
        {"task": "tokenizer", "eval.evaluators": "tokenizer", "checkpoint.keep_best": 0,
         "tokenizer.name": "vqgan", "tokenizer.filters": 4, "tokenizer.channel_multipliers": "1,1",
         "tokenizer.norm_groups": 2, "tokenizer.num_res_blocks": 1,
         "tokenizer.revive_below": 0.1, "tokenizer.adversarial_weight": 0.1,
         "tokenizer.discriminator_filters": 4, "tokenizer.discriminator": "patch",
         "tokenizer.r1_weight": 0.0, "tokenizer.lecam_weight": 0.1, "data.image_size": 16,
         "tokenizer.perceptual_weight": 0.1, "tokenizer.perceptual_weights": "vgg16.safetensors",
         "tokenizer.perceptual_sha256": "0" * 64},
        {"task": "segmentation", "eval.evaluators": "segmentation", "checkpoint.keep_best": 0,
         "data.train": "scenes:tune", "data.limit": 720, "data.image_size": 32,
         "encoder.patch_size": 8, "segmentation.head": "multiscale", "segmentation.width": 4,
         "classifier.num_classes": 11},
    ]  # fmt: skip
    monkeypatch.setattr(assemble.Programs, "compiled", traced)
    monkeypatch.setattr(perceptual, "load", lambda path, digest: {})
    monkeypatch.setattr(perceptual, "distance", lambda weights, *two: losses.l2(*two))
    for number, changes in enumerate(arms):
        if number:  # only options that all tasks share are read to draw
            monkeypatch.setattr(train, "draw", lambda *_: None)
        two_steps = {"batch_size": 360, "optimizer.warmup_steps": 0, "log_every": 1}
        config = frozen(**two_steps, **changes)
        few = jax.devices()[: config.mesh.fsdp]
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, few)
        (tmp_path / str(number)).mkdir()
        with jax.set_mesh(mesh):
            recorder = recording(config, seen)
            folder = Workdir(tmp_path / str(number))
            with Terminal() as screen:
                train.train(recorder, folder, DEFAULT_START, mesh, StopSignal(), screen)
        assemble.mesh_of(recorder)
        assemble.steps_of(recorder, digits("train"))
    with pytest.raises(DataError, match="holds no data set"):
        sources.find("tfds:/nowhere:train", base.WHOLE, recorder.data)
    with pytest.raises(DataError, match="has no folders images and masks"):
        sources.find(f"pairs:{tmp_path}", base.WHOLE, recorder.data)
    vqgan = {"tokenizer.name": "vqgan", "tokenizer.filters": 32,
             "tokenizer.channel_multipliers": "1,2"}  # fmt: skip
    tokenizers.abstract(recording(frozen(**vqgan), seen))
    for kind in ("units", "block"):
        mim = recording(options.Mim(masking=kind), seen, "mim.")
        masking.draw(jax.random.key(0), 1, 4, mim)
    assert set(options.OPTIONS) - seen == set()


# A signal when the last step is done.


def signalled(calls, number, action):
    """`action`, but its call of this number begins with a SIGTERM."""

    def called(*given):
        calls.append(given)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return action(*given)

    return called


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("where", "number", "told"),
    [
        pytest.param("add", 15, "SIGTERM: finishing the step and saving", marks=pytest.mark.slow),
        ("evaluate", 3, ""),
    ],
)
def test_a_signal_after_the_last_step_leaves_the_evaluation_to_the_next_start(
    tmp_path, finished, monkeypatch, capfd, where, number, told
):
    """In the last step (StepLog.add) it is saved first; in the last evaluation it is saved."""
    config, whole, results = finished
    config = config_lib.replaced(config, {"steps_per_call": 1})
    owner = StepLog if where == "add" else train
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, signalled([], number, getattr(owner, where)))
        with pytest.raises(Interrupted) as caught:
            train.train_and_evaluate(config, tmp_path / "run")
    message = "[R1] stopped after the last step, 15, before its evaluation, and saved in "
    assert str(caught.value).startswith(message) and str(tmp_path / "run") in str(caught.value)
    told_all = capfd.readouterr().err
    assert told in told_all and ("finishing" in told_all) == bool(told)
    assert not (tmp_path / "run/results.json").exists()
    assert_equal(state_in(tmp_path / "run", 15), state_in(whole, 15))
    assert train.train_and_evaluate(config, tmp_path / "run") == results


# What the command line asks for reaches the programs.


def test_parts_and_zero_1_of_the_config_reach_the_programs():
    config = tiny_config(
        batch_size=96, accumulation_steps=3, **{"mesh.fsdp": 4, "mesh.fsdp_splits": "optimizer"}
    )
    mesh = assemble.mesh_of(config)
    with jax.set_mesh(mesh):
        real = program.build(config, mesh)
        jaxpr = str(real.train_steps.trace(*real.arguments).jaxpr)
    assert "length=3" in jaxpr
    state = real.state
    kernel = state.params["encoder"]["blocks"]["block_0"]["mlp"]["up"]["kernel"]
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    assert "fsdp" not in kernel.sharding.spec
    moment = moments["encoder"]["blocks"]["block_0"]["mlp"]["up"]["kernel"]
    assert "fsdp" in moment.sharding.spec


def test_a_run_out_of_memory_exits_6_with_what_to_change(tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(train, "train", full)
    with pytest.raises(DeviceError, match="--config.accumulation_steps=2"):
        train.train_and_evaluate(frozen(), tmp_path)


def test_debug_is_short_leaves_a_profile_and_stops_at_the_first_nan(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # put back after --debug's own
    small = [f"--config={DIGITS}", "--debug", "--config.eval.evaluators=classification",
             "--config.checkpoint.keep_best=0", "--config.mim_weight=0", "--config.data.mixup=0",
             "--config.encoder.depth=1", "--config.encoder.width=16",
             "--config.encoder.mlp_dim=16"]  # fmt: skip
    workdir = tmp_path / "good"
    assert cli.run(["train", *small, f"--workdir={workdir}", "--profile=2:3"]) == 0
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    assert json.loads((workdir / "results.json").read_text())["step"] == 20
    bad = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0"]
    assert cli.run(["train", *small, *bad, f"--workdir={tmp_path / 'bad'}"]) == 5
    told = capsys.readouterr().err
    assert "not finite in 1 step, the last" in told and "Traceback" not in told


def test_only_debug_compiles_without_most_optimisations(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    found = []

    def look(*_):
        found.append(jax.config.read("jax_disable_most_optimizations"))
        raise Interrupted("enough")

    monkeypatch.setattr(train_command, "train_and_evaluate", look)
    for extra in (["--debug"], []):
        cli.run(["train", f"--config={DIGITS}", f"--workdir={tmp_path / 'x'}", *extra])
        assert jax.config.read("jax_disable_most_optimizations") is False
    assert found == [True, False]


def test_pictures_are_drawn_once_and_at_the_end(finished, drawn):
    rows = read_metrics(finished[1] / "metrics.jsonl")
    evaluated = [row["step"] for row in rows if "knn/dino_k10" in row]
    assert evaluated == [5, 10, 15] and drawn == [15]
