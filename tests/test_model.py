"""supmim.load and Model: outputs are those that evaluators see, for images in any form."""

import dataclasses
import functools
import io
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import supmim
from supmim import assemble, optimizer
from supmim import config as config_lib
from supmim.commands import evaluate
from supmim.data import images, sources
from supmim.data.bad_records import BadRecords
from supmim.errors import CheckpointError, ConfigError, DataError
from supmim.workdir import model as model_json
from supmim.workdir.files import read_config
from tests.conftest import digits
from tests.test_evaluate import stored_run
from tests.test_segmentation import SMALL as SEGMENTATION
from tests.test_tokenizer_training import small_config as tokenizer_config

VIEW = {"data.image_size": 12, "data.eval_resize": 14, "encoder.patch_size": 4,
        "tokenizer.patch_size": 4, "mim.hidden": "mask_token"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("model") / "run"
    return stored_run(workdir, noise=0.1, **VIEW)


@pytest.fixture(scope="module")
def model(run):
    return supmim.load(run)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of several sizes, colours and orientations, and one in a folder of its own."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for number, (mode, height, width) in enumerate(
        [
            ("L", 20, 31),
            ("RGB", 40, 17),
            ("RGBA", 9, 9),
            ("P", 30, 30),
            ("I;16", 12, 50),
            ("1", 8, 8),
        ]
    ):
        pixels = rng.integers(0, 255, (height, width, 4), np.uint8)
        image = {
            "L": lambda x: Image.fromarray(x[..., 0]),
            "RGB": lambda x: Image.fromarray(x[..., :3]),
            "RGBA": lambda x: Image.fromarray(x),
            "P": lambda x: Image.fromarray(x[..., :3]).quantize(20),
            "I;16": lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257),
            "1": lambda x: Image.fromarray(x[..., 0] > 127),
        }[mode](pixels)
        image.save(folder / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(rng.integers(0, 255, (40, 24, 3), np.uint8)).resize((96, 48))
    turned.save(folder / "6.jpg", exif=exif)
    return sorted(folder.iterdir())


def seen_by_evaluators(workdir, tmp_path):
    """Embeddings and logits of the evaluation source, as Predictions has them."""
    config = read_config(workdir)
    trained = evaluate.model_config(config, config)
    labelled = config.facts.has_labels
    source, eval_source = sources.load(config.data, labelled)
    mesh = assemble.mesh_of(config)
    with jax.set_mesh(mesh):
        restored = evaluate.restore(trained, workdir, "", mesh)
        task, bad = evaluate.abstract_task(trained), BadRecords(tmp_path / "bad.jsonl", print)
        found = assemble.create_predictions(config, task, source, eval_source, mesh, bad)
        params = optimizer.evaluated_params(restored.state)
        return found.of(params, "eval"), [eval_source[i].image for i in range(len(eval_source))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer.ema_decay": 0.5, "encoder.scan": True, "encoder.depth": 2},
        {"encoder.pool": "map", "classifier.rep_size": 6, "encoder.layer_scale": 0.1},
        {"encoder.pool": "cls", "encoder.registers": 2, "classifier.loss": "sigmoid"},
    ],
)
def test_outputs_are_those_that_evaluators_see(changes, run, tmp_path):
    workdir = stored_run(tmp_path / "run", 0.1, **VIEW, **changes) if changes else run
    found, given = seen_by_evaluators(workdir, tmp_path)
    model = supmim.load(workdir)
    given = given[:40]
    np.testing.assert_allclose(model.embed(given), found["embedding"][:40], atol=2e-6)
    logits = found["logits"][:40]
    assert logits.std() > 0.01
    squash = jax.nn.sigmoid if "classifier.loss" in changes else jax.nn.softmax
    for named, row in zip(model.predict(given, top=3), squash(logits), strict=True):
        order = np.argsort(-row)[:3]
        assert [name for name, _ in named] == [str(i) for i in order]
        np.testing.assert_allclose([p for _, p in named], row[order], rtol=1e-5)
    if not changes:  # the embedding is the mean of the patches
        features = model.patch_features(given)
        assert features.shape == (40, 3, 3, 16) and features.dtype == np.float32
        np.testing.assert_allclose(features.mean((1, 2)), model.embed(given), atol=1e-6)


