"""The command line: help, usage errors with exit code 2, nothing heavy imported for them."""

import errno
import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from supmim import cli
from supmim import config as config_lib
from supmim.config import tasks
from tests.conftest import tiny_config

DIGITS = str(Path(__file__).parents[1] / "configs/digits.py")


def fails(capsys, *args: str) -> str:
    assert cli.run(args) == 2
    return capsys.readouterr().err


def test_help_names_every_verb_and_fits_80_columns(capsys):
    for args in (
        (),
        ("--help",),
        *((verb, "--help") for verb in cli.VERBS),
        ("tokenizer", "--help"),
        ("tokenizer", "-h"),
        ("tokenizer", "help"),
    ):
        assert cli.run(args) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        if len(args) < 2:
            assert all(verb in text for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["trian"], "'trian' is not a verb of supmim; did you mean train?"),
        (
            ["train", "--wrkdir=x"],
            "--wrkdir is not a flag of supmim train; did you mean --workdir?",
        ),
        (["train", "--confg=digits", "--workdir=x"], "train; did you mean --config?\nSee: "),
        (["train", "--config=digits", "--workdir=x", "--epochs=5"], "mean --config.total_epochs?"),
        (
            ["train", "--config=digits", "--workdir=x", "--config.epochs=5"],
            "no such option: epochs; did you mean config.total_epochs?",
        ),
        (
            ["train", "--config=digits", "--workdir=az://b/x"],
            "--workdir=az://b/x: a folder or file on this machine is needed, or one in a bucket, g",
        ),
        (
            ["train", "--config=digits", "--workdir=x", "--config.init.model=az://b"],
            "config.init.model is az://b: a folder or file on this machine is needed, or one in",
        ),
        (["doctor", "--workdir=az://b/x"], "--workdir=az://b/x: a folder or file on this"),
        (
            ["train", "--config=digits", "--workdir=x", "--config.data.tfds_dir=gs://b"],
            "config.data.tfds_dir=gs://b is in a bucket: read it through a mount (gcsfuse, mount",
        ),
        (
            ["train", "--config=digits", "--workdir=x", "--config.data.local_copy=gs://b"],
            "config.data.local_copy is gs://b: a folder or file on this machine is needed; mount",
        ),
        (["data", "check", "x", "--ignore-lable=3"], "; did you mean --ignore-label?\nSee: "),
        (["tokenizers", "train"], "; did you mean tokenizer?"),
        (["train", f"--config={DIGITS}"], "--workdir is missing"),
        (["train", "--workdir=x", f"--config={DIGITS}", "stray"], "'stray' is not a flag"),
        (["train", "--workdir=/nowhere/x"], "holds no run"),
        (["evaluate", "--workdir=~nobody-here/x"], "~nobody-here/x holds no run"),
        (["train", "--workdir=x", "--config=nope.py"], "the file nope.py does not exist"),
        (["train", "--workdir=x", f"--config={DIGITS}:supmin"], "supmim, baseline or efficient"),
        (["evaluate", "--workdir=/nowhere/x"], "holds no run"),
        (["tokenizer"], "takes import, train, fit, score\n\nsupmim tokenizer: make a tokenizer"),
        (["tokenizer", "trian"], "not 'trian'; did you mean train?\n\nsupmim tok"),
        (["tokenizer", "--from=x"], "takes import, train, fit, score, not '--from=x'\n\n"),
        (["data"], "takes check, prepare, convert, tokens; e.g. "),
        (["train", "--workdir=x", f"--config={DIGITS}", "--debug=x"], "--debug=x: it is a switch"),
    ],
)
def test_usage_errors_are_plain_and_exit_2(capsys, args, told):
    assert told in fails(capsys, *args)


def test_the_help_of_a_verb_says_what_each_word_after_it_does(capsys):
    for name, verb in cli.VERBS.items():
        cli.run([name, "--help"])
        text = capsys.readouterr().out
        assert all(f"  {word} " in text and does in text for word, does in verb.actions.items())
    for name in {name.partition(" ")[0] for name in cli.VERBS if " " in name}:
        cli.run([name, "--help"])
        text = capsys.readouterr().out
        assert all(cli.VERBS[other].summary in text and other in text
                   for other in cli.VERBS if other.startswith(f"{name} "))  # fmt: skip


def test_a_misspelt_option_gets_its_did_you_mean_alone(capsys):
    told = fails(
        capsys, "train", "--workdir=x", f"--config={DIGITS}", "--config.encoder.dpeth=3",
        "--config.data.image_size=9",
    )  # fmt: skip
    assert 'Did you mean "depth" instead of "dpeth"?' in told
    assert "image_size" not in told


