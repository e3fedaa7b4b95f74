"""supmim export: what is written computes what the model computes, and says what it is."""

import hashlib
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file, save_file

import supmim
from supmim import sharding
from supmim.config import Config, options
from supmim.errors import CheckpointError, ConfigError
from supmim.interop import export, timm
from supmim.model import Model
from tests.test_evaluate import stored_run
from tests.test_vit_interop import config_with, random_params

HOSTILE = ("<script>alert(1)</script>", "a | b\n| c", "`x` [l](http://e)", "\u202edlog", "\x1b[31m")


def model_of(config: Config, class_names=tuple("abcde"), name="runs/tiny") -> Model:
    tree: dict = {}
    for path, array in random_params(config).items():
        *groups, leaf = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = 0.3 * array
    return Model(config, tree, class_names, name)


def images_of(model: Model, count=3):
    side, channels = model.config.data.image_size, model.config.data.channels
    return list(np.random.default_rng(1).integers(0, 256, (count, side, side, channels), np.uint8))


def outputs(model: Model, params=None):
    side, channels = model.config.data.image_size, model.config.data.channels
    x = np.random.default_rng(2).uniform(-1, 1, (3, side, side, channels)).astype(np.float32)
    return x, jax.jit(model.apply)(model.params if params is None else params, x)


@pytest.fixture(scope="module")
def model():
    return model_of(config_with("gap", 3))


@pytest.mark.parametrize("pool", ["gap", "cls", "map"])
@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
def test_out_to_a_timm_folder_and_back_changes_no_bit_of_an_output(pool, positions, tmp_path):
    config = config_with(pool, 1, **({"registers": 2, "layer_scale": 0.1} if pool == "cls" else {}))
    encoder = options.changed(config.encoder, positions=positions)
    model = model_of(options.changed(config, encoder=encoder))
    written = export.export(model, "timm", tmp_path / "out", {})
    assert written.difference == 0
    again = supmim.load(written.folder)
    jax.tree.map(np.testing.assert_array_equal, outputs(model)[1], outputs(again)[1])
    given = [*images_of(model, 2), np.eye(40, 30, dtype=np.uint8)[..., None] * 255]  # the view too
    np.testing.assert_array_equal(again.embed(given), model.embed(given))
    assert again.predict(given) == model.predict(given)

    stored = load_file(tmp_path / "out" / timm.WEIGHTS)
    ours = random_params(model.config)
    table = {} if positions == "learned" else {"pos_embed": 9 * 24}
    count = sum(array.size for array in ours.values()) + sum(table.values())
    assert sum(array.size for array in stored.values()) == count
    assert "pos_embed" in stored and all(array.dtype == np.float32 for array in stored.values())
    fused = sum(name.endswith(("query/kernel", "query/bias")) for name in ours)
    of_probe = 2 if pool == "map" else 0  # its queries are a tensor of their own
    assert len(stored) == len(ours) + len(table) - 2 * fused + of_probe
    first = set(stored) - {n for n in stored if n.startswith(("blocks.", "attn_pool."))}
    tokens = {"cls_token", "reg_token"} if pool == "cls" else set()
    assert first == tokens | {
        "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "norm.weight", "norm.bias", "head.weight", "head.bias",
    }  # fmt: skip


