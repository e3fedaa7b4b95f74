"""ViTs of timm and big_vision: in from their tensors, out to them, and back again bit for bit."""

import functools
import json
import math
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from supmim.config import Config, options
from supmim.errors import CheckpointError
from supmim.interop import big_vision, timm, vit
from supmim.models import layers
from supmim.models.classifier import Classifier
from supmim.models.encoder import Encoder

FIXTURES = Path(__file__).parent / "fixtures"
UNIT = (0.0,) * 3, (1.0,) * 3


def modules(config: Config):
    head = config.classifier
    encoder = Encoder(config.encoder, config.grid)
    return encoder, Classifier(head.num_classes, rep_size=head.rep_size)


def shapes(config: Config):
    encoder, classifier = modules(config)
    image = jnp.zeros((1, config.data.image_size, config.data.image_size, config.data.channels))
    tree = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]}
    if config.classifier.num_classes:
        embedding = jnp.zeros((1, config.encoder.width))
        made = jax.eval_shape(classifier.init, jax.random.key(0), embedding)
        tree["classifier"] = made["params"]
    return {
        name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()
    }


def run(config: Config, params, image):
    """Outputs for an image as the network takes it."""
    encoder, classifier = modules(config)
    tree = flax.traverse_util.unflatten_dict(params, sep="/")
    encoded = encoder.apply({"params": tree["encoder"]}, jnp.asarray(image))
    return encoded, classifier.apply({"params": tree["classifier"]}, encoded.embedding)


def from_timm(name: str, **changes):
    tensors = load_file(FIXTURES / f"timm_vit_{name}.safetensors") | changes
    model = json.loads((FIXTURES / f"timm_vit_{name}.json").read_text())
    stored = {"architecture": "vit_tiny", "model_args": model,
              "pretrained_cfg": {"input_size": [3, 16, 16], "crop_pct": 0.875}}  # fmt: skip
    config = timm.options_of(tensors, stored)
    plain = timm.plain(tensors, config)
    return config, vit.imported(plain, timm.LAYOUT, shapes(config), Path("model.safetensors"))


@pytest.mark.parametrize("name", ["gap", "token", "deit3", "dinov2_reg"])
def test_a_vit_of_timm_computes_what_it_computed_there(name):
    config, loaded = from_timm(name)
    assert not loaded.missing and not loaded.ignored
    with np.load(FIXTURES / f"timm_vit_{name}_io.npz") as stored:
        encoded, logits = run(config, loaded.params, stored["image"])
        patches = stored["features"][:, -16:]
        np.testing.assert_allclose(encoded.latent, patches, atol=1e-5)
        np.testing.assert_allclose(logits, stored["logits"], atol=1e-5)
        if "embedding" in stored:
            np.testing.assert_allclose(encoded.embedding, stored["embedding"], atol=1e-5)
    assert config.encoder.registers == (4 if name == "dinov2_reg" else 0)


def test_another_mean_and_std_are_absorbed_by_the_first_layer():
    config, loaded = from_timm("gap")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    theirs = run(config, loaded.params, (image - mean) / np.float32(std))
    ours = run(config, vit.for_our_pixels(loaded.params, 3, mean, std), 2 * image - 1)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    assert vit.for_our_pixels(loaded.params, 3, (0.5,) * 3, (0.5,) * 3) is loaded.params


def random_params(config: Config):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(config).items()
    }