def test_a_value_of_the_wrong_type_is_told(capsys):
    told = fails(capsys, "train", "--workdir=x", f"--config={DIGITS}", "--config.encoder.depth=two")
    assert "encoder.depth" in told and "two" in told


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("\n\n1/0", "line 3: ZeroDivisionError"),
        ("def get_config():\n    return {}['boom']", "line 2: KeyError: boom"),
        ("def get_config():\n    return 1 + 'a'", "line 2: TypeError"),
        ("import os\ndef get_config():\n    os.nope", "line 3: AttributeError"),
    ],
)
def test_a_fault_in_a_preset_is_told_with_its_line(capsys, tmp_path, code, told):
    preset = tmp_path / "broken.py"
    preset.write_text(code)
    message = fails(capsys, "train", f"--workdir={tmp_path}", f"--config={preset}")
    assert f"{preset}, {told}" in message


@pytest.mark.parametrize("code", ["return {}", "pass"])
def test_a_preset_that_returns_no_config_is_told(capsys, tmp_path, code):
    preset = tmp_path / "wrong.py"
    preset.write_text(f"def get_config():\n    {code}\n")
    assert "get_config() of the preset returned" in fails(
        capsys, "train", f"--workdir={tmp_path}", f"--config={preset}"
    )


def test_the_workdirs_own_config_takes_overrides(capsys, tmp_path):
    (tmp_path / "config.json").write_text(config_lib.to_json(tiny_config()))
    values = cli.parse("evaluate", [f"--workdir={tmp_path}", "--config.mesh.fsdp=2"])
    assert (
        cli.config_of(cli.VERBS["evaluate"], values).mesh.fsdp == 2
        and values.config.encoder.width == 16
    )
    told = fails(capsys, "train", f"--workdir={tmp_path}", "--config.mesh.fdsp=2")
    assert 'Did you mean "fsdp" instead of "fdsp"?' in told
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    assert "is not a supmim config" in fails(capsys, "train", f"--workdir={tmp_path}")


