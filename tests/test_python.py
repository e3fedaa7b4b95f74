"""Training and evaluation from Python: as in a notebook, twice, with the errors of the verbs."""

import asyncio
import threading

import pytest

import supmim
from supmim import cli
from supmim.errors import ConfigError, SupmimError
from supmim.workdir.files import read_results
from tests.conftest import tiny_preset

SHORT = {"data.limit": 96, "batch_size": 16, "log_every": 2, "eval.evaluators": "classification",
         "checkpoint.keep_best": 0, "encoder.depth": 1, "mim_weight": 0.0}  # fmt: skip


def in_a_notebook(function):
    """Run it outside the main thread, where an event loop runs already."""
    found = []

    async def cell():
        found.append(function())

    thread = threading.Thread(target=lambda: asyncio.run(cell()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir, steps = tmp_path_factory.mktemp("python") / "run", []
    results = in_a_notebook(
        lambda: supmim.train_and_evaluate(
            tiny_preset(), workdir, SHORT, progress=lambda *told: steps.append(told)
        )
    )
    return workdir, results, steps


def test_training_in_a_notebook_returns_the_results_and_reports_progress(run, capsys):
    workdir, results, steps = run
    assert {"step": 6, **results} == read_results(workdir)
    assert [told[:2] for told in steps] == [(2, 6), (4, 6), (6, 6)]
    assert all(told[2]["loss"] > 0 for told in steps)
    assert supmim.train_and_evaluate(tiny_preset(), workdir, SHORT) == results
    assert "holds a finished run" in capsys.readouterr().out


def test_evaluation_returns_the_results(run, capsys):
    workdir, results, _ = run
    found = in_a_notebook(lambda: supmim.evaluate(workdir, overrides={"data.limit": 48}))
    assert found.keys() == results.keys()
    told = []
    found = supmim.evaluate(
        str(workdir), ["classification", "knn"], progress=lambda *given: told.append(given)
    )
    assert [given[:2] for given in told] == [(1, 2), (2, 2)]
    assert found.items() >= told[0][2].items() and "knn/recall_at_1" in told[1][2]
    assert found["classification/top1"] == results["classification/top1"]
    assert "knn/recall_at_1" in found and "knn/recall_at_1" in capsys.readouterr().out
    assert supmim.evaluate(workdir, "classification").keys() == results.keys()


PRESET = """
from supmim import config as base

def get_config(arm="supmim"):
    config = base.get_config()
    if arm == "broken":
        config.encoder.widht = 3
    return None if arm == "nothing" else base.arm(config, arm)
"""


def test_mistakes_are_told_as_the_verbs_tell_them(run, tmp_path, capsys):
    preset = tmp_path / "preset.py"
    preset.write_text(PRESET)
    wrong = [
        ((f"{preset}:arms", {}), "a preset's arm is supmim, baseline or efficient, not 'arms'"),
        ((f"{preset}:broken", {}), "preset.py, line 7: AttributeError"),
        ((f"{preset}:nothing", {}), "returned NoneType; it must return the config that"),
        ((tmp_path / "none.py", {}), "none.py does not exist. These come with supmim: "),
        ((preset, {"total_epoch": 3}), "config.total_epoch does not exist; did you mean config."),
        ((preset, {"total_epochs": "3"}), "config.total_epochs is '3'"),
        ((preset, {"data": {"limit": -1}}), "config.data.limit is -1; it takes a value from 0"),
    ]
    for (config, overrides), told in wrong:
        with pytest.raises(ConfigError, match=told):
            supmim.train_and_evaluate(config, tmp_path / "run", overrides)
    assert not (tmp_path / "run").exists()
    workdir = run[0]
    for overrides, flag in (({"seed": 3}, "--config.seed=3"), ({}, "--evaluators=fewshots")):
        names = flag.partition("evaluators=")[2] or None
        with pytest.raises(SupmimError) as caught:
            supmim.evaluate(workdir, names, overrides)
        cli.run(["evaluate", f"--workdir={workdir}", flag])
        assert f"supmim: {caught.value}\n" == capsys.readouterr().err
    with pytest.raises(ConfigError, match="config.data.evals does not exist; did you mean"):
        supmim.evaluate(workdir, overrides={"data.evals": "digits:test"})
    with pytest.raises(SupmimError):
        supmim.evaluate(tmp_path / "nowhere")


def test_a_preset_is_a_file_as_on_the_command_line(tmp_path):
    preset = tmp_path / "preset.py"
    preset.write_text(PRESET)
    with pytest.raises(ConfigError, match="config.encoder.num_heads=7"):
        supmim.train_and_evaluate(f"{preset}:baseline", tmp_path / "x", {"encoder.num_heads": 7})
