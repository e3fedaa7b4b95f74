"""Networks: agreement with big_vision, equal variants, shapes, and what hidden pixels can reach."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from supmim import masking
from supmim.config import options
from supmim.models import layers, supmim
from supmim.models.encoder import Encoder
from tests.conftest import tiny_config

FIXTURES = Path(__file__).parent / "fixtures"
GRID = 4
SIZES = options.Encoder(patch_size=4, width=48, depth=2, num_heads=3, mlp_dim=192)
BIG_VISION_NAMES = (
    ("Transformer/encoder_norm", "norm"), ("Transformer/encoderblock_", "blocks/block_"),
    ("LayerNorm_0", "attention_norm"), ("LayerNorm_1", "mlp_norm"),
    ("MlpBlock_0/Dense_0", "mlp/up"), ("MlpBlock_0/Dense_1", "mlp/down"),
    ("MultiHeadDotProductAttention_0", "attention"), ("pos_embedding", "positions"),
    ("MAPHead_0/attention_norm", "map_pool/norm"), ("MAPHead_0", "map_pool"),
)  # fmt: skip


def big_vision_params(stored) -> dict:
    """Our encoder parameters from big_vision's."""
    params: dict = {}
    for key in stored.files:
        if key.startswith("params/") and "head/" not in key:
            name, value = key.removeprefix("params/"), stored[key]
            for theirs, ours in BIG_VISION_NAMES:
                name = name.replace(theirs, ours)
            if name == "embedding/kernel":
                value = value.reshape(-1, value.shape[-1])
            node = params
            *folders, leaf = name.split("/")
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = jnp.asarray(value[0] if name == "positions" else value)
    return params


@pytest.mark.parametrize(
    ("name", "pool", "positions"),
    [("gap_sincos2d", "gap", "sincos2d"), ("map_learn", "map", "learned"),
     ("tok_learn", "cls", "learned")],
)  # fmt: skip
def test_encoder_agrees_with_big_vision(name, pool, positions):
    with np.load(FIXTURES / f"big_vision_vit_{name}.npz") as stored:
        encoder = Encoder(options.changed(SIZES, pool=pool, positions=positions), GRID)
        params = big_vision_params(stored)
        out = jax.jit(encoder.apply)({"params": params}, stored["image"])
        theirs = stored["encoded"][:, 1:] if pool == "cls" else stored["encoded"]
        np.testing.assert_allclose(out.latent, theirs, atol=1e-5)
        np.testing.assert_allclose(out.embedding, stored["pre_logits"], atol=1e-5)
        fresh = jax.eval_shape(encoder.init, jax.random.key(0), stored["image"])["params"]
        assert jax.tree.structure(fresh) == jax.tree.structure(params)


def cloned(encoder, **changes):
    return encoder.clone(options=options.changed(encoder.options, **changes))


def encoder_and_input(**changes):
    encoder = Encoder(options.changed(SIZES, **changes), GRID)
    image = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
    return encoder, encoder.init(jax.random.key(0), image)["params"], image


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_equals_unrolled_given_stacked_parameters(remat):
    encoder, params, image = encoder_and_input(stochastic_depth=0.5)
    scanned = cloned(encoder, scan=True, remat=remat)
    stacked = layers.stack_blocks(params)
    assert jax.tree.structure(stacked) == jax.tree.structure(
        jax.eval_shape(scanned.init, jax.random.key(0), image)["params"]
    )
    close(layers.unstack_blocks(stacked), params, atol=0)

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(module, params):
        out = module.apply({"params": params}, image, taps=(0, 1))
        return out.embedding, out.latent, out.taps

    close(outputs(scanned, stacked), outputs(encoder, params))

    def loss(module, params):
        return (module.apply({"params": params}, image).embedding ** 2).sum()

    grad = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    close(grad(scanned, stacked), layers.stack_blocks(grad(encoder, params)), atol=1e-4)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient_and_saves_no_hidden_mlp(remat):
    encoder, params, image = encoder_and_input()

    def loss(module, params):
        return (module.apply({"params": params}, image, train=True).embedding ** 2).sum()

    plain = jax.jit(jax.grad(lambda p: loss(encoder, p)))
    again = jax.jit(jax.grad(lambda p: loss(cloned(encoder, remat=remat), p)))
    close(plain(params), again(params))
    assert "remat" in str(jax.make_jaxpr(again)(params))
    assert "remat" not in str(jax.make_jaxpr(plain)(params))


def test_taps_are_the_outputs_of_the_chosen_blocks():
    encoder, params, image = encoder_and_input(pool="cls")
    out = encoder.apply({"params": params}, image, taps=(1,))
    assert set(out.taps) == {1} and out.taps[1].shape == (3, 17, 48)
    norm = layers.LayerNorm()
    last = norm.apply({"params": params["norm"]}, out.taps[1])
    np.testing.assert_allclose(last[:, 0], out.embedding, atol=1e-6)