def test_preprocess_is_the_evaluation_view_of_files_pillow_images_and_arrays(model, files):
    folder = f"folder:{files[0].parent}"
    source = sources.find(folder, "all", model.config.data, labelled=False)
    crops = images.evaluation(source, model.config.data).read(range(len(files)))["image"]
    expected = model.preprocess(files)
    assert expected.shape == (7, 12, 12, 1) and expected.dtype == np.float32
    np.testing.assert_allclose(expected, crops / 127.5 - 1, atol=2e-7)
    opened = [Image.open(io.BytesIO(path.read_bytes())) for path in files]
    np.testing.assert_array_equal(model.preprocess([*map(str, files)]), expected)
    np.testing.assert_array_equal(model.preprocess(opened), expected)
    upright = np.asarray(opened[6].convert("RGB")).swapaxes(0, 1)[:, ::-1]
    mixed = [files[0], opened[1], upright]
    np.testing.assert_array_equal(model.preprocess(mixed), expected[[0, 1, 6]])


def test_one_call_gives_what_single_calls_give(model, files):
    together = model.embed(files)
    alone = np.concatenate([model.embed([path]) for path in files])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.dtype == np.float32 and together.shape == (7, 16)
    array = np.stack([digits("test")[i].image for i in range(5)])
    np.testing.assert_array_equal(model.embed(array), model.embed(list(array)))


def test_few_sizes_are_compiled_and_all_devices_work(run):
    model, image = supmim.load(run), digits("test")[0].image
    for count in (1, 3, 8, 9, 16, 20, 33, 40, 64):
        assert len(model.embed([image] * count)) == count
    program = model._programs["embedding"]
    assert program._cache_size() == 4  # 8, 16, 32, 64
    placed = []

    def watched(params, image):
        placed.append(image)
        return program(params, image)

    model._programs["embedding"] = watched
    done = []
    model.embed([image] * 20, batch_size=8, progress=lambda *args: done.append(args))
    assert done == [(8, 20), (16, 20), (20, 20)]
    for batch in placed:
        assert batch.sharding.device_set == set(jax.local_devices())
        assert {shard.data.shape[0] for shard in batch.addressable_shards} == {1}


def test_apply_is_pure_and_transformed_as_one_likes(model, files):
    x = jnp.asarray(model.preprocess(files))
    plain = jax.jit(model.apply)(model.params, x)
    mapped = jax.jit(jax.vmap(functools.partial(model.apply, model.params)))(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), plain, mapped)
    assert plain.patch_features.shape == (7, 3, 3, 16) and plain.logits.shape == (7, 10)
    np.testing.assert_allclose(plain.embedding, model.embed(files), atol=2e-6)

    @jax.jit
    def loss(params, x):
        return model.apply(params, x).logits[:, 3].sum()

    by_params, by_image = jax.jit(jax.grad(loss, (0, 1)))(model.params, x)
    step, direction = 1e-2, jnp.sign(by_image)
    slope = (loss(model.params, x + step * direction) - loss(model.params, x)) / step
    np.testing.assert_allclose(slope, jnp.abs(by_image).sum(), rtol=0.05)
    assert jax.tree.structure(by_params) == jax.tree.structure(model.params)


def test_a_model_holds_what_inference_uses_and_says_what_it_is(model, run):
    names = set(model.params["encoder"])
    assert names == {"embedding", "blocks", "norm"}  # without the mask token of its training
    assert model.class_names == tuple(map(str, range(10)))
    counts = 16 * 16 + 16 + 2_224 + 2 * 16, 16 * 10 + 10  # embedding, block, norm; head
    assert model.config == read_config(run) and model.num_parameters == sum(counts)
    assert "stack" not in model.params["encoder"]["blocks"]
    again = supmim.load(str(run))
    assert again.sha256 == model.sha256
    moved = jax.tree.map(lambda leaf: leaf, model.params)
    moved["encoder"]["norm"]["bias"] = moved["encoder"]["norm"]["bias"].at[0].add(1e-3)
    again.params = moved
    del again.sha256
    assert again.sha256 != model.sha256


