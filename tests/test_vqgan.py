"""VQGAN: what the public implementation computes, at its cost; folders whole or refused."""

import ast
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from supmim import config as config_lib
from supmim import tokenizers
from supmim.errors import CheckpointError, ConfigError, DataError
from supmim.planning import flops
from supmim.tasks.registry import TASKS
from supmim.tokenizers import codes, folder, patch_vq, taming, vqgan
from tests.conftest import tiny_config

FIXTURE = Path(__file__).parent / "fixtures/maskgit_tokenizer_small.npz"
SMALL = {"filters": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1, "embedding_dim": 8,
         "codebook_size": 16, "channels": 1}  # fmt: skip
OPTIONS = {"tokenizer.name": "vqgan", "tokenizer.filters": 32, "tokenizer.num_res_blocks": 1,
           "tokenizer.channel_multipliers": "1,2", "tokenizer.embedding_dim": 8}  # fmt: skip


def random_tokenizer(network=vqgan.Network, seed=0, **changes):
    """Weights that no initialiser leaves at 0 or 1, so that each of them counts."""
    made, rng = network(**SMALL | changes), np.random.default_rng(seed)
    return vqgan.VQGAN(
        jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32),
            vqgan.shapes(made),
        ),
        made,
    )


def random_images(side=8, count=2, channels=1):
    return np.random.default_rng(1).uniform(size=(count, side, side, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def public():
    """A small network of google-research/maskgit with random weights, and what it computed."""
    with np.load(FIXTURE) as stored:
        arrays = dict(stored)
    config = ast.literal_eval(str(arrays["config"]))
    sizes = {name: config[name] for name in SMALL if name in config}
    sizes["channel_multipliers"] = tuple(sizes["channel_multipliers"])
    params = {
        name.removeprefix("params/"): array
        for name, array in arrays.items()
        if name.startswith("params/")
    }
    params = traverse_util.unflatten_dict(params, sep="/")
    return vqgan.VQGAN(params, vqgan.Network(**sizes)), arrays


def test_latents_ids_and_pictures_are_those_of_the_public_implementation(public):
    tokenizer, theirs = public
    latents, ids = jax.jit(lambda x: (tokenizer.apply("latents", x), tokenizer.encode(x)))(
        theirs["image"]
    )
    assert abs(latents - theirs["latents"]).max() < 1e-4 * theirs["latents"].std()
    np.testing.assert_array_equal(ids, theirs["indices"].reshape(2, -1))
    decoded = jax.jit(lambda ids: tokenizer.apply("decode", tokenizer.apply("codes", ids)))(
        theirs["indices"]
    )
    assert abs(decoded - theirs["decoded"]).max() < 1e-3 * theirs["decoded"].std()


def test_all_parameters_of_the_public_implementation_are_ours_and_no_others(public):
    tokenizer, _ = public
    ours = jax.tree.map(lambda leaf: leaf.shape, vqgan.shapes(tokenizer.network))
    assert ours == jax.tree.map(np.shape, tokenizer.params)


@pytest.mark.parametrize(
    ("network", "counts"),
    [
        (vqgan.Network, {"encoder": 23.78, "decoder": 30.48, "quantizer": 0.26}),
        (taming.Network, {"encoder": 29.30, "decoder": 42.45, "quantizer": 0.26}),
    ],
)
def test_the_default_is_as_large_as_the_published_network(network, counts):
    params = vqgan.shapes(network())
    for name, millions in counts.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(params[name]))
        assert size / 1e6 == pytest.approx(millions, abs=0.006)
    assert network().stride == 16


def encode_default(params, image):
    return vqgan.VQGAN(params, vqgan.Network()).encode(image)


def default_args(side):
    return vqgan.shapes(vqgan.Network()), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


def test_encoding_costs_what_the_public_network_costs():
    """64.4 GMAC at 256 pixels and 49.3 at 224, within 2 %; and at each resolution."""
    for side, giga in ((256, 64.4), (224, 49.3)):
        assert flops.count(encode_default, *default_args(side)) / 2e9 == pytest.approx(giga, 0.02)
    spent = Counter()
    for eqn in jax.make_jaxpr(encode_default)(*default_args(256)).eqns:
        if eqn.primitive.name == "conv_general_dilated":
            out, kernel = eqn.outvars[0].aval, eqn.invars[1].aval
            spent[out.shape[1]] += 2 * out.size * kernel.size / out.shape[-1] / 1e9
    levels = {256: 0.45 + 77.31, 128: 19.33, 64: 17.45, 32: 4.83, 16: 4.36 + 4.83 + 0.07}
    assert dict(spent) == pytest.approx(levels, rel=0.01)


@pytest.mark.parametrize("network", [vqgan.Network, taming.Network])
def test_any_side_that_the_stride_divides_goes_in_and_comes_out(network):
    tokenizer = random_tokenizer(network)
    for side in (8, 12):
        ids = jax.eval_shape(tokenizer.encode, jax.ShapeDtypeStruct((2, side, side, 1), "float32"))
        assert ids.shape == (2, (side // 2) ** 2) and ids.dtype == jnp.int32
        assert jax.eval_shape(tokenizer.decode, ids).shape == (2, side, side, 1)


def test_pictures_are_clipped_and_what_the_network_gives_is_not():
    tokenizer, ids = random_tokenizer(), jnp.arange(16).reshape(1, 4, 4)
    raw = jax.jit(lambda t: t.apply("decode", t.apply("codes", ids)))(tokenizer)
    assert raw.min() < 0 and raw.max() > 1
    picture = jax.jit(lambda t: t.decode(ids.reshape(1, 16)))(tokenizer)
    np.testing.assert_allclose(picture, raw.clip(0, 1), atol=1e-6)


def test_distances_are_in_full_float32_whatever_comes_in():
    near = jnp.asarray([[1.0, 0.0], [1.001, 0.0]])  # one and the same in bfloat16
    np.testing.assert_array_equal(codes.nearest(near, near), [0, 1])
    rounded = near.astype(jnp.bfloat16)
    assert codes.distances(rounded, rounded).dtype == jnp.float32
    jaxpr = jax.make_jaxpr(codes.distances)(near, near)
    (product,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize("network", [vqgan.Network, taming.Network])
def test_bfloat16_rounds_what_convolutions_multiply_and_little_else(network):
    """An encoder that also rounds its image, norms, averages or latents is off by 0.003 or more."""
    exact, image = random_tokenizer(network), random_images(8, 4)
    rounded = exact.replace(network=exact.network.clone(dtype="bfloat16"))
    one, other = (jax.jit(lambda t: t.apply("latents", image))(t) for t in (exact, rounded))
    assert other.dtype == jnp.float32
    assert 0 < abs(other - one).std() < 0.002 * one.std()
    inner = str(jax.make_jaxpr(lambda t: t.apply("latents", image))(rounded)).count("bf16[3,3,")
    assert inner >= 4  # kernels that are multiplied in bfloat16


def test_norms_are_taken_in_float32():
    image = (4 + random_images(8, 2, 32)).astype(jnp.bfloat16)  # 16.1 - 16.0 is lost in bfloat16
    rounded, exact = (
        vqgan.GroupNorm().init_with_output(jax.random.key(0), image.astype(dtype))[0]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert rounded.dtype == jnp.float32
    assert abs(rounded - exact).max() < 1e-4


def test_a_frozen_network_is_in_bfloat16_and_one_that_trains_or_is_none_in_float32():
    train = {"task": "tokenizer", "eval.evaluators": "tokenizer",
             "checkpoint.keep_best_metric": "tokenizer/psnr"}  # fmt: skip
    frozen, trained = tiny_config(**OPTIONS), tiny_config(**OPTIONS, **train)
    assert tokenizers.abstract(frozen).network.dtype == "bfloat16"
    assert TASKS["tokenizer"].abstract(trained).network.dtype == "float32"
    assert tiny_config().tokenizer_dtype == "float32"
    asked = tiny_config(**OPTIONS, **{"tokenizer.dtype": "float32"})
    assert tokenizers.abstract(asked).network.dtype == "float32"


@pytest.mark.parametrize("image", [random_images() * 255, 2 * random_images() - 1])
@pytest.mark.parametrize("kind", ["vqgan", "patch_vq"])
def test_images_outside_0_1_are_refused_where_there_are_values(kind, image):
    tokenizer = random_tokenizer()
    if kind == "patch_vq":
        tokenizer = patch_vq.PatchVQ(jnp.zeros((3, 4)), 2, 1)
    with pytest.raises(DataError, match=r"in \[0, 1\], but these run from"):
        tokenizer.encode(image)
    jax.eval_shape(tokenizer.encode, image)  # a program that is traced cannot look


# Folders.


def test_a_saved_tokenizer_comes_back_the_same(tmp_path):
    for network in (vqgan, taming):
        tokenizer = random_tokenizer(network.Network)
        tokenizer.save(tmp_path / tokenizer.network.kind, "here")
        back = network.load(tmp_path / tokenizer.network.kind)
        jax.tree.map(np.testing.assert_array_equal, back.params, tokenizer.params)
        assert back.network == tokenizer.network
        assert back.fingerprint() == tokenizer.fingerprint()
        assert network.load(tmp_path / tokenizer.network.kind, "bfloat16").network.dtype == (
            "bfloat16"
        )
        assert sorted(path.name for path in (tmp_path / tokenizer.network.kind).iterdir()) == [
            folder.NOTE, folder.WEIGHTS
        ]  # fmt: skip


def test_the_fingerprint_knows_weights_kind_and_dtype():
    tokenizer = random_tokenizer()
    moved = jax.tree.map(lambda leaf: leaf, tokenizer.params)
    moved["encoder"]["Conv_0"]["kernel"] = moved["encoder"]["Conv_0"]["kernel"].at[0].add(1e-6)
    network = tokenizer.network
    others = [
        tokenizer,
        vqgan.VQGAN(moved, network),
        vqgan.VQGAN(tokenizer.params, network.clone(dtype="bfloat16")),
        vqgan.VQGAN(tokenizer.params, taming.Network(**SMALL)),
    ]
    assert len({other.fingerprint() for other in others}) == 4
    again = vqgan.VQGAN(dict(reversed(tokenizer.params.items())), network)
    assert again.fingerprint() == tokenizer.fingerprint()


def edited(note, **changes):
    note.write_text(json.dumps(json.loads(note.read_text()) | changes))


HARM = {
    "flip": lambda weights, note: weights.write_bytes(
        weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1])
    ),
    "truncate": lambda weights, note: weights.write_bytes(weights.read_bytes()[:100]),
    "no weights": lambda weights, note: weights.unlink(),
    "garbled note": lambda weights, note: note.write_text("{"),
    "no sizes": lambda weights, note: edited(note, sizes=None),
    "other sizes": lambda weights, note: edited(note, sizes={**SMALL, "embedding_dim": 9}),
    "odd sizes": lambda weights, note: edited(note, sizes={"depth": 3}),
    "no groups": lambda weights, note: edited(note, sizes={**SMALL, "filters": 33}),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_tokenizer_is_refused(tmp_path, harm):
    random_tokenizer().save(tmp_path)
    HARM[harm](tmp_path / folder.WEIGHTS, tmp_path / folder.NOTE)
    with pytest.raises(CheckpointError, match="cannot be used.*supmim tokenizer import"):
        vqgan.load(tmp_path)


def test_a_tokenizer_whose_writing_was_cut_is_none(tmp_path, monkeypatch):
    random_tokenizer(seed=1).save(tmp_path)
    monkeypatch.setattr(folder, "write_json", lambda *_: pytest.fail("cut"))
    with pytest.raises(pytest.fail.Exception):
        random_tokenizer().save(tmp_path)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        vqgan.load(tmp_path)


# What a config asks for.


def load_or_fit(config, workdir):
    return tokenizers.load_or_fit(config, workdir, {}, lambda: pytest.fail("fitted"), needed=False)


def test_the_folder_of_the_config_is_read(tmp_path):
    tokenizer = random_tokenizer()
    tokenizer.save(tmp_path / "vqgan")
    codes = patch_vq.PatchVQ(jnp.arange(64.0).reshape(16, 4) / 64, 2, 1)
    codes.save(tmp_path / "patches")
    config = tiny_config(
        **OPTIONS, **{"tokenizer.path": str(tmp_path / "vqgan"), "tokenizer.dtype": "bfloat16"}
    )
    found = load_or_fit(config, tmp_path / "workdir")
    assert found.network == tokenizer.network.clone(dtype="bfloat16")
    abstract = tokenizers.abstract(config)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, abstract)
    config = tiny_config(**{"tokenizer.path": str(tmp_path / "patches")})
    assert load_or_fit(config, tmp_path / "workdir").fingerprint() == codes.fingerprint()
    assert not (tmp_path / "workdir").exists()


def test_a_folder_of_another_size_or_kind_is_told_with_the_flags_that_fit(tmp_path):
    random_tokenizer(embedding_dim=4, codebook_size=32).save(tmp_path)
    config = tiny_config(**OPTIONS, **{"tokenizer.path": str(tmp_path)})
    with pytest.raises(ConfigError) as caught:
        tokenizers.load(config)
    assert "config.tokenizer.codebook_size: 32 in the folder, 16 in the config" in str(caught.value)
    assert "Set --config.tokenizer.embedding_dim=4 --config.tokenizer.codebook_size=32," in str(
        caught.value
    )
    with pytest.raises(ConfigError, match="kind vqgan, not patch_vq: set --config.tokenizer.name"):
        tokenizers.load(tiny_config(**{"tokenizer.path": str(tmp_path)}))
    edited(tmp_path / folder.NOTE, kind="dalle")
    with pytest.raises(CheckpointError, match="its kind 'dalle' is not known"):
        tokenizers.load(config)


def test_a_missing_folder_and_no_folder_are_told_with_what_makes_one(tmp_path):
    config = tiny_config(**OPTIONS)
    with pytest.raises(ConfigError, match="needs --config.tokenizer.path.*tokenizer train.*import"):
        load_or_fit(config, tmp_path)
    config = config_lib.replaced(config, {"tokenizer.path": str(tmp_path / "none")})
    with pytest.raises(CheckpointError, match="holds no tokenizer.*tokenizer train.*import"):
        load_or_fit(config, tmp_path)


@pytest.mark.parametrize("name", ["vqgan", "taming"])
def test_a_config_without_a_folder_still_traces(name):
    config = tiny_config(**OPTIONS | {"tokenizer.name": name})
    task = TASKS["supmim"].abstract(config)
    batch = {
        "image": jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.uint8),
        **{name: jax.ShapeDtypeStruct((3,), jnp.int32) for name in ("epoch", "index", "label")},
        "valid": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    prepared = jax.eval_shape(task.tokenize, task.frozen, batch)
    assert prepared["target_ids"].shape == (3, 16)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer.channel_multipliers": "1,,2"}, "whole numbers from 1"),
        ({"tokenizer.channel_multipliers": "1,0"}, "whole numbers from 1"),
        ({"tokenizer.channel_multipliers": "1," * 16 + "1"}, "whole numbers from 1"),
        ({"tokenizer.channel_multipliers": "1," + "2" * 5000}, "whole numbers from 1"),
        ({"tokenizer.channel_multipliers": "1,1,2"}, "set config.tokenizer.patch_size=4, or"),
        ({"tokenizer.filters": 40}, "nearest: 32 or 64"),
        ({"tokenizer.filters": 16, "tokenizer.channel_multipliers": "2,4"}, ""),
        ({"tokenizer.name": "patch_vq", "tokenizer.dtype": "bfloat16"}, "in float32 only"),
        ({"tokenizer.name": "patch_vq", "tokenizer.filters": 40}, ""),
    ],
)
def test_impossible_sizes_are_told_with_what_fits(changes, told):
    if not told:
        tiny_config(**OPTIONS | changes)
        return
    with pytest.raises(ConfigError, match=told):
        tiny_config(**OPTIONS | changes)


def test_debugging_keeps_the_size_of_a_tokenizer_that_is_there():
    config = tiny_config(**OPTIONS, **{"tokenizer.path": "somewhere"})
    assert config_lib.debug(config).tokenizer.codebook_size == 16
    assert config_lib.debug(tiny_config()).tokenizer.codebook_size == 64


def test_a_tokenizer_may_move_but_not_change_on_resume():
    stored = tiny_config(**OPTIONS)
    moved = tiny_config(**OPTIONS, **{"tokenizer.path": "elsewhere"})
    assert config_lib.resume_differences(stored, moved) == []
    exact = tiny_config(**OPTIONS, **{"tokenizer.dtype": "float32"})
    (line,) = config_lib.resume_differences(exact, stored)
    assert line.endswith("the workdir has 'float32', but you ask for 'bfloat16'")
    patches = tiny_config(**{"tokenizer.dtype": "float32"})
    assert config_lib.resume_differences(patches, tiny_config()) == []
