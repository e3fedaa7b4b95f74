"""Replay of a post-mortem: the same steps, to the bit, and what in them is not finite."""

import json
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from supmim import cli, train
from supmim import config as config_lib
from supmim.data import stream
from supmim.data.augment import views
from supmim.errors import NumericsError
from supmim.storage import paths
from tests import bucket_servers
from tests.conftest import digit_views, digits, tiny_preset

pytestmark = pytest.mark.usefixtures("all_undrawn")

SPOILED = range(6, 11)  # steps that have an image which becomes NaN


def replay(path, capsys):
    """Exit code of the verb, its lines from the first step on, and its errors."""
    capsys.readouterr()
    code = cli.run(["replay", f"--postmortem={path}"])
    out, err = capsys.readouterr()
    return code, [line for line in out.splitlines() if line[:4] in ("step", "  gr", "  im")], err


def files(workdir):
    """File -> time of its last change; without the save that may have been going on at the end."""
    every = [path for path in workdir.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime for path in every if "checkpoints/10" not in str(path)}


@pytest.fixture(scope="module")
def ended():
    """The post-mortem of a run that ended with exit code 5, and the first image of each step."""
    config = config_lib.validate(
        tiny_preset(**{"encoder.depth": 1, "mim_weight": 0.0, "save_every": 5})
    )
    read = stream.Training(digit_views("train", config), 0, 96, np.arange(96))
    index = [int(read(number - 1)[0]["index"][0]) for number in SPOILED]
    spoiled = digits("train").image[index]

    def to_float(image, to_float=views.to_float):
        found = (image[:, None] == spoiled[None]).all(axis=(2, 3, 4)).any(axis=1)
        return jnp.where(found[:, None, None, None], jnp.nan, to_float(image))

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(views, "to_float", to_float)
        with pytest.raises(NumericsError, match="supmim replay --postmortem="):
            train.train_and_evaluate(config, Path(folder))
        yield Path(folder) / "postmortem.json", index


def test_steps_are_taken_again_and_what_is_not_finite_is_told(ended, capsys):
    path, index = ended
    about = json.loads(path.read_text())
    assert about["checkpoint"]["step"] == 5 and about["checkpoint"]["digest"]
    before = files(path.parent)
    code, lines, _ = replay(path, capsys)
    assert code == 0 and len(lines) == 15
    for number, image, (step, gradients, images) in zip(
        SPOILED, index, zip(lines[::3], lines[1::3], lines[2::3], strict=True), strict=True
    ):
        assert step == f"step {number:<7}as in the run; not finite: class_loss, grad_norm, loss"
        assert "gradients not finite in 22 of 22 arrays: classifier/head/bias, " in gradients
        name = digits("train").name_of(image)
        assert images == f"  images    not finite by themselves, 1 of 96: {name}"
    assert before == files(path.parent)


@pytest.mark.slow
def test_steps_are_taken_again_from_a_bucket(ended, capsys, monkeypatch):
    with bucket_servers.google(monkeypatch):
        run = paths.path(f"gs://{bucket_servers.BUCKET}/run")
        paths.upload(ended[0].parent, run)
        code, lines, _ = replay(run / "postmortem.json", capsys)
    assert code == 0 and len(lines) == 15
    assert all("as in the run; not finite: class_loss" in line for line in lines[::3])


def test_a_replay_that_differs_says_in_what(ended, tmp_path, capsys):
    shutil.copytree(ended[0].parent, tmp_path / "copy")
    path = tmp_path / "copy/postmortem.json"
    about = json.loads(path.read_text())
    about["steps"][0]["index"][0] += 1
    path.write_text(json.dumps(about))
    lines = replay(path, capsys)[1]
    assert "differs from the run in index" in lines[0] and "as in the run" in lines[3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("no file", "there is no"),
        ("no checkpoint", "the run reached these steps from "),
        ("another checkpoint", "it has been written again since"),
        ("damaged", "is damaged"),
        ("old", "written by an older supmim"),
        ("bit", "has changed since it was written"),
    ],
)
def test_what_cannot_be_replayed_is_told(ended, tmp_path, capsys, change, told):
    shutil.copytree(ended[0].parent, tmp_path / "copy")
    path = tmp_path / "copy/postmortem.json"
    about = json.loads(path.read_text())
    checkpoint = tmp_path / f"copy/checkpoints/{about['checkpoint']['step']}"
    if change == "no file":
        path.unlink()
    elif change == "no checkpoint":
        shutil.rmtree(checkpoint)
    elif change == "another checkpoint":
        about["checkpoint"]["digest"] = "0" * 64
        path.write_text(json.dumps(about))
    elif change == "damaged":
        path.write_text("{")
    elif change == "old":
        path.write_text('{"seed": 0, "steps": []}')
    else:
        data = next(file for file in checkpoint.rglob("d/*") if file.is_file())
        data.write_bytes(data.read_bytes()[:-1] + b"?")
    code, _, err = replay(path, capsys)
    assert code == 4 and told in err and "Traceback" not in err
