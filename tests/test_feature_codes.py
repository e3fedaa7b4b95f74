"""Codes of features: spherical k-means, the small network, their folder, and what ids know."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

import supmim
from supmim import cli, tokenizers
from supmim.data import images, run_sources
from supmim.data.augment import views
from supmim.errors import CheckpointError, ConfigError
from supmim.evaluators.lib import code_statistics
from supmim.models.encoder import Encoder
from supmim.tokenizers import feature_codes, fitting, kmeans, small_cnn
from supmim.tokenizers import folder as folder_lib
from supmim.workdir.files import read_results
from tests.conftest import digits, tiny_config

pytestmark = pytest.mark.usefixtures("all_undrawn")

TINY = {"tokenizer.name": "feature_codes", "tokenizer.filters": 8, "tokenizer.network_steps": 6,
        "tokenizer.codebook_size": 16, "tokenizer.fit_images": 64, "data.limit": 96,
        "tokenizer.dtype": "float32"}  # fmt: skip
FLAGS = [
    "--config=digits", "--config.batch_size=48", "--config.data.limit=96",
    "--config.total_epochs=2",
    "--config.encoder.depth=1", "--config.encoder.width=16", "--config.encoder.mlp_dim=16",
    "--config.decoder.width=16", "--config.decoder.mlp_dim=16", "--config.tokenizer.filters=8",
    "--config.tokenizer.network_steps=6", "--config.tokenizer.codebook_size=16",
    "--config.tokenizer.fit_images=64", "--config.eval.evaluators=reconstruction",
    "--config.optimizer.warmup_steps=1", "--config.save_every=1", "--config.eval_every=0",
    "--config.checkpoint.keep_best=0",
]  # fmt: skip
NAMED = "--config.tokenizer.name=feature_codes"


def image_of(count=24):
    return views.to_float(jnp.asarray(digits("test").image[:count]))


@pytest.fixture(scope="module")
def config():
    return run_sources.load(tiny_config(**TINY))[0]


@pytest.fixture(scope="module")
def seen(config):
    return images.training(run_sources.load(config)[1], config.data)


@pytest.fixture(scope="module")
def fitted(config, seen):
    return fitting.fit(config, seen)


def encoder_of(config, image):
    network = feature_codes.of_encoder(config.encoder, config.grid, "float32")
    return network, jax.jit(network.init)(jax.random.key(1), image)["params"]


# Codes.


def test_spherical_codes_are_directions_whatever_the_lengths():
    rng = np.random.default_rng(0)
    directions = np.eye(6, dtype=np.float32)[:4]
    points = directions.repeat(50, axis=0) + 0.05 * rng.normal(size=(200, 6))
    points = np.asarray(kmeans.unit(jnp.asarray(points, jnp.float32)))
    sizes = {"steps": 20, "seed": 3, "images": 1}
    codes = np.asarray(kmeans.fit(points, 4, **sizes, spherical=True))
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-6)
    assert sorted((codes @ directions.T).argmax(axis=1)) == [0, 1, 2, 3]
    plain = np.asarray(kmeans.fit(points, 4, **sizes))
    assert (np.linalg.norm(plain, axis=1) < 0.9999).all()  # means of points, which are shorter


def test_ids_are_those_of_the_nearest_direction_of_centred_features(config):
    image = image_of()
    network, params = encoder_of(config, image)
    sizes = {"codebook_size": 12, "patch_size": 2, "steps": 4, "seed": 0}
    found = feature_codes.fit(network, params, np.asarray(image), **sizes)
    latent = np.asarray(network.apply({"params": params}, 2 * image - 1).latent, np.float64)
    latent -= latent.reshape(-1, latent.shape[-1]).mean(axis=0)
    cosine = latent @ np.asarray(found.params["codes"]).T
    ids = np.asarray(found.encode(image))
    assert ids.shape == (24, 16)
    assert (ids == cosine.argmax(axis=-1)).mean() > 0.99  # float32 beside float64

    patches = np.asarray(image).reshape(24, 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5)
    mean = patches.reshape(24 * 16, 4)[ids.ravel() == 5].mean(axis=0)
    decoded = np.asarray(found.decode(jnp.full((1, 16), 5)))
    np.testing.assert_allclose(decoded[0, :2, :2].ravel(), mean, atol=1e-6)


def test_a_vits_codes_take_images_of_other_sizes(config):
    image = image_of(4)
    network, params = encoder_of(config, image)
    sizes = {"codebook_size": 4, "patch_size": 2, "steps": 2, "seed": 0}
    found = feature_codes.fit(network, params, np.asarray(image), **sizes)
    larger = jax.image.resize(image, (4, 12, 12, 1), "nearest")
    assert found.encode(larger).shape == (4, 36)


# The small network.


def test_strides_multiply_to_the_patch():
    for size in range(1, 33):
        assert np.prod(small_cnn.strides(size), dtype=int) == size
    network = small_cnn.SmallCNN(14, 4)
    shape = jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros((2, 28, 28, 3)))
    assert shape[0].latent.shape == (2, 4, 16)


def test_a_feature_sees_the_surroundings_of_its_patch_alone(fitted):
    image = jnp.zeros((1, 16, 16, 1))
    far = image.at[0, -1, -1].set(1.0)
    features = [
        feature_codes.features(fitted.network, fitted.params["network"], x)[0] for x in (image, far)
    ]
    moved = np.abs(np.asarray(features[1] - features[0])).max(axis=-1).reshape(8, 8)
    assert moved[-1, -1] > 0
    assert not moved[:4, :4].any()


def test_the_small_network_learns_classes_of_images_with_labels_alone():
    changes = {**TINY, "data.limit": 0, "tokenizer.network_steps": 150, "tokenizer.filters": 16,
               "tokenizer.fit_images": 1000,
               "data.labels": 200.0, "data.unlabelled": "rest"}  # fmt: skip
    config, source, eval_source = run_sources.load(tiny_config(**changes))
    learned = small_cnn.train(config, images.training(source, config.data))
    assert learned.top1(images.evaluation(eval_source, config.data)) > 0.7

    class Watched(images.Images):
        def take(self, index, epoch):
            assert max(index) < 200, "an image without a label"
            return super().take(index, epoch)

    watched = images.training(source, config.data)
    watched.__class__ = Watched
    again = small_cnn.train(config, watched)
    same = jax.tree.map(np.array_equal, learned.params, again.params)
    assert all(jax.tree.leaves(same))


# The folder.


def test_a_tokenizer_comes_back_and_is_known_without_arrays(tmp_path, config, fitted):
    fitted.save(tmp_path, "a test")
    back = feature_codes.load(tmp_path)
    assert back.fingerprint() == fitted.fingerprint()
    np.testing.assert_array_equal(back.encode(image_of()), fitted.encode(image_of()))
    half = feature_codes.load(tmp_path, "bfloat16")
    assert half.fingerprint() != fitted.fingerprint()
    shapes = tokenizers.abstract(tiny_config(**TINY))
    named = tokenizers.abstract(tiny_config(**TINY | {"tokenizer.path": str(tmp_path)}))
    for found in (shapes, named):
        assert jax.tree.map(np.shape, found.params) == jax.tree.map(np.shape, fitted.params)
        assert found.sizes == fitted.sizes


def test_a_vits_folder_needs_no_config_of_it(tmp_path, config):
    image = image_of(4)
    network, params = encoder_of(config, image)
    sizes = {"codebook_size": 4, "patch_size": 2, "steps": 2, "seed": 0}
    found = feature_codes.fit(network, params, np.asarray(image), **sizes)
    found.save(tmp_path)
    back = feature_codes.load(tmp_path)
    assert isinstance(back.network, Encoder)
    np.testing.assert_array_equal(back.encode(image), found.encode(image))
    other = {"encoder.width": 32, "encoder.depth": 1, "tokenizer.codebook_size": 4}
    asked = tiny_config(**TINY | other | {"tokenizer.path": str(tmp_path)})
    assert tokenizers.load(asked).fingerprint() == found.fingerprint()


@pytest.mark.parametrize(
    "sizes",
    [{"cnn": {"filters": 10**9}}, {"cnn": {"filters": "8"}}, {"cnn": {}}, {},
     {"vit": {"depth": 10**9, "position_grid": 4}}, {"vit": {"position_grid": "4"}},
     {"cnn": {"filters": 8}, "codebook_size": 15}, {"cnn": {"filters": 8}, "patch_size": 4},
     {"cnn": {"filters": 8}, "patch_size": "2"}],
)  # fmt: skip
def test_a_folder_whose_sizes_are_no_networks_is_refused(tmp_path, fitted, sizes):
    fitted.save(tmp_path)
    note = json.loads((tmp_path / folder_lib.NOTE).read_text())
    rest = {name: note["sizes"][name] for name in ("patch_size", "channels", "codebook_size")}
    note["sizes"] = rest | sizes
    (tmp_path / folder_lib.NOTE).write_text(json.dumps(note))
    with pytest.raises(CheckpointError, match="cannot be used"):
        feature_codes.load(tmp_path)


def test_a_folder_of_other_sizes_than_the_configs_is_told(tmp_path, fitted):
    fitted.save(tmp_path)
    changes = {"tokenizer.path": str(tmp_path), "tokenizer.codebook_size": 32}
    with pytest.raises(ConfigError, match="Set --config.tokenizer.codebook_size=16"):
        tokenizers.load(tiny_config(**TINY | changes))


# What ids know of classes.


def test_class_information_is_a_share_of_the_entropy_of_classes():
    label = np.arange(400) % 4
    exact = np.stack([label, label], axis=1)
    found = code_statistics.class_information(exact, label)
    assert found["class_information"] == pytest.approx(1)
    assert found["floor/class_information"] < 0.05
    half = label[:, None] // 2  # one of two bits
    assert code_statistics.class_information(half, label)["class_information"] == pytest.approx(0.5)
    noise = np.random.default_rng(0).integers(64, size=(400, 1))
    found = code_statistics.class_information(noise, label)
    expected = mutual_info_score(label, noise[:, 0]) / np.log(4)
    assert found["class_information"] == pytest.approx(expected)
    assert abs(found["class_information"] - found["floor/class_information"]) < 0.05
    assert code_statistics.class_information(noise, 0 * label) == {}


# The commands.


def test_a_run_fits_its_own_codes_and_a_folder_gives_the_same_ones(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.run(["train", *FLAGS, NAMED, f"--workdir={run}"]) == 0
    assert "reconstruction/token_accuracy" in read_results(run)
    out = tmp_path / "codes"
    assert cli.run(["tokenizer", "fit", *FLAGS, NAMED, f"--out={out}"]) == 0
    told = capsys.readouterr().out
    assert "its own top-1" in told
    assert "tokenizer/class_information" in told
    assert max(map(len, told.replace(str(tmp_path), "").splitlines())) <= 80
    own, other = (folder_lib.read_note(folder) for folder in (run / "tokenizer", out))
    assert own["sha256"] == other["sha256"]

    path = f"--config.tokenizer.path={out}"
    assert cli.run(["train", *FLAGS, NAMED, path, f"--workdir={tmp_path / 'other'}"]) == 0
    assert read_results(run) == read_results(tmp_path / "other")
    (run / "checkpoints/4").rename(tmp_path / "gone")
    assert cli.run(["train", f"--workdir={run}"]) == 0  # goes on with the codes that it has
    assert read_results(run) == read_results(tmp_path / "other")

    assert cli.run(["tokenizer", "score", *FLAGS, NAMED, path]) == 0
    assert "floor/class_information" in capsys.readouterr().out
    out.rename(tmp_path / "moved")  # the encoder alone needs no tokenizer
    assert (
        cli.run(["evaluate", f"--workdir={tmp_path / 'other'}", "--evaluators=classification"]) == 0
    )


@pytest.mark.slow
def test_codes_of_a_models_features_are_fitted_and_trained_with(tmp_path, capsys):
    first, out = tmp_path / "first", tmp_path / "codes"
    assert cli.run(["train", *FLAGS, "--config.mim_weight=0", f"--workdir={first}",
                    "--config.eval.evaluators=classification"]) == 0  # fmt: skip
    fit = [
        "tokenizer",
        "fit",
        *FLAGS,
        NAMED,
        f"--model={first}",
        "--config.tokenizer.dtype=float32",
    ]
    assert cli.run([*fit, f"--out={out}"]) == 0
    image = np.asarray(digits("test").image[:8])
    features = supmim.load(first).patch_features(image).reshape(8, 16, -1)
    found = feature_codes.load(out)
    cosine = (features - np.asarray(found.params["mean"])) @ np.asarray(found.params["codes"]).T
    ids = np.asarray(found.encode(views.to_float(jnp.asarray(image))))
    assert (ids == cosine.argmax(axis=-1)).mean() > 0.99
    flags = [f"--config.tokenizer.path={out}", "--config.tokenizer.dtype=float32"]
    flags += ["--config.total_epochs=1", "--config.eval.evaluators=classification"]
    assert cli.run(["train", *FLAGS, NAMED, *flags, f"--workdir={tmp_path / 'second'}"]) == 0


@pytest.mark.slow
def test_fitted_patches_are_those_that_a_run_would_fit(tmp_path):
    assert cli.run(["tokenizer", "fit", *FLAGS, f"--out={tmp_path / 'a'}"]) == 0
    short = ["--config.total_epochs=1", "--config.eval.evaluators=classification"]
    assert cli.run(["train", *FLAGS, *short, f"--workdir={tmp_path / 'b'}"]) == 0
    notes = [folder_lib.read_note(tmp_path / name) for name in ("a", "b/tokenizer")]
    assert notes[0]["sha256"] == notes[1]["sha256"]


def test_a_second_fit_changes_nothing_also_in_bfloat16(tmp_path, capsys):
    fit = ["tokenizer", "fit", *FLAGS, NAMED, f"--out={tmp_path / 'codes'}"]
    for told in ("written", "unchanged"):
        assert cli.run(fit) == 0
        assert f"{told:<11} {tmp_path / 'codes'}" in capsys.readouterr().out


def test_a_folder_of_other_patches_is_told(tmp_path, fitted):
    fitted.save(tmp_path)
    changes = {"tokenizer.path": str(tmp_path), "tokenizer.patch_size": 4, "encoder.patch_size": 4}
    with pytest.raises(ConfigError, match="Set --config.tokenizer.patch_size=2"):
        tokenizers.load(tiny_config(**TINY | changes))


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--config.tokenizer.name=vqgan", "--config.tokenizer.patch_size=16",
       "--config.data.image_size=64", "--config.encoder.patch_size=16",
       "--config.tokenizer.filters=32"], "is trained, not fitted"),
     (["--model=runs/any"], "set config.tokenizer.name=feature_codes"),
     ([NAMED, "--config.tokenizer.path=somewhere"], "names a tokenizer that exists"),
     ([NAMED, "--model=nowhere"], "nowhere does not exist"),
     ([NAMED, "--config.tokenizer.codebook_size=65536", "--config.tokenizer.fit_images=8"],
      "exceeds the .* of 8 images")],
)  # fmt: skip
def test_what_cannot_be_fitted_is_told(tmp_path, capsys, flags, told):
    asked = ["tokenizer", "fit", *FLAGS, *flags, f"--out={tmp_path / 'out'}"]
    assert cli.run(asked) != 0
    message = capsys.readouterr().err.replace("\n", " ")
    assert re.search(told, message), message
    assert not (tmp_path / "out").exists()


def test_a_score_needs_a_folder(capsys):
    assert cli.run(["tokenizer", "score", *FLAGS, NAMED]) == 2
    assert "supmim tokenizer fit" in capsys.readouterr().err
