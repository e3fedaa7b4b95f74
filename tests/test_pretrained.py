"""Starting from another run: its encoder and no more, at any size, mesh and layout, by name."""

import functools
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from orbax.checkpoint import v1 as ocp
from PIL import Image

from supmim import assemble, cli, optimizer, sharding, step, train
from supmim import config as config_lib
from supmim.errors import CheckpointError, ConfigError
from supmim.interop import pretrained
from supmim.interop.load import load
from supmim.models import layers
from supmim.runtime import devices
from supmim.tasks.registry import TASKS
from supmim.workdir.checkpoint import Checkpoints
from tests.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("all_undrawn")

FIXTURES = Path(__file__).parent / "fixtures"
SHORT = {
    "eval.evaluators": "classification", "checkpoint.keep_best": 0, "batch_size": 360,
    "optimizer.warmup_steps": 1,
}  # fmt: skip
STILL = {"optimizer.learning_rate": 1e-12, "optimizer.weight_decay": 0.0}


def frozen(**changes):
    blocks = {} if "task" in changes else {"encoder.depth": 2}  # enough to be scanned
    return tiny_config(**SHORT | blocks | changes)


def encoder_in(workdir, averaged=False):
    state = ocp.load(workdir / "checkpoints" / str(max(steps_of(workdir))))
    if not averaged:
        return state["params"]["encoder"]
    named = {sharding.path_name(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(state)
             if "/average/encoder/" in sharding.path_name(at)}  # fmt: skip
    named = {name.split("/average/encoder/")[1]: x for name, x in named.items()}
    return traverse_util.unflatten_dict(named, sep="/")


def steps_of(workdir):
    return Checkpoints(workdir / "checkpoints", print).steps()


def begun(config, mesh_shape=(8, 1, 1)):
    """The encoder that a run of this config begins with, unrolled."""
    mesh = sharding.make_mesh(*mesh_shape)
    with jax.set_mesh(mesh):
        task = TASKS["supmim"].abstract(config)
        tx = optimizer.create(config.optimizer, lambda _: 0.0)
        make_state = functools.partial(step.create_state, jax.random.key(0), task, tx)
        shapes = assemble.placed_shapes(make_state, mesh, "state")
        loaded = pretrained.load(pretrained.find(config), shapes.params, mesh)
        placement = sharding.of(shapes)
        params = devices.initialised(task.init, jax.random.key(0), placement.params)
        begin = functools.partial(step.begin, task=task, tx=tx)
        return jax.jit(begin, out_shardings=placement)(params, loaded=loaded)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: not np.array_equal(x, y), a, b)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with averaged parameters, learned positions and a mask token, over a fsdp mesh."""
    folder = tmp_path_factory.mktemp("runs")
    config = frozen(**{"optimizer.ema_decay": 0.9, "encoder.positions": "learned",
                       "mim.hidden": "mask_token", "mesh.fsdp": 4})  # fmt: skip
    train.train_and_evaluate(config, folder / "first")
    return folder


def second(runs, **changes):
    """A config that begins with that run's encoder, without MIM."""
    return frozen(**{"init.model": str(runs / "first"), "encoder.positions": "learned",
                     "mim_weight": 0.0} | changes)  # fmt: skip


def test_a_run_begins_with_the_averages_of_another_and_all_else_new(runs):
    config = second(runs, **{"optimizer.ema_decay": 0.5})
    state, expected = begun(config), encoder_in(runs / "first", averaged=True)
    expected.pop("mask_token")
    assert_equal(state.params["encoder"], expected)
    averages = optimizer.evaluated_params(state)
    assert_equal(averages, state.params)
    assert differ(expected["norm"], encoder_in(runs / "first")["norm"])
    assert int(state.step) == 0 and not np.any(state.params["classifier"]["head"]["kernel"])


def test_any_mesh_and_scan_begin_with_the_same_bits(runs):
    plain = begun(second(runs)).params["encoder"]
    scanned = begun(second(runs, **{"encoder.scan": True}), (2, 2, 2)).params["encoder"]
    assert scanned["blocks"]["stack"]["mlp"]["up"]["kernel"].shape[0] == 2
    assert_equal(layers.unstack_blocks(jax.device_get(scanned)), jax.device_get(plain))


def test_another_image_size_resamples_learned_positions_and_a_mask_token_is_taken(runs, capsys):
    config = second(runs, mim_weight=1.0, **{"data.image_size": 16, "tokenizer.image_size": 16,
                                              "mim.hidden": "mask_token"})  # fmt: skip
    encoder = begun(config).params["encoder"]
    stored = encoder_in(runs / "first", averaged=True)
    expected = layers.resample_positions(stored["positions"], 8)
    np.testing.assert_allclose(encoder["positions"], expected, rtol=1e-6, atol=1e-8)
    assert_equal(encoder["mask_token"], stored["mask_token"])
    told = capsys.readouterr().out
    assert f"encoder     of {runs / 'first'}, step 4, averaged parameters\n" in told
    assert "\n  resampled positions, from 4 x 4 to 8 x 8\n" in told


