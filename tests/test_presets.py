"""Presets by name, and presets of one's own."""

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
