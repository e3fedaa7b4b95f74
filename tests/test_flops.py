"""FLOPs: every product of a program is counted as often as it runs, and the formula agrees."""

import functools

import jax
import jax.numpy as jnp
import pytest

from supmim import config as config_lib
from supmim import optimizer, sharding, step
from supmim.data import pipeline
from supmim.planning import flops
from supmim.tasks import masked_steps
from supmim.tasks.registry import TASKS
from tests.conftest import prepare, tiny_config
from tests.test_configs import load

A, B = jax.ShapeDtypeStruct((4, 5), jnp.float32), jax.ShapeDtypeStruct((5, 6), jnp.float32)
PRODUCT = 2 * 4 * 5 * 6
SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
TURN = 2 * 8**3
SQUARED = jax.custom_vjp(lambda x: x @ x)
SQUARED.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))


def step_flops(config):
    """Counted FLOPs per image of a training step that recomputes nothing; scan traces faster."""
    config = config_lib.replaced(config, {"encoder.remat": "none", "encoder.scan": True})
    task = TASKS[config.task].abstract(config)
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, 100_000))
    batch = pipeline.abstract_batch(config, sharding.make_mesh(8, 1, 1))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(step.create_state, task=task, tx=tx), key)
    prepared = jax.eval_shape(functools.partial(prepare, task), task.frozen, batch)
    run = functools.partial(step.train_step, task=task, tx=tx)
    taken = config.mim.step_share
    return flops.count(run, state, prepared, key, taken=taken) / config.step_images


def times(turns, body, x):
    return jax.lax.scan(lambda x, _: (body(x), None), x, length=turns)[0]


@pytest.mark.parametrize(
    ("program", "args", "expected"),
    [
        (lambda a, b: a @ b, (A, B), PRODUCT),
        (jax.jit(lambda a, b: jnp.sin(a) @ b), (A, B), PRODUCT),
        (lambda a, b: jnp.einsum("nij,njk->nik", a[None], b[None]), (A, B), PRODUCT),
        (jax.grad(lambda a, b: jnp.sin(a @ b).sum(), argnums=(0, 1)), (A, B), 3 * PRODUCT),
        (lambda x: times(7, lambda x: x @ x, x), (SQUARE,), 7 * TURN),
        (lambda x: times(3, lambda x: times(5, lambda x: x @ x, x), x), (SQUARE,), 15 * TURN),
        (
            lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x),
            (SQUARE,),
            2 * TURN,
        ),
        (
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x),
            (SQUARE,),
            TURN,
        ),
        (SQUARED, (SQUARE,), TURN),
        (jax.grad(lambda x: SQUARED(x).sum()), (SQUARE,), 3 * TURN),
    ],
)
def test_products_count_as_often_as_they_run(program, args, expected):
    assert flops.count(program, *args) == expected


def test_the_masked_pass_counts_as_often_as_it_is_taken_and_other_branches_always():
    def program(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def named(x):
        with jax.named_scope(masked_steps.SCOPE):
            return program(x)

    assert flops.count(named, SQUARE, taken=0.25) == (0.25 * 2 + 0.75) * TURN
    assert flops.count(program, SQUARE, taken=0.25) == 2 * TURN


def test_products_of_an_optimizer_happen_in_every_step():
    half = {"mim.end_share": 0.5}
    adam, muon, adam_half, muon_half = (
        step_flops(tiny_config(**{"optimizer.name": name}, **window))
        for window in ({}, half)
        for name in ("adamw", "muon")
    )
    assert muon - adam == pytest.approx(muon_half - adam_half, rel=1e-6) and muon > adam


def test_the_efficient_arm_costs_less_than_labels_alone():
    counted = {}
    for arm in ("efficient", "baseline"):
        config = config_lib.validate(load("imagenet_b14").get_config(arm))
        counted[arm] = step_flops(config)
        assert counted[arm] == pytest.approx(flops.analytic(config).train, rel=0.03)
    assert counted["efficient"] < 0.92 * counted["baseline"]


def test_a_convolution_counts_its_window_and_the_channels_of_a_group():
    image = jax.ShapeDtypeStruct((2, 9, 9, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 12), jnp.float32)  # three groups

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )  # fmt: skip

    assert flops.count(convolve, image, kernel) == 2 * (2 * 7 * 7 * 12) * (3 * 3 * 2)


def test_what_remat_recomputes_counts_again():
    def loss(x, body):
        return jnp.sin(body(x)).sum()

    def two(x):
        return jnp.sin(x @ x) @ x

    plain = flops.count(jax.grad(functools.partial(loss, body=two)), SQUARE)
    again = flops.count(jax.grad(functools.partial(loss, body=jax.checkpoint(two))), SQUARE)
    assert again - plain == TURN  # the inner product; the outer one is not needed twice


@pytest.mark.parametrize("arm", ["supmim", "baseline"])
@pytest.mark.parametrize("name", ["imagenet_s16", "imagenet_b14", "imagenet_l14"])
def test_the_formula_is_within_3_percent_of_the_count(name, arm):
    config = config_lib.validate(load(name).get_config(arm))
    assert step_flops(config) == pytest.approx(flops.analytic(config).train, rel=0.03)


@pytest.mark.parametrize(
    "changes",
    [
        {"mim.passes": "one"},
        {"mim.hidden": "mask_token"},
        {"mim.masking": "variable"},
        {"encoder.pool": "map", "classifier.rep_size": 48},
        {"encoder.pool": "cls"},
        {"encoder.pool": "map", "encoder.registers": 8},
        {"class_pass.keep": 0.5},
        {"mim.row_share": 0.25},
        {"data.unlabelled": "folder:other", "data.unlabelled_batch": 32},
        {"mim.start_share": 0.6, "mim.end_share": 0.8},
        {"mim.loss_on": "all", "mim.mask_ratio": 0.75, "tokenizer.codebook_size": 256},
        {"mim.soft_target_weight": 1.0, "classifier.num_classes": 500},
    ],
)
def test_the_formula_follows_the_arms(changes):
    # Larger than tiny: the image's gradient, which nobody computes, must stay small beside it.
    larger = {"encoder.width": 64, "encoder.mlp_dim": 256, "encoder.depth": 4}
    config = tiny_config(**larger | changes)
    assert step_flops(config) == pytest.approx(flops.analytic(config).train, rel=0.03)


def test_the_formula_gives_the_figures_of_the_papers_models():
    """Forward GFLOP at 224 pixels: big_vision's S/16, and B/14, L/14, g/14 by the same count."""
    for name, giga in (("S/16", 9.15), ("B/14", 46.1), ("L/14", 161.4), ("g/14", 531.9)):
        preset = config_lib.get_config()
        preset.encoder.update(**config_lib.variant(name))
        config = config_lib.replaced(tiny_config(), config_lib.flatten(preset))
        assert flops.analytic(config).class_pass / 1e9 == pytest.approx(giga, rel=0.002)


@pytest.mark.parametrize("masking", ["random", "variable"])
def test_masked_modelling_alone_has_no_class_pass(masking):
    masked = tiny_config(**{"class_weight": 0.0, "mim.masking": masking})
    assert flops.analytic(masked).class_pass == 0
    assert step_flops(masked) == pytest.approx(flops.analytic(masked).train, rel=0.03)