def test_out_to_timm_keeps_how_logits_become_probabilities(tmp_path):
    config = config_with("gap", 3)
    head = options.Classifier(num_classes=5, loss="sigmoid")
    model = model_of(options.changed(config, classifier=head))
    export.export(model, "timm", tmp_path / "out", {})
    again = supmim.load(tmp_path / "out")
    given = images_of(model)
    assert again.predict(given) == model.predict(given)
    assert sum(share for _, share in again.predict(given)[0]) > 1.1
    assert "independent (sigmoid)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_big_vision_takes_a_representation_layer_too(pool, tmp_path):
    config = config_with(pool, 3)
    head = options.Classifier(num_classes=5, rep_size=7, loss="sigmoid")
    model = model_of(options.changed(config, classifier=head))
    written = export.export(model, "big_vision", tmp_path / "out", {})
    again = supmim.load(tmp_path / "out")
    assert again.class_names == tuple("abcde") and written.difference == 0
    jax.tree.map(np.testing.assert_array_equal, outputs(model)[1], outputs(again)[1])
    given = images_of(model, 2) + [np.zeros((30, 19, 3), np.uint8)]  # the view is the same
    assert again.predict(given) == model.predict(given)
    alone = supmim.load(tmp_path / "out" / "model.npz")
    np.testing.assert_array_equal(alone.embed(given[:2]), model.embed(given[:2]))
    with pytest.raises(ConfigError, match="rep_size=7.*use --to=big_vision or --to=stablehlo"):
        export.export(model, "timm", tmp_path / "timm", {})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_stablehlo_takes_any_number_of_images(model, tmp_path):
    export.export(model, "stablehlo", tmp_path / "out", {})
    data = bytearray((tmp_path / "out" / "model.stablehlo").read_bytes())
    program = jax_export.deserialize(data)
    assert program.platforms == ("cpu", "cuda", "tpu")
    x, expected = outputs(model)
    for count in (1, 3):
        found = program.call(x[:count])
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b[:count], atol=1e-5)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["class_names"] == list("abcde") and about["size"] == 12 and about["resize"] == 14
    assert "JAX " + jax.__version__ in (tmp_path / "out" / "README.md").read_text()


def test_an_encoder_alone_has_no_classes(tmp_path):
    config = config_with("gap", 3)
    model = model_of(options.changed(config, classifier=options.Classifier()), ())
    export.export(model, "timm", tmp_path / "out", {})
    again = supmim.load(tmp_path / "out")
    assert again.class_names == () and set(again.params) == {"encoder"}
    assert not [name for name in load_file(tmp_path / "out" / timm.WEIGHTS) if "head" in name]
    with pytest.raises(ConfigError, match="has no classifier"):
        again.predict(images_of(model))


def test_the_card_says_what_the_folder_holds(model, tmp_path):
    results = {"knn/recall_at_1": 0.9876, "classification/loss": 2.0,
               "classification/recall/8": 0.5}  # fmt: skip
    written = export.export(model, "timm", tmp_path / "out", results)
    card = (tmp_path / "out" / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "out" / timm.WEIGHTS).read_bytes()).hexdigest()
    assert written.sha256 == digest and f"model.safetensors: SHA-256 {digest}" in card
    for told in ("5: a, b, c, d, e", "12 x 12, 3 channels, (image / 255 - 0.5) / 0.5",
                 "short side to 14, bilinear, then the central 12 x 12",
                 "| knn/recall_at_1 | 98.76 % |", f"| parameters | {model.num_parameters:,} |",
                 "timm resamples positions bicubically", "from tiny."):  # fmt: skip
        assert told in card
    assert "/loss" not in card and "/8" not in card and str(tmp_path) not in card
    assert f'"local-dir:{tmp_path / "out"}"' in written.usage
    with pytest.raises(ConfigError, match="is not an empty folder; name a new one"):
        export.export(model, "timm", tmp_path / "out", {})
    imported = export.export(supmim.load(tmp_path / "out"), "timm", tmp_path / "again", {})
    card = (imported.folder / "README.md").read_text()
    assert "Imported, not trained by supmim" in card and "digits" not in card


def test_a_licence_is_claimed_only_for_what_was_trained_from_nothing(model, tmp_path):
    begun = options.changed(model.config.init, model="models/dino<v2>")
    tuned = Model(
        options.changed(model.config, init=begun), model.params, model.class_names, "runs/tuned"
    )
    for name, one, licensed in (("own", model, True), ("tuned", tuned, False)):
        export.export(one, "timm", tmp_path / name, {})
        card = (tmp_path / name / "README.md").read_text()
        stored = json.loads((tmp_path / name / timm.CONFIG).read_text())["pretrained_cfg"]
        assert ("license: apache-2.0" in card) == ("license" in stored) == licensed
    assert ", from the encoder of dino&#60;v2&#62;" in card
    export.export(supmim.load(tmp_path / "own"), "timm", tmp_path / "again", {})
    assert "license" not in (tmp_path / "again" / "README.md").read_text()


