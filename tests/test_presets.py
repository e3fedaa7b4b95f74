"""Presets by name: in a clone, and in a wheel that is installed elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

import supmim
from supmim import cli
from supmim import config as base
from supmim.config import catalogue

ROOT = Path(__file__).parents[1]


def test_a_name_a_path_and_arguments_are_told_apart(tmp_path, monkeypatch):
    digits = ROOT / "configs/digits.py"
    assert catalogue.resolved("digits") == str(digits)
    assert catalogue.resolved("digits:baseline") == f"{digits}:baseline"
    (tmp_path / "digits.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert catalogue.resolved("digits.py:a,b") == "digits.py:a,b"
    assert catalogue.resolved("./digits.py") == "digits.py"
    sweeps = catalogue.FOLDER / "sweeps"
    assert catalogue.resolved("mim_gain", sweeps) == str(ROOT / "configs/sweeps/mim_gain.py")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("digit", "no preset is called digit. Did you mean digits? These come with supmim: cifar"),
        ("x/digits.py", "the file x/digits.py does not exist. Did you mean digits? These come"),
        ("qqq:baseline", "no preset is called qqq. These come with supmim: cifar10, digits, "),
    ],
)
def test_a_preset_that_is_missing_lists_those_there_are(spec, told, capsys):
    assert cli.run(["train", f"--config={spec}", "--workdir=x"]) == 2
    assert capsys.readouterr().err.startswith(f"supmim: {told}")
    with pytest.raises(supmim.errors.ConfigError, match=told.partition(".")[0]):
        supmim.train_and_evaluate(spec, "x")


def test_a_sweep_that_is_missing_lists_those_there_are(tmp_path, capsys):
    assert cli.run(["sweep", "plan", "--sweep=mim_gains", f"--folder={tmp_path}"]) == 2
    told = "no sweep is called mim_gains. Did you mean mim_gain? These come with supmim: mim_abl"
    assert capsys.readouterr().err.startswith(f"supmim: {told}")


def test_presets_and_sweeps_are_listed_with_a_line_each(capsys):
    assert cli.run(["configs"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80 or len(str(ROOT)) > 50
    words = " ".join(told.split())
    assert "digits Handwritten digits, 8 x 8 pixels, bundled with scikit-learn: " in words
    assert "mim_gain The gain from masked image modelling on digits: " in words
    listed = {line.split()[0] for line in told.splitlines() if line[2:3].strip()}
    for path in (*ROOT.glob("configs/*.py"), *ROOT.glob("configs/sweeps/*.py")):
        assert path.stem in listed


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder in which a wheel of the tree is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in names.split("\n"):
        if (ROOT / name).is_file() and name.startswith(("setup.py", "supmim", "configs", "READ")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", tree]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    install = [*pip, "install", "--no-deps", "--no-index", f"--target={target}", wheel]
    subprocess.run(install, check=True, capture_output=True)
    return target


def test_an_installed_wheel_has_the_presets_and_trains_outside_a_clone(installed, tmp_path):
    steps = ["--config.batch_size=750", "--config.total_epochs=1", "--config.eval.evaluators=knn"]
    steps += ["--config.optimizer.warmup_steps=1", "--config.tokenizer.codebook_size=4"]
    script = f"""
import os, sys
sys.path.insert(0, {str(installed)!r})
import supmim, supmim.presets.digits
from supmim import cli
assert supmim.__file__.startswith({str(installed)!r})
assert cli.run(["configs"]) == 0
if __name__ == "__main__":
    sys.exit(cli.run(["train", "--config=digits", "--workdir=run", *{steps!r}]))
"""
    (tmp_path / "main.py").write_text(script)
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"They are the files in {installed}/supmim/presets" in done.stdout
    assert (tmp_path / "run/report.html").is_file()


def test_a_preset_is_made_from_another(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from supmim import config as base\n\n\n"
        "def get_config(arm='supmim'):\n"
        "    config = base.preset(f'digits:{arm}')\n"
        "    config.mim.mask_ratio = 0.5\n"
        "    return config\n"
    )
    mine = base.preset(f"{tmp_path}/mine.py:baseline")
    assert mine.mim.mask_ratio == 0.5 and mine.mim_weight == 0 and mine.encoder.width == 64