def config_with(pool: str, channels: int, **encoder) -> Config:
    sizes = options.Encoder(patch_size=4, width=24, depth=2, num_heads=2, mlp_dim=40, pool=pool,
                            positions="learned", **encoder)  # fmt: skip
    data = options.changed(options.Data(), image_size=12, channels=channels, eval_resize=14)
    return Config(
        data=data, encoder=sizes, classifier=options.Classifier(num_classes=5), mim_weight=0.0
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pool", ["gap", "cls", "map"])
@pytest.mark.parametrize("extra", [{}, {"layer_scale": 0.1, "registers": 2, "gelu": "exact"}])
def test_out_to_timm_and_back_changes_no_bit(pool, channels, extra):
    config = config_with(pool, channels, **extra)
    params = random_params(config)
    tensors = timm.tensors_of(params, 4)
    again = timm.options_of(tensors, timm.config_of(config, tuple("abcde"), ""))
    assert again == options.changed(config, data=options.changed(config.data, train=""))
    back = vit.imported(timm.plain(tensors, again), timm.LAYOUT, shapes(again), Path("x"))
    assert back.params.keys() == params.keys() and not back.ignored
    for name, array in params.items():
        np.testing.assert_array_equal(back.params[name], array)


@pytest.mark.parametrize("name", ["gap_sincos2d", "map_learn", "tok_learn"])
def test_a_vit_of_big_vision_computes_what_it_computed_there(name):
    with np.load(FIXTURES / f"big_vision_vit_{name}.npz") as stored:
        tensors = {key: stored[key] for key in stored.files if key.startswith("params/")}
        image, logits, embedding = (stored[k] for k in ("image", "logits", "pre_logits"))
    plain = big_vision.plain(tensors)
    config = big_vision.options_of(plain)
    if name == "gap_sincos2d":
        data = options.changed(config.data, image_size=16)
        config = options.changed(config, data=data)
    loaded = vit.imported(plain, big_vision.LAYOUT, shapes(config), Path("x.npz"))
    found, ours = run(config, loaded.params, image)
    np.testing.assert_allclose(found.embedding, embedding, atol=1e-5)
    np.testing.assert_allclose(ours, logits, atol=1e-5)
    written = big_vision.tensors_of(loaded.params, 4)
    for key, array in tensors.items():
        np.testing.assert_array_equal(written[key], array)


def test_older_layouts_of_big_vision_are_the_same_network():
    with np.load(FIXTURES / "big_vision_vit_tok_learn.npz") as stored:
        new = {key.removeprefix("params/"): stored[key] for key in stored.files if "params/" in key}
    old = {}
    for name, array in new.items():
        name = name.replace("LayerNorm_1", "LayerNorm_2").replace("MlpBlock_0", "MlpBlock_3")
        old[name.replace("Attention_0", "Attention_1")] = array
    old["Transformer/posembed_input/pos_embedding"] = np.concatenate(
        [np.ones((1, 1, 48), np.float32), old.pop("pos_embedding")], axis=1
    )
    old["cls"] = old["cls"] - 1
    plain = big_vision.plain(old)
    assert plain.keys() == new.keys()
    for name in new:
        np.testing.assert_allclose(plain[name], new[name], atol=1e-6)

    blocks = [name for name in new if "encoderblock_0" in name]
    stacked = {name: array for name, array in new.items() if "encoderblock" not in name}
    for name in blocks:
        pair = [new[name.replace("block_0", f"block_{i}")] for i in range(2)]
        stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(pair)
    assert big_vision.plain(stacked).keys() == new.keys()


def test_positions_of_class_and_register_tokens_are_added_to_them():
    tensors = load_file(FIXTURES / "timm_vit_dinov2_reg.safetensors")
    own = np.full((1, 5, 48), 0.5, np.float32)
    with_own = {"pos_embed": np.concatenate([own, tensors["pos_embed"]], axis=1)}
    loaded = from_timm("dinov2_reg", **with_own)[1]
    np.testing.assert_allclose(loaded.params["encoder/cls"], tensors["cls_token"] + 0.5)
    np.testing.assert_allclose(loaded.params["encoder/registers"], tensors["reg_token"] + 0.5)


def test_a_class_token_that_pooling_leaves_out_becomes_a_register():
    config, loaded = from_timm("token")
    tensors = load_file(FIXTURES / "timm_vit_token.safetensors")
    stored = {"architecture": "vit_tiny", "model_args": {"num_heads": 3, "img_size": 16,
              "global_pool": "avg"}, "pretrained_cfg": {}}  # fmt: skip
    other = timm.options_of(tensors, stored)
    assert other.encoder.pool == "gap" and other.encoder.registers == 1
    mean = vit.imported(timm.plain(tensors, other), timm.LAYOUT, shapes(other), Path("x"))
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    found = run(other, mean.params, image)[0]
    np.testing.assert_allclose(found.embedding, run(config, loaded.params, image)[0].latent.mean(1),
                               atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda t: t.pop("blocks.1.mlp.fc2.bias"), r"blocks.1.mlp.fc2.bias +\[48\] +-"),
        (
            lambda t: t.update({"blocks.0.attn.q_norm.weight": np.ones(16)}),
            r"q_norm.weight +- +\[16\]",
        ),
        (
            lambda t: t.update({"pos_embed": np.ones((1, 25, 48))}),
            r"pos_embed +\[1, 16, 48\] +\[1, 25, 48\]",
        ),
        (
            lambda t: t.update({"norm.bias": np.full(48, np.nan)}),
            "not finite, e.g. in encoder/norm",
        ),
        (lambda t: t.pop("patch_embed.proj.weight"), "is not a plain ViT of timm"),
    ],
)
def test_what_is_not_such_a_vit_is_refused_with_a_table(damage, told, monkeypatch):
    tensors = load_file(FIXTURES / "timm_vit_gap.safetensors")
    damage(tensors)
    monkeypatch.setattr("tests.test_vit_interop.load_file", lambda _: tensors)
    with pytest.raises(CheckpointError, match=told):
        from_timm("gap")


def test_a_vit_without_head_or_with_another_pooling_lacks_only_these():
    config, _ = from_timm("gap")
    tensors = load_file(FIXTURES / "timm_vit_gap.safetensors")
    for name in ("head.weight", "head.bias"):
        tensors.pop(name)
    loaded = vit.imported(timm.plain(tensors, config), timm.LAYOUT, shapes(config), Path("x"))
    assert sorted(loaded.missing) == ["classifier/head/bias", "classifier/head/kernel"]


def test_timm_resizes_to_the_side_that_the_config_states():
    for side in (32, 224, 384, 518):
        for resize in range(side, 2 * side):
            assert math.floor(side / timm.crop_share(side, resize)) == resize


def test_layer_scale_and_registers_are_off_unless_asked():
    encoder = Encoder(options.Encoder(patch_size=4, width=24, depth=1, num_heads=2, mlp_dim=40), 3)
    params = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))["params"]
    assert "registers" not in params and "mlp_scale" not in params["blocks"]["block_0"]
    with_both = encoder.clone(
        options=options.changed(encoder.options, layer_scale=0.25, registers=3)
    )
    image = jax.random.normal(jax.random.key(1), (1, 12, 12, 3))
    params = jax.jit(with_both.init)(jax.random.key(0), image)["params"]
    np.testing.assert_array_equal(params["blocks"]["block_0"]["mlp_scale"], np.full(24, 0.25))
    scanned = with_both.clone(options=options.changed(with_both.options, scan=True))
    found = [
        jax.jit(functools.partial(module.apply, taps=(0,)))({"params": tree}, image)
        for module, tree in ((with_both, params), (scanned, layers.stack_blocks(params)))
    ]
    assert found[0].latent.shape == (1, 9, 24) and found[0].taps[0].shape == (1, 12, 24)
    np.testing.assert_allclose(found[0].embedding, found[1].embedding, atol=1e-6)