def test_hostile_names_stay_names(tmp_path):
    model = model_of(config_with("gap", 1), HOSTILE, name="runs/<b>|evil\n# x")
    for to in export.WRITERS:
        out = export.export(model, to, tmp_path / to, {}).folder
        card = (out / "README.md").read_text()
        assert not re.search(r"<|`x|\u202e|\x1b|http:|^# x|\]\(", card, re.M)
        (row,) = [line for line in card.splitlines() if line.startswith("| classes")]
        assert row.count("|") == 3
    stored = json.loads((tmp_path / "timm" / timm.CONFIG).read_text())
    assert tuple(stored["label_names"]) == HOSTILE
    for to in ("timm", "big_vision"):
        assert supmim.load(tmp_path / to).class_names == HOSTILE


def test_what_a_form_has_no_place_for_is_refused(tmp_path):
    for extra, told in (
        ({"layer_scale": 0.1}, "no place for .*attention_scale; export with --to=timm"),
        ({"registers": 2}, "no place for encoder/registers; export with --to=timm"),
        ({"gelu": "exact"}, "GELU by tanh, not the exact one; use --to=timm"),
    ):
        with pytest.raises((ConfigError, CheckpointError), match=told):
            export.export(
                model_of(config_with("cls", 1, **extra)), "big_vision", tmp_path / "x", {}
            )
    with pytest.raises(ConfigError, match="--to=onnx is not one of timm, big_vision, stablehlo"):
        export.export(model_of(config_with("cls", 1)), "onnx", tmp_path / "x", {})
    assert not list(tmp_path.iterdir())