def test_sincos_positions_of_another_grid_are_warned_of():
    """They are no parameters: nothing else tells that the encoder never saw them."""
    stored = tiny_config(**{"data.image_size": 8, "encoder.patch_size": 2})
    larger = {"data.image_size": 16, "encoder.patch_size": 2}
    told = pretrained.fixed_positions(stored, tiny_config(**larger))
    assert "positions of 4 x 4 patches" in told and "8 x 8. To resample" in told
    assert max(map(len, told.splitlines())) <= 80
    flag = told.split("--config.")[1].strip()
    assert flag == "encoder.position_grid=4"
    resampled = tiny_config(**larger, **{"encoder.position_grid": 4})
    assert pretrained.fixed_positions(stored, resampled) == ""
    learned = tiny_config(**larger, **{"encoder.positions": "learned"})
    assert pretrained.fixed_positions(stored, learned) == ""  # the table tells of those


def test_the_run_says_where_its_encoder_is_from_and_needs_it_no_more(runs, tmp_path, capsys):
    source = tmp_path / "first"
    shutil.copytree(runs / "first", source)
    config = second(runs, **STILL, **{"init.model": str(source), "optimizer.frozen": "encoder"})
    workdir = tmp_path / "second"
    results = train.train_and_evaluate(config, workdir)
    assert "\n  ignored   classifier, decoder, mask_token\n" in capsys.readouterr().out
    noted = json.loads((workdir / "results.json").read_text())["init"]
    assert noted["step"] == 4 and noted["averaged"] and len(noted["sha256"]) == 64
    expected = encoder_in(source, averaged=True)
    expected.pop("mask_token")
    assert_equal(encoder_in(workdir), expected)
    shutil.rmtree(source)
    (workdir / "results.json").unlink()
    assert train.train_and_evaluate(config, workdir) == results
    assert json.loads((workdir / "results.json").read_text())["init"] == noted
    assert cli.run(["evaluate", f"--workdir={workdir}"]) == 0
    assert json.loads((workdir / "results.json").read_text())["init"] == noted
    assert f"sha256: {noted['sha256']}" in (workdir / "report.html").read_text()
    assert train.train_and_evaluate(config, workdir) == results


def test_an_encoder_of_another_kind_is_refused_by_all_its_options(runs, tmp_path):
    config = second(runs, **{"encoder.width": 32, "encoder.gelu": "exact", "data.channels": 3,
                             "encoder.dropout": 0.1, "encoder.scan": True})  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        train.train_and_evaluate(config, tmp_path / "run")
    message = str(caught.value)
    assert "config.encoder.width: 16 there, 32 here" in message
    flags = "--config.encoder.width=16 --config.encoder.gelu=tanh --config.data.channels=1"
    assert set(flags.split()) == {w for w in message.split() if w.startswith("--")}
    assert not (tmp_path / "run/config.json").exists() and not (tmp_path / "run/tokenizer").exists()


def test_a_checkpoint_that_its_run_deletes_meanwhile_exits_4(tmp_path):
    """Between `find` and `load`; what is wrong with one that is there is no matter of deletion."""
    origin, mesh = (
        {"workdir": str(tmp_path), "step": 7, "averaged": False},
        sharding.make_mesh(8, 1, 1),
    )
    with pytest.raises(CheckpointError, match="checkpoints/7 is no longer there.*Start again"):
        pretrained.read(origin, mesh)
    (tmp_path / "checkpoints/7").mkdir(parents=True)
    (tmp_path / "checkpoints/7/digests.json").write_text("{}")
    with pytest.raises(Exception, match=".") as caught:
        pretrained.read(origin, mesh)
    assert not isinstance(caught.value, CheckpointError)


def test_what_cannot_be_begun_with_exits_4_and_harms_nothing(runs, tmp_path):
    def told(workdir):
        with pytest.raises(CheckpointError) as caught:
            pretrained.find(second(runs, **{"init.model": str(workdir)}))
        return str(caught.value)

    assert "nowhere does not exist: give a workdir" in told(tmp_path / "nowhere")
    empty, tokenizer, damaged = (tmp_path / name for name in ("empty", "tokenizer", "damaged"))
    for folder, config in ((empty, second(runs)), (tokenizer, tokenizer_config())):
        folder.mkdir()
        (folder / "config.json").write_text(config_lib.to_json(config))
    assert "has no checkpoint yet" in told(empty)
    assert "holds a tokenizer" in told(tokenizer)
    shutil.copytree(runs / "first", damaged)
    files = sorted(path for path in (damaged / "checkpoints/4").rglob("d/*") if path.is_file())
    files[0].write_bytes(b"")
    before = sorted(damaged.rglob("*"))
    assert "SHA-256 differs" in told(damaged) and before == sorted(damaged.rglob("*"))


