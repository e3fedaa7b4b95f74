"""Every preset and arm is valid, short, headed by its command, and traces without data."""

import ast
import functools
import importlib.util
from pathlib import Path

import jax
import pytest

from supmim import config as config_lib
from supmim import optimizer, sharding, step
from supmim.config import presets
from supmim.data import pipeline
from supmim.errors import ConfigError
from supmim.interop import pretrained
from supmim.tasks.registry import TASKS
from tests.conftest import prepare

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.py"))
TOKENIZERS = [name for name in PRESETS if name.startswith("tokenizer_")]
FINE_TUNING = {"finetune_digits": "digits", "finetune_cifar10": "cifar10",
               "finetune_imagenet": "imagenet_b14"}  # fmt: skip
SEGMENTATION = {"segment_scenes": "digits", "segment_ade20k": "imagenet_b14"}
ENCODERS = sorted(set(PRESETS) - set(TOKENIZERS) - set(FINE_TUNING) - set(SEGMENTATION))


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def traced(config):
    """Shapes of the state and metrics after one step on an imagined batch, traced as a scan."""
    if config.task != "tokenizer":
        config = config_lib.replaced(config, {"encoder.scan": True})
    if not config.classifier.num_classes:  # those of the source
        config = config_lib.replaced(config, {"classifier.num_classes": 10})
    task = TASKS[config.task].abstract(config)
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, 100_000))
    batch = pipeline.abstract_batch(config, sharding.make_mesh(8, 1, 1))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(step.create_state, task=task, tx=tx), key)
    batch = jax.eval_shape(functools.partial(prepare, task), task.frozen, batch)
    after = jax.eval_shape(functools.partial(step.train_step, task=task, tx=tx), state, batch, key)
    return state, *after


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6


def test_the_expected_presets_are_there():
    imagenet = {f"imagenet_{name}" for name in ("s16", "b14", "l14", "h14", "g14")}
    assert {"digits", "cifar10", "pictures"} | imagenet <= set(PRESETS)


@pytest.mark.parametrize(
    ("name", "arm"),
    [pytest.param(name, arm, marks=pytest.mark.slow if "imagenet" in name else [])
     for name in ENCODERS for arm in presets.ARMS],
)  # fmt: skip
def test_every_preset_is_valid_and_traces(name, arm):
    config = config_lib.validate(load(name).get_config(arm))
    state, after, totals = traced(config)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), after
    )
    assert ("decoder" in state.params) == ("mim_loss" in totals) == (arm != "baseline")
    assert (config.class_pass.keep < 1) == (config.mim.row_share < 1) == (arm == "efficient")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_is_valid_traces_and_has_a_debug_size(name):
    config = config_lib.validate(load(name).get_config())
    state, after, totals = traced(config)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), after
    )
    assert "reconstruction_loss" in totals and "code_statistics" not in totals
    small = config_lib.debug(config)
    assert small.data.limit == 64 and small.data.image_size == 4 * small.tokenizer.patch_size


@pytest.mark.parametrize(("name", "source"), FINE_TUNING.items())
def test_fine_tuning_fits_the_encoder_of_its_source_at_a_higher_resolution(name, source):
    config, stored = (config_lib.validate(load(n).get_config()) for n in (name, source))
    pretrained.check_kind(stored, config)
    assert config.data.image_size > stored.data.image_size
    assert config.optimizer.layer_decay < 1 and config.encoder.stochastic_depth > 0
    state, after, totals = traced(config)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), after
    )
    assert "decoder" not in state.params and "class_loss" in totals
    assert config_lib.debug(config).init.model == ""


@pytest.mark.parametrize(("name", "source"), SEGMENTATION.items())
def test_segmentation_fits_the_encoder_of_its_source_and_traces(name, source):
    config, stored = (config_lib.validate(load(n).get_config()) for n in (name, source))
    pretrained.check_kind(stored, config)
    for one in (config, config_lib.debug(config)):
        state, after, totals = traced(one)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
            lambda a: (a.shape, a.dtype), after
        )
        assert state.params.keys() == {"encoder", "segmentation"} and "pixel_loss" in totals


@pytest.mark.parametrize("name", ENCODERS)
def test_every_preset_has_a_debug_size(name):
    preset = load(name).get_config("efficient")
    preset.batch_size, preset.mim.row_share = 7680, 0.3
    config = config_lib.debug(config_lib.validate(preset))
    assert config.encoder.depth == 2 and config.data.limit == 64
    assert config.data.image_size // config.encoder.patch_size == 4
    state, *_ = traced(config)
    assert count(state.params) < 100


@pytest.mark.parametrize(
    ("name", "millions"), [("imagenet_s16", 21.6), ("imagenet_b14", 85.6), ("imagenet_l14", 303.1),
     ("imagenet_h14", 630.4), ("imagenet_g14", 1010.8)],
)  # fmt: skip
def test_encoders_have_the_sizes_of_their_names(name, millions):
    task = TASKS["supmim"].abstract(config_lib.validate(load(name).get_config("baseline")))
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert abs(count(params["encoder"]) - millions) < 0.3


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_short_diff_headed_by_its_command(name):
    text = (CONFIGS / f"{name}.py").read_text()
    head = ast.get_docstring(ast.parse(text))
    verb = "tokenizer train" if name in TOKENIZERS else "train"
    assert f"supmim {verb} --config={name} --workdir=" in head
    assert "not run yet" in head or "%" in head
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize("size", presets.VARIANTS)
def test_a_size_sets_all_that_belongs_to_it_and_no_decoder_outgrows_its_encoder(size):
    config = config_lib.validate(load("pictures").get_config(f"{size}/16"))
    width, depth, mlp_dim, num_heads = presets.VARIANTS[size]
    sizes = config.encoder
    assert (sizes.width, sizes.depth, sizes.mlp_dim, sizes.num_heads) == presets.VARIANTS[size]
    assert config.tokenizer.patch_size == sizes.patch_size == 16 and config.mim_weight
    decoder = config.decoder
    assert decoder.width <= width and decoder.depth <= depth + 1 and decoder.mlp_dim <= 4 * width
    assert (config.batch_size, config.optimizer.learning_rate) == presets.BATCHES_AND_RATES[size]


def test_arguments_of_a_preset_come_in_any_order():
    get_config = load("pictures").get_config
    assert get_config("baseline,Ti/8") == get_config("Ti/8,baseline")
    plain, cpu = get_config(), get_config("cpu")
    assert plain == get_config("supmim,S/16") and plain.encoder.patch_size == 16
    assert (cpu.data.image_size, cpu.encoder.dtype, cpu.batch_size) == (96, "float32", 32)
    assert get_config("cpu,baseline").mim_weight == 0 < cpu.mim_weight
    told = "'baselin' is not an argument of this preset: .* S/16, or cpu, supmim, .*mean baseline"
    with pytest.raises(ConfigError, match=told):
        get_config("Ti/16,baselin")
    with pytest.raises(ConfigError, match="encoder variant 'X/16' is not known"):
        get_config("X/16")


def test_an_unknown_arm_is_told():
    with pytest.raises(ConfigError, match="supmim, baseline or efficient"):
        load("digits").get_config("suprim")