def test_what_was_written_wrong_leaves_nothing(model, tmp_path, monkeypatch):
    right = timm.tensors_of

    def wrong(params, patch_size):
        tensors = right(params, patch_size)
        tensors["norm.bias"] = tensors["norm.bias"] + 0.01
        return tensors

    monkeypatch.setattr(timm, "tensors_of", wrong)
    with pytest.raises(CheckpointError, match="computes something else: off by 0.0"):
        export.export(model, "timm", tmp_path / "out", {})
    assert not list(tmp_path.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        export.export(model, "timm", tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_not_finite_or_all_zero_are_compared_too(model):
    zeros = jax.tree.map(jnp.zeros_like, model.params["classifier"])
    untrained = Model(model.config, model.params | {"classifier": zeros}, "abcde", "x")
    other = jax.jit(untrained.apply)
    assert export.compared(untrained, lambda image: other(untrained.params, image)) == 0

    def broken(image):
        out = other(untrained.params, image)
        return out._replace(logits=out.logits + jnp.nan)

    with pytest.raises(CheckpointError, match="off by nan"):
        export.compared(untrained, broken)


def test_a_decoder_costs_nothing_once_trained(tmp_path):
    """Law 7: the compiled inference of a SupMIM encoder is that of the baseline."""
    counted = []
    for weight in (1.0, 0.0):
        workdir = stored_run(
            tmp_path / str(weight), **{"mim_weight": weight, "mim.hidden": "mask_token"}
        )
        model = supmim.load(workdir)
        image = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
        program = jax.jit(model.apply).lower(model.params, image)
        names = {
            sharding.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(model.params)
        }
        counted.append((program.compile().cost_analysis()["flops"], program.as_text(), names))
    assert counted[0] == counted[1] and counted[0][0] > 0


def test_an_empty_folder_is_written_into(model, tmp_path, monkeypatch):
    """It stays the same folder: it may be a mount, or the one that the shell is in."""
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    monkeypatch.chdir(out)
    written = export.export(model, "big_vision", Path(), {})
    assert written.folder == out and out.stat().st_ino == before
    assert {file.name for file in out.iterdir()} == {"README.md", "model.json", "model.npz"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and str(out) in written.usage
    assert 'supmim.load("out")' in (out / "README.md").read_text()


def timm_folder(path, changes=None, **config_changes):
    """A folder of timm with the mean and std of ImageNet and no names, if not changed."""
    model = model_of(config_with("gap", 3))
    export.export(model, "timm", path, {})
    tensors = load_file(path / timm.WEIGHTS) | (changes or {})
    save_file({n: x for n, x in tensors.items() if x is not None}, path / timm.WEIGHTS)
    stored = json.loads((path / timm.CONFIG).read_text())
    stored["pretrained_cfg"] |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    del stored["label_names"]
    (path / timm.CONFIG).write_text(json.dumps(stored | config_changes))
    return model


def test_a_timm_folder_with_another_mean_and_without_names(tmp_path):
    original = timm_folder(tmp_path / "a")
    model = supmim.load(tmp_path / "a")
    assert model.class_names == tuple("01234") and model.config.data.eval_resize == 14
    given = images_of(model)
    x = (model.preprocess(given) + 1) / 2
    normal = (x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    expected = jax.jit(original.apply)(original.params, normal)
    np.testing.assert_allclose(model.embed(given), expected.embedding, atol=1e-5)
    timm_folder(tmp_path / "b", label_names=list(HOSTILE))
    named = supmim.load(tmp_path / "b")
    assert named.class_names == HOSTILE and named.predict(given[:1])[0][0][0] in HOSTILE
    timm_folder(tmp_path / "c", label_names=["too", "few"])
    assert supmim.load(tmp_path / "c").class_names == tuple("01234")


@pytest.mark.parametrize(
    ("tensors", "config", "told"),
    [
        ({"head.bias": None}, {}, "lacks a part of its head or pooling: classifier/head/bias"),
        (
            {},
            {"model_args": {"num_heads": 2, "global_pool": "map"}},
            "lacks a part of its head or pooling: encoder/map_pool/",
        ),
        ({"blocks.0.norm1.bias": None}, {}, r"blocks.0.norm1.bias +\[24\] +-"),
        ({"blocks.0.mlp.fc2.weight": np.ones((40, 24), np.float32)}, {}, r"\[24, 40\] +\[40, 24\]"),
        ({}, {"architecture": "resnet50"}, "'resnet50', is not a plain ViT of timm"),
        ({}, {"architecture": "vit_base_patch16_siglip_224"}, "does not have what timm's"),
        ({}, {"model_args": {"num_heads": 5}}, "width=24 is not divisible by .*num_heads=5"),
        ({}, {"model_args": {"num_heads": 10**9}}, "width=24 is not divisible by .*num_heads=10"),
        ({}, {"model_args": {"num_heads": 2, "img_size": 13}}, "image_size=13 is not divisible"),
        ({}, {"model_args": {"num_heads": 2, "img_size": -12}}, "image_size is -12; it takes a"),
        (
            {},
            {"model_args": {"num_heads": 2, "img_size": 4 * 10**8}},
            r"pos_embed +\[1\d+, 24\] +\[1, 9",
        ),
        (
            {"blocks.0.ls1.gamma": np.ones(24, np.float32)},
            {"model_args": {"num_heads": 2, "init_values": "inf"}},
            "layer_scale is inf",
        ),
        (
            {"blocks.99999999.norm1.bias": np.ones(24, np.float32)},
            {"model_args": {"num_heads": 2}},
            r"blocks.99999999.norm1.bias +- +\[24\]",
        ),
        ({}, {"model_args": {"num_heads": 2, "act_layer": "silu"}}, "its activation, 'silu'"),
        *[
            ({}, {"pretrained_cfg": {"input_size": [3, 12, 12]} | view}, told)
            for view, told in (
                ({"std": [0, 1, 1]}, "mean .* and std .* do not fit channels=3"),
                ({"std": [1e-40, 1, 1]}, "mean .* and std .* do not fit channels=3"),
                ({"mean": [float("nan"), 0, 0]}, "mean .* and std .* do not fit channels=3"),
                ({"mean": ["a", "b", "c"]}, "is not the config.json of a timm model"),
                ({"crop_pct": 5e-324}, "is not the config.json of a timm model"),
                ({"crop_pct": "inf"}, "its crop_pct is inf, not between 0 and 1"),
                ({"crop_mode": "border"}, "its crop_mode, 'border', is not one of center, squash"),
                ({"interpolation": "lanczos"}, "its interpolation, 'lanczos', is not one of"),
            )
        ],
        ({}, {"model_args": {"num_heads": 2.5}}, "its num_heads, 2.5, is not a whole number"),
        (
            {},
            {"model_args": {"num_heads": 2, "global_pool": "avg", "pool_include_prefix": True}},
            "it pools its class token and registers too",
        ),
        *[
            ({name: np.ones(3, np.float32)}, {}, rf"its {name} has the shape \[3\], not \d axes")
            for name in timm.AXES
        ],
        ({}, {"pretrained_cfg": 3}, "is not the config.json of a timm model"),
        (
            {},
            {"model_args": {"num_heads": 2, "img_size": "x"}},
            "is not the config.json of a timm model",
        ),
    ],
)
def test_a_timm_folder_that_is_no_such_vit_is_refused(tensors, config, told, tmp_path):
    timm_folder(tmp_path / "a", tensors, **config)
    with pytest.raises(CheckpointError, match=told) as caught:
        supmim.load(tmp_path / "a")
    assert str(tmp_path / "a") in str(caught.value)


def test_a_folder_that_timm_saved_gives_the_size_as_a_list_and_classes_without_names(tmp_path):
    sizes = {"num_heads": 2, "num_classes": 5, "in_chans": 3, "global_pool": "avg"}
    timm_folder(tmp_path / "a", model_args=sizes | {"img_size": 12})
    timm_folder(tmp_path / "b", model_args=sizes | {"img_size": [12, 12]}, label_names=3)
    one, other = (supmim.load(tmp_path / name) for name in "ab")
    assert one.config == other.config and other.class_names == tuple("01234")
    given = images_of(one, 2)
    np.testing.assert_array_equal(one.embed(given), other.embed(given))


def test_what_pretrained_cfg_does_not_say_is_as_in_timm(tmp_path):
    view = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # fmt: skip
    timm_folder(tmp_path / "a", pretrained_cfg={"input_size": [3, 12, 12]})
    timm_folder(tmp_path / "b", pretrained_cfg={"input_size": [3, 12, 12]} | view)
    one, other = (supmim.load(tmp_path / name) for name in "ab")
    assert one.config == other.config and one.config.data.eval_resize == 13
    assert one.sha256 == other.sha256 and one.config.data.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("architecture", "width", "num_heads"),
    [
        ("vit_base_patch16_224", 768, 12),
        ("vit_base_patch16_gap_224", 768, 16),
        ("deit3_medium_patch16_224", 512, 8),
    ],
)
def test_heads_of_a_vit_that_timm_knows_by_name(architecture, width, num_heads):
    kernel, up = (np.broadcast_to(np.float32(0), shape) for shape in ((width, 3, 16, 16), (8, 8)))
    tensors = {"patch_embed.proj.weight": kernel, "blocks.0.mlp.fc1.weight": up}
    stored = {"architecture": architecture, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    assert timm.options_of(tensors, stored).encoder.num_heads == num_heads


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("pos_embedding", np.ones(3)),
        ("head/bias", np.ones(())),
        ("pre_logits/bias", np.ones(())),
        ("Transformer/encoderblock/x", np.ones(())),
    ],
)
def test_an_npz_with_wrong_axes_is_refused(name, array, tmp_path):
    export.export(model_of(config_with("cls", 3)), "big_vision", tmp_path / "out", {})
    with np.load(tmp_path / "out" / "model.npz") as stored:
        tensors = {key.removeprefix("params/"): stored[key] for key in stored.files}
    np.savez(tmp_path / "x.npz", **tensors | {name: array})
    with pytest.raises(CheckpointError, match="x.npz holds no ViT of big_vision: "):
        supmim.load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": 0}, "image_size is 0"),
        ({"size": "x"}, "image_size is 'x'"),
        ({"size": 13}, "image_size=13 is not divisible"),
        ({"resize": 3}, "eval_resize=3 is smaller"),
        ({"view": "x"}, "eval_view is 'x'"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
    ],
)
def test_a_model_json_of_no_possible_view_is_refused(change, told, tmp_path):
    export.export(model_of(config_with("gap", 3)), "big_vision", tmp_path / "out", {})
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    (tmp_path / "out" / "model.json").write_text(json.dumps(about | change))
    with pytest.raises(CheckpointError, match=f"model.json: [^$]*{told}"):
        supmim.load(tmp_path / "out")