def tokenizer_config():
    return frozen(**{"task": "tokenizer", "eval.evaluators": "tokenizer", "tokenizer.name": "vqgan",
                     "tokenizer.filters": 32, "tokenizer.channel_multipliers": "1,1"})  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """A folder of timm with a ViT for images of 16 x 16, LayerScale and registers."""
    folder = tmp_path / "published"
    folder.mkdir()
    fixture = FIXTURES / "timm_vit_dinov2_reg"
    shutil.copy(f"{fixture}.safetensors", folder / "model.safetensors")
    view = {"input_size": [3, 16, 16], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    model = json.loads(fixture.with_suffix(".json").read_text())
    stored = {"architecture": "vit_tiny", "model_args": model, "pretrained_cfg": view}
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


LIKE_PUBLISHED = {
    "data.channels": 3, "data.image_size": 24, "mim_weight": 0.0, "encoder.patch_size": 4,
    "encoder.width": 48, "encoder.depth": 2, "encoder.num_heads": 3, "encoder.mlp_dim": 192,
    "encoder.positions": "learned", "encoder.pool": "cls", "encoder.gelu": "exact",
    "encoder.layer_scale": 1e-4, "encoder.registers": 4,
}  # fmt: skip


def test_a_run_begins_with_a_vit_of_timm(published, capsys):
    config = tiny_config(**LIKE_PUBLISHED, **{"init.model": str(published)})
    encoder = begun(config).params["encoder"]
    expected = load(published).params["encoder"]
    assert_equal(encoder["blocks"], expected["blocks"])
    assert_equal(encoder["embedding"], expected["embedding"])
    np.testing.assert_allclose(
        encoder["positions"],
        layers.resample_positions(expected["positions"], 6),
        rtol=1e-6,
        atol=1e-8,
    )
    told = capsys.readouterr().out
    count = sum(leaf.size for leaf in jax.tree.leaves(expected))
    arrays = len(jax.tree.leaves(expected))
    assert told.startswith(f"encoder     of {published}\n  loaded    {arrays} arrays, {count:,} ")
    assert "\n  resampled positions, from 4 x 4 to 6 x 6\n" in told and "  new  " not in told
    assert told.endswith("\n  ignored   classifier\n")
    origin = pretrained.find(config)
    assert origin["model"] == str(published) and len(origin["sha256"]) == 64
    (published / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="safetensors"):
        pretrained.find(config)


def test_a_vit_of_another_kind_is_refused_with_the_flags_that_fit(published):
    config = tiny_config(**LIKE_PUBLISHED | {"encoder.pool": "gap", "encoder.layer_scale": 0.0},
                         **{"init.model": str(published)})  # fmt: skip
    told = r"--config.encoder.pool=cls --config.encoder.layer_scale=1e-05"
    with pytest.raises(ConfigError, match=told):
        pretrained.find(config)


@pytest.mark.slow
def test_a_published_vit_is_evaluated_on_pretend_devices_and_its_programs_are_kept(
    published, tmp_path
):
    """Its config is read before JAX may look for devices, and after the variables are set."""
    given = ["evaluate", f"--model={published}", f"--out={tmp_path / 'out'}", "--fake-devices=2"]
    given += ["--config.data.train=digits:train", "--evaluators=knn", "--config.data.limit=32"]
    environment = {k: x for k, x in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "supmim", *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache/supmim").rglob("*-cache"))


def test_a_published_vit_is_evaluated_without_a_run(published, runs, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for number in range(3):
            folder = tmp_path / "photos" / part / f"class_{number}"
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = np.clip(rng.normal(60 + 70 * number, 20, (18, 20, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    where = [f"--model={published}", f"--out={tmp_path / 'out'}"]
    data = [f"--config.data.train=folder:{tmp_path / 'photos'}", "--config.data.workers=0",
            "--config.eval.batch_size=16"]  # fmt: skip
    assert cli.run(["evaluate", *where, "--evaluators=knn", *data]) == 0
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["knn/recall_at_1"] == 1.0 and stored["checkpoint"]["model"] == str(published)
    assert stored["checkpoint"]["digest"] == load(published).sha256
    page = (tmp_path / "out" / "report.html").read_text()
    (command,) = re.findall("<pre>supmim evaluate(.*?)</pre>", page, re.S)
    args = shlex.split(html.unescape(command).replace("\\\n", ""))
    assert args == [*where, "--evaluators=knn", *data]
    assert cli.run(["evaluate", *where, "--evaluators=classification", *data]) == 3
    assert "the model's classes are not those of the images" in capsys.readouterr().err
    assert cli.run(["evaluate", where[0]]) == 2
    assert cli.run(["evaluate", where[0], f"--out={tmp_path / 'no'}", "--evaluators=knn"]) == 3
    assert "no images are given; set --config.data.train=" in capsys.readouterr().err
    run = f"--model={runs / 'first'}"
    assert cli.run(["evaluate", run, where[1]]) == 2
    assert f"evaluate it with --workdir={runs / 'first'}" in capsys.readouterr().err