GREY = np.zeros((9, 9, 1), np.uint8)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "the list is empty"),
        (np.zeros((0, 8, 8, 1), np.uint8), "the list is empty"),
        ("image.jpg", r"give a list, e.g. model.embed\(\['image.jpg'\]\)"),
        (Image.fromarray(GREY[..., 0]), "give a list"),
        (GREY, r"uint8\[9, 9, 1\]; an array has the form \[images, height, width, 1 or 3\]"),
        (np.zeros((2, 9, 9, 3)), r"image 0 is float64\[9, 9, 3\]; arrays of images are uint8"),
        ([GREY, GREY.astype(np.float32) / 255], r"image 1 is float32\[9, 9, 1\]"),
        ([np.zeros((9, 9, 4), np.uint8)], r"image 0 is uint8\[9, 9, 4\]"),
        ([GREY, GREY[:0]], r"image 1 has no pixels: \[0, 9, 1\]"),
        ([Image.fromarray(np.zeros((9, 9), np.float32))], "image 0 cannot be read: floating-point"),
        ([GREY, 3], "image 1 is a int; give uint8 arrays, PIL images or paths"),
        (iter([GREY]), "are a list_iterator; give a list or a uint8 array"),
        (["/nowhere/a.png"], "/nowhere/a.png cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_image_is_refused_by_name(given, told, model):
    for method in (model.embed, model.preprocess):
        with pytest.raises(DataError, match=told):
            method(given)


def test_a_damaged_file_is_refused_by_name(model, tmp_path):
    for name, content in (("empty.png", b""), ("cut.jpg", b"\xff\xd8\xff\xe0" + bytes(50))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            model.embed([GREY, tmp_path / name])
    Image.effect_noise((90, 90), 50).save(tmp_path / "cut.png")
    cut = (tmp_path / "cut.png").read_bytes()[:4000]
    (tmp_path / "cut.png").write_bytes(cut)
    with (
        Image.open(tmp_path / "cut.png") as image,
        pytest.raises(DataError, match="image 0 cannot be read"),
    ):
        model.embed([image])
    with pytest.raises(ConfigError, match="top=0"):
        model.predict([GREY], top=0)


def test_a_segmentation_run_is_an_encoder_without_classes(tmp_path):
    model = supmim.load(stored_run(tmp_path / "run", 0.1, **SEGMENTATION))
    assert model.class_names == () and set(model.params) == {"encoder"}
    assert model.embed([np.repeat(GREY, 3, -1)]).shape == (1, 16)
    out = jax.jit(model.apply)(model.params, np.zeros((2, 32, 32, 1), np.float32))
    assert out.logits is None and out.patch_features.shape == (2, 8, 8, 16)
    with pytest.raises(ConfigError, match="has no classifier, so it cannot predict classes"):
        model.predict([GREY])


def test_a_classifier_that_was_not_trained_predicts_nothing(tmp_path):
    model = supmim.load(stored_run(tmp_path / "run", 0.1, class_weight=0.0, **VIEW))
    assert model.class_names == () and set(model.params) == {"encoder"}
    with pytest.raises(ConfigError, match="has no classifier, so it cannot predict classes"):
        model.predict([GREY])


def test_what_holds_no_encoder_is_refused(run, tmp_path):
    for place, told in (("nowhere", "does not exist: give a workdir"), (".", "holds no model")):
        with pytest.raises(CheckpointError, match=told):
            supmim.load(tmp_path / place)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"pytorch_model.bin is a pickle[^$]*weights_only"
        ):
            supmim.load(tmp_path / "hub")
        (tmp_path / "hub" / "config.json").write_text("{}")  # as a hub's folder has it
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"")
    (tmp_path / "hub" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="config.json of a timm model: it is nested too deep"):
        supmim.load(tmp_path / "hub")


def test_files_of_others_in_a_workdir_do_not_hide_its_run(model, run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    (workdir / "embeddings.pkl").write_bytes(b"\x80\x04.")
    (workdir / "model.safetensors").write_bytes(b"")
    assert supmim.load(workdir).sha256 == model.sha256


def test_a_timm_folder_without_weights_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "vit_x", "pretrained_cfg": {}}')
    with pytest.raises(CheckpointError, match="holds no model: .*config.json and model.safe"):
        supmim.load(tmp_path)


def test_a_workdir_whose_classes_do_not_fit_its_head_is_refused(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    about = model_json.read(workdir) or model_json.of(read_config(workdir), tuple("0123456789"))
    model_json.write(workdir, dataclasses.replace(about, class_names=("cat", "dog")))
    with pytest.raises(CheckpointError, match=r"model.json names 2 classes, but the model has 10"):
        supmim.load(workdir)


def test_a_workdir_without_a_sound_encoder_is_refused(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    (note,) = (workdir / "checkpoints").glob("*/digests.json")
    stored = [path for path in note.parent.rglob("*") if path.is_file()]
    largest = max(stored, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(CheckpointError, match="step 15 of .* is damaged: .*supmim evaluate"):
        supmim.load(workdir)
    shutil.rmtree(note.parent)
    with pytest.raises(CheckpointError, match="has no checkpoint yet; train it with: supmim train"):
        supmim.load(workdir)
    (workdir / "config.json").write_text(config_lib.to_json(tokenizer_config()))
    with pytest.raises(CheckpointError, match="holds a tokenizer, which has no encoder"):
        supmim.load(workdir)


def test_importing_supmim_imports_no_third_party_module():
    script = """
import sys
before = set(sys.modules)
import supmim
names = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - sys.stdlib_module_names))
print(*[name for name in supmim.__all__ if name not in dir(supmim)])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split("\n") == ["supmim", "", ""], done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        supmim.lod  # noqa: B018