def test_config_errors_and_help_come_before_jax():
    script = f"""
import sys
from supmim import cli
assert cli.run(["train", "--help"]) == 0
assert cli.run(["train", "--workdir=x", "--config={DIGITS}", "--config.data.image_size=9"]) == 2
assert not {{"jax", "flax", "numpy.linalg"}} & set(sys.modules), "config errors import jax"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "theirs", "level"),
    [([], "", "3"), (["--coordinator=a:1"], "", "2"), ([], "0", "0")],
)
def test_xla_is_quiet_about_slow_compiles_unless_the_environment_asks(
    monkeypatch, flags, theirs, level
):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", theirs)  # and put back after the test
    if not theirs:
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    seen = []

    def run(*_):
        seen.append(os.environ["TF_CPP_MIN_LOG_LEVEL"])

    monkeypatch.setattr(cli, "command", lambda verb: types.SimpleNamespace(run=run))
    assert cli.run(["train", "--workdir=x", f"--config={DIGITS}", *flags]) == 0
    assert seen == [level]


def test_an_unwritable_workdir_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file/run", "x" * 300):
        told = fails(capsys, "train", f"--workdir={tmp_path}/{name}", f"--config={DIGITS}")
        assert "cannot write to the workdir" in told and "choose another --workdir" in told


def test_flags_are_taken_with_dashes_and_with_underscores(tmp_path):
    for flag in ("--fake-devices=8", "--fake_devices=8"):
        values = cli.parse("train", [f"--config={DIGITS}", f"--workdir={tmp_path}", flag])
        assert values.fake_devices == "8"
    assert cli.underscored("--workdir=a-b") == "--workdir=a-b"
    assert cli.parse("train", [f"--config={DIGITS}", "--workdir=x", "--debug"]).debug is True


def raising(error):
    def run(config, flags):
        raise error

    return lambda verb: types.SimpleNamespace(run=run)


def test_ctrl_c_ends_any_verb_with_exit_code_75(monkeypatch, capsys):
    monkeypatch.setattr(cli, "command", raising(KeyboardInterrupt))
    monkeypatch.setattr(cli.streams, "protect", lambda: None)
    monkeypatch.setattr(sys, "argv", ["supmim", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 75
    assert capsys.readouterr().err == "supmim: interrupted\n"


def test_a_full_disk_ends_with_exit_code_4_and_what_to_do(monkeypatch, capsys):
    error = OSError(errno.ENOSPC, "No space left on device", "runs/x/report.html")
    monkeypatch.setattr(cli, "command", raising(error))
    assert cli.run(["doctor"]) == 4
    told = capsys.readouterr().err
    assert told.startswith("supmim: runs/x/report.html cannot be written: No space left on device")
    assert "Free some space, then give the same command again" in told
    monkeypatch.setattr(cli, "command", raising(OSError(errno.EIO, "no", "x")))
    with pytest.raises(OSError, match="no"):
        cli.run(["doctor"])


def test_the_config_is_printed_as_it_would_be_trained_and_nothing_is_trained(tmp_path, capsys):
    given = ["train", f"--config={DIGITS}:baseline", "--config.total_epochs=7", "--print-config"]
    assert cli.run(given) == 0
    config = config_lib.from_json(capsys.readouterr().out, "printed")
    assert config.total_epochs == 7 and config.mim_weight == 0 and config.encoder.width == 64
    assert cli.run([*given, "--debug", f"--workdir={tmp_path / 'x'}"]) == 0
    assert config_lib.from_json(capsys.readouterr().out, "printed").encoder.depth == 2
    assert not (tmp_path / "x").exists()
    assert "--config is missing, e.g. supmim train --config=" in fails(
        capsys, "train", "--print-config"
    )


EIGHT = "--config.batch_size=48"  # divides over the 8 devices of the tests


@pytest.mark.parametrize(
    "args",
    [
        ["embed", "--model={}", "--images=x", "--out=y.npz"],
        ["train", "--config=digits", "--workdir=w", "--config.init.model={}", EIGHT],
        ["train", "--config=digits", "--workdir=w", "--resume={}", EIGHT],
        ["draw", "--model={}", "--images=x", "--out=y"],
    ],
)
def test_a_name_that_is_too_long_is_told_without_a_traceback(args, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(Path("configs").absolute())
    monkeypatch.chdir(tmp_path)
    assert cli.run([arg.format("a" * 300) for arg in args]) == 2
    told = capsys.readouterr().err
    assert told.startswith("supmim: ") and "a" * 300 in told
    assert told.endswith(" cannot be used: File name too long\n")


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path):
    """In flags of every verb, in options, and in the name of the preset."""
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {"workdir", "resume", "step", "folder", "sweep", "out", "from", "tfds_dir", "table",
             "model", "embeddings", "query", "picture", "compile_cache", "results",
             "postmortem", "local_copy"}  # fmt: skip
    for name, verb in cli.VERBS.items():
        values = cli.own_flags(verb)
        texts = [flag for flag, (x, _) in verb.flags.items() if isinstance(x, str | Path)]
        values(["supmim", *(f"--{flag}=~/x" for flag in texts)])
        for flag in texts:
            expected = str(tmp_path / "x") if flag in paths else "~/x"
            assert values[flag].value == expected, (name, flag)
    (tmp_path / "preset.py").write_text(Path(DIGITS).read_text())
    texts = {path for path, option in config_lib.OPTIONS.items()
             if isinstance(option.default, str) and not option.choices}  # fmt: skip
    texts -= {"data.train", "data.eval", "data.unlabelled", "data.labelled_classes",
              "data.eval_classes", "eval.evaluators", "checkpoint.keep_best_metric",
              "tokenizer.channel_multipliers", "tokenizer.perceptual_sha256"}  # fmt: skip
    assert len(texts) == 8
    flags = (f"--config.{path}=~/x" for path in texts)
    values = cli.parse("train", ["--config=~/preset.py", "--workdir=~/run", *flags])
    config = config_lib.flatten(cli.config_of(cli.VERBS["train"], values))
    assert {config[path] for path in texts} == {str(tmp_path / "x")}
    assert values.workdir == str(tmp_path / "run")


def test_help_of_evaluate_names_every_evaluator_and_the_options_that_it_reads(capsys):
    assert cli.run(["evaluate", "--help"]) == 0
    told = capsys.readouterr().out
    assert tasks.EVALUATORS.keys() == tasks.RESULTS.keys()
    for name, (meaning, own) in tasks.EVALUATORS.items():
        assert f"  {name} " in told and meaning.split("; ")[0][:40] in " ".join(told.split())
        classes = importlib.import_module(f"supmim.evaluators.{name}").Evaluator.__mro__[:-1]
        text = "".join(Path(inspect.getfile(one)).read_text() for one in classes)
        read = {path for path in config_lib.OPTIONS if f"config.{path}" in text}
        read = {path for path in read if path.startswith("eval.")} - {"eval.evaluators"}
        assert read == set(own) - {"eval.landmarks"}, name
        assert all(config_lib.OPTIONS[path].in_evaluation for path in own)
    assert "--config.data.eval=" in told and "--coordinator" not in told


def test_help_shows_the_values_of_the_preset_and_the_rest_on_demand(capsys):
    def told(*args):
        assert cli.run(["train", *args]) == 0
        return capsys.readouterr().out

    short = told("--help")
    assert "--config.batch_size=1024\n" in short and "--config.mim.masking=" not in short
    assert "--process-id=" not in short and "supmim train --help=all" in short
    of_preset = told("--config=digits:baseline", "--help")
    assert "--config.batch_size=50\n" in of_preset and "--config.mim_weight=0.0\n" in of_preset
    assert "--config.encoder.width=64\n" in of_preset and "--config.mim.masking" not in of_preset
    everything = told("--config=digits", "--help=all")
    assert all(f"--config.{path}=" in everything for path in config_lib.OPTIONS)
    assert "--process-id=" in everything and "--config.batch_size=50\n" in everything
    assert max(map(len, (short + of_preset + everything).splitlines())) <= 80
    assert "no preset is called digit. Did" in fails(capsys, "train", "--config=digit", "--help")


def test_the_version_is_printed(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"supmim {cli.__version__}\n"