def test_stochastic_depth_drops_whole_branches_at_the_stated_rate():
    block = layers.Block(options.Encoder(num_heads=1, mlp_dim=8), 4000)
    skipped = block.apply(
        {}, jnp.ones((4000 * 3, 4)), 0.25, True, method="skip",
        rngs={"stochastic_depth": jax.random.key(0)},
    )  # fmt: skip
    skipped = skipped.reshape(4000, 3, 4)
    values, counts = np.unique(np.asarray(skipped[:, 0, 0]), return_counts=True)
    np.testing.assert_allclose(values, [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(counts[0] / 4000 - 0.25) < 0.03
    assert (np.asarray(skipped) == np.asarray(skipped[:, :1, :1])).all()


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_grows_linearly_from_0_over_the_blocks(monkeypatch, scan):
    monkeypatch.setattr(
        layers.Block, "skip", lambda self, branch, rate, train: jnp.full_like(branch, rate)
    )
    sizes = options.changed(SIZES, depth=5, stochastic_depth=0.4, scan=scan)
    taps, rngs = tuple(range(5)), {"stochastic_depth": jax.random.key(0)}
    x = jnp.zeros((2, 3, 48))
    (_, found), _ = layers.Blocks(sizes).init_with_output(
        {"params": jax.random.key(0), **rngs}, x, True, taps
    )
    per_block = np.diff([0.0, *(float(found[i][0, 0, 0]) for i in taps)])  # in two branches
    np.testing.assert_allclose(per_block / 2, [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_dropout_acts_in_training_alone():
    encoder, params, image = encoder_and_input(dropout=0.5)

    def run(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return encoder.apply({"params": params}, image, train=train, rngs=rngs).embedding

    assert (run(False, 0) == run(False, 1)).all() and not (run(True, 0) == run(True, 1)).all()


def test_parameters_stay_float32_and_embeddings_come_in_float32():
    encoder, params, image = encoder_and_input(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = encoder.apply({"params": params}, image)
    assert out.embedding.dtype == jnp.float32 and out.latent.dtype == jnp.bfloat16
    exact = cloned(encoder, dtype="float32").apply({"params": params}, image)
    assert 0 < np.abs(out.embedding - exact.embedding).max() < 0.1


def test_scores_and_their_gradients_keep_the_compute_dtype():
    query = jnp.ones((1, 4, 2, 8), jnp.bfloat16)

    def loss(q):
        return layers.dot_product_attention(q, q, q, "xla").astype(jnp.float32).sum()

    products = [
        str(eqn) for eqn in jax.make_jaxpr(jax.grad(loss))(query).eqns if "dot_general" in str(eqn)
    ]
    assert products and not any("f32" in product.split("=")[0] for product in products)


def test_the_softmax_of_a_bfloat16_network_is_float32():
    query = jnp.ones((1, 4, 2, 8), jnp.bfloat16)
    program = jax.make_jaxpr(lambda q: layers.dot_product_attention(q, q, q, "xla"))(query)
    exponentials = [line for line in str(program).splitlines() if "= exp " in line]
    assert exponentials and all(":f32[" in line.split("=")[0] for line in exponentials)


def test_cudnn_attention_is_asked_of_jax(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        jax.nn, "dot_product_attention",
        lambda q, k, v, implementation: asked.setdefault("implementation", implementation) and v,
    )  # fmt: skip
    encoder, params, image = encoder_and_input()
    cloned(encoder, attention="cudnn", dtype="bfloat16").apply({"params": params}, image)
    assert asked == {"implementation": "cudnn"}


def test_gelu_is_the_stated_one():
    x = jnp.linspace(-3, 3, 7)[None, None]

    def hidden(gelu):
        mlp = layers.Mlp(7, gelu, 0.0, jnp.float32)
        identity = {"kernel": jnp.eye(7), "bias": jnp.zeros(7)}
        return mlp.apply({"params": {"up": identity, "down": identity}}, x, False)

    np.testing.assert_allclose(hidden("tanh"), jax.nn.gelu(x, approximate=True), atol=1e-7)
    np.testing.assert_allclose(hidden("exact"), jax.nn.gelu(x, approximate=False), atol=1e-7)
    assert np.abs(hidden("tanh") - hidden("exact")).max() > 1e-5


def test_positions_are_resampled_to_another_grid():
    encoder, params, image = encoder_and_input(positions="learned")
    larger = jnp.zeros((1, 32, 32, 3))
    assert encoder.apply({"params": params}, larger).latent.shape == (1, 64, 48)
    table = jnp.arange(16.0).reshape(16, 1)
    resampled = np.asarray(layers.resample_positions(table, 8)).reshape(8, 8)
    assert (np.diff(resampled, axis=0) >= 0).all() and (np.diff(resampled, axis=1) >= 0).all()
    np.testing.assert_allclose(resampled.mean(), 7.5, atol=1e-4)
    smaller = np.asarray(layers.resample_positions(table, 2)).reshape(2, 2)
    # Two old places per new one: a triangle two places wide weighs 0.75, 0.75, 0.25, normalised.
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(smaller, weights @ np.arange(16.0).reshape(4, 4) @ weights.T,
                               rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("positions", ["sincos2d", "learned"])
def test_positions_made_for_another_grid_are_those_of_its_images_resampled(positions):
    encoder, params, image = encoder_and_input(positions=positions)
    larger, resized = cloned(encoder, position_grid=4).clone(grid=8), jnp.zeros((1, 32, 32, 3))
    shapes = [
        jax.eval_shape(e.init, jax.random.key(0), x)
        for e, x in ((encoder, image), (larger, resized))
    ]
    assert shapes[0] == shapes[1]
    found = [e.apply({"params": params}, resized).latent for e in (encoder, larger)]
    np.testing.assert_array_equal(*found)
    made_new = cloned(encoder, positions="sincos2d").clone(grid=8)
    assert np.abs(made_new.apply({"params": params}, resized).latent - found[0]).max() > 0.1


def test_patches_go_back_together():
    image = jnp.arange(2 * 8 * 8 * 3.0).reshape(2, 8, 8, 3)
    patches = layers.patchify(image, 2)
    assert (patches[0, 1].reshape(2, 2, 3) == image[0, :2, 2:4]).all()
    assert (layers.unpatchify(patches, 2, 3) == image).all()


def model_of(**changes):
    config = tiny_config(**changes)
    model = supmim.create(config, config.tokenizer.codebook_size)
    image = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    token_mask = masking.draw(jax.random.key(2), 2, 4, config.mim)
    params = model.init(jax.random.key(0), image, token_mask)["params"]
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    return model, params, image, token_mask


@pytest.mark.parametrize("hidden", ["drop", "mask_token"])
@pytest.mark.parametrize("masking_kind", ["random", "block", "units", "variable"])
def test_hidden_pixels_cannot_reach_the_token_logits(hidden, masking_kind):
    """Law 5."""
    model, params, image, token_mask = model_of(
        **{"mim.hidden": hidden, "mim.masking": masking_kind}
    )
    hidden_pixels = layers.unpatchify(
        jnp.broadcast_to(token_mask.mask[..., None], (2, 16, 4)), 2, 1
    )

    @jax.jit
    def logits(x):
        return model.apply({"params": params}, x, token_mask, method="predict_tokens")

    scribbled = jnp.where(hidden_pixels == 1, 99.0, image)
    np.testing.assert_array_equal(logits(image), logits(scribbled))
    assert logits(image).shape == (2, 16 - token_mask.num_visible, 16)
    seen = jnp.where(hidden_pixels == 0, 99.0, image)
    assert hidden_pixels.all() or not (logits(image) == logits(seen)).all()


def test_logits_do_not_depend_on_the_order_of_patches():
    model, params, image, token_mask = model_of()
    order = jnp.array([3, 1, 0, 2, 7, 5, 6, 4])  # visible among themselves
    ids = token_mask.ids_shuffle.at[:, :8].set(token_mask.ids_shuffle[:, :8][:, order])
    shuffled = token_mask.replace(ids_shuffle=ids)

    def logits(mask):
        return model.apply({"params": params}, image, mask, method="predict_tokens")

    np.testing.assert_allclose(logits(token_mask), logits(shuffled), atol=1e-5)


def test_dropped_patches_leave_before_the_embedding():
    model, params, image, token_mask = model_of()
    jaxpr = str(
        jax.make_jaxpr(lambda x: model.encoder.apply({"params": params["encoder"]}, x, token_mask))(
            image
        )
    )
    assert "f32[2,8,16]" in jaxpr and "f32[2,16,16]" not in jaxpr


def test_classifier_starts_at_its_bias_and_may_have_a_representation_layer():
    model, *_ = model_of(**{"classifier.rep_size": 12, "classifier.head_bias": -6.9})
    params = model.classifier.init(jax.random.key(0), jnp.ones((1, 16)))
    assert params["params"]["representation"]["kernel"].shape == (16, 12)
    logits = model.classifier.apply(params, jnp.ones((1, 16)))
    np.testing.assert_allclose(logits, np.full((1, 10), -6.9), rtol=1e-6)


def test_each_block_input_is_constrained_to_the_batch_axes():
    from supmim import sharding

    encoder, params, image = encoder_and_input()
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        text = str(jax.make_jaxpr(lambda x: encoder.apply({"params": params}, x).embedding)(image))
    assert text.count("sharding_constraint") == SIZES.depth
    assert "('data', 'fsdp')" in text
