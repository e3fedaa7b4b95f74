"""Options: defaults, checks, JSON."""

import dataclasses
import importlib.metadata
import json
import math

import pytest

from supmim import config as config_lib
from supmim.commands import help
from supmim.config import checks, convert, options, presets
from supmim.errors import ConfigError
from tests.conftest import tiny_config, tiny_preset


def problems_of(config) -> str:
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config)
    return str(caught.value)


def test_defaults_are_valid_and_documented():
    config_lib.validate(config_lib.get_config())
    assert all(option.meaning for option in options.OPTIONS.values())
    assert not any(option.default is None for option in options.OPTIONS.values())


def test_all_impossible_sizes_are_told_at_once_with_nearest_values():
    config = tiny_preset()
    config.data.image_size = 9
    config.encoder.num_heads = 3
    config.decoder.width = 15
    config.decoder.num_heads = 5
    config.mim.mask_ratio = 0.99
    message = problems_of(config.to_dict() | {"log_every": "often"})
    assert "the config has 5 problems" in message and "config.log_every is 'often'" in message
    assert "image_size=9 is not divisible" in message and "nearest image sizes: 8 or 10" in message
    assert "nearest patch sizes: 1 or 3\n" in message
    assert "encoder.num_heads=3; nearest numbers of heads: 2 or 4" in message
    assert "decoder.width=15 is not divisible by 4" in message and "nearest widths: 20" in message
    assert "leaves none of 25 tokens" in message


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("encoder.depth", "two", "is 'two', of type str; it takes int"),
        ("data.flip", 1, "of type int; it takes bool"),
        ("mim.hidden", "dropped", "it takes one of drop, mask_token"),
        ("mim.mask_ratio", 1.5, "it takes a value from 0 to 1"),
        ("tokenizer.patch_size", 4, "set config.tokenizer.patch_size=2"),
        ("eval.evaluators", "knn,clasification", "did you mean classification?"),
        (
            "eval.evaluators",
            "maps",
            "eval.evaluators=maps; there is none: set config.checkpoint.keep_best=0",
        ),
        ("checkpoint.keep_best_metric", "fid", "not a higher-is"),
        ("checkpoint.keep_best_metric", "knn/recal_at_1", "did you mean knn/recall_at_1?"),
        ("checkpoint.keep_best_metric", "knn/", "knn/dino_k20, knn/dino_k100"),
        ("checkpoint.keep_best_metric", "classification/loss", "classification/top1"),
        ("checkpoint.keep_best_metric", "classification/real_top1", "not a higher-is"),
        ("checkpoint.keep_best_metric", "reconstruction/pixels_explained", "not a higher-is"),
        ("checkpoint.keep_best_metric", "segmentation/iou/cat", "not a higher-is"),
        ("encoder.num_heads", 10**10, "it takes a value from 1 to 2147483647"),
        ("encoder.num_heads", 2**31 - 1, "nearest numbers of heads: 16"),
        (
            "decoder.width",
            65_521,
            "and by config.decoder.num_heads=2; nearest widths: 65520 or 65524",
        ),
        ("encoder.width", 18, "nearest widths: 16 or 20"),
        ("data.image_size", 2**31 - 1, "nearest image sizes: 2147483646"),
        ("tokenizer.patch_size", 2**31 - 1, "nearest: 2147483647;"),
        ("mim.mask_ratio", 2 * 10**400, "it takes a value from 0 to 1"),
        ("encoder.attention", "cudnn", "set config.encoder.dtype=bfloat16"),
        ("optimizer.warmup_share", 0.1, "both set the warm-up: set one of them to 0"),
    ],
)
def test_a_wrong_value_is_told_with_what_fits(path, value, told):
    config = tiny_preset().to_dict()
    group, _, name = path.partition(".")
    config[group][name] = value
    assert told in problems_of(config)


def test_every_number_must_be_finite_on_the_devices():
    """The largest float32 is 3.4e38, the largest int32 2147483647."""
    values = {float: (math.inf, -math.inf, math.nan, 1e39, 10**400), int: (2**31, -(2**31))}
    for path, option in options.OPTIONS.items():
        assert not option.problem(option.default), path
        for value in values.get(type(option.default), ()):
            assert f"is {value}; it takes a value from " in option.problem(value), path
    told = problems_of(tiny_preset(**{"optimizer.learning_rate": math.inf}).to_dict())
    assert "config.optimizer.learning_rate is inf; it takes a value from" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder.pool": "cls"}, "even numbers of tokens, not on 9 or 17: set"),
        ({"encoder.pool": "cls", "encoder.registers": 1}, ""),
        ({"encoder.registers": 1}, "even numbers of tokens, not on 9 or 17: set"),
        ({"mim.mask_ratio": 0.45}, "not on 9: set"),
        ({"mim.mask_ratio": 0.45, "mim.hidden": "mask_token"}, ""),
        ({"mim.mask_ratio": 0.45, "mim_weight": 0.0}, ""),
        ({"class_pass.keep": 0.7}, "not on 11: set"),
        ({"data.image_size": 10}, "not on 25: set"),
    ],
)
def test_cudnn_attention_takes_even_numbers_of_tokens(changes, told):
    config = tiny_preset(**{"encoder.attention": "cudnn", "encoder.dtype": "bfloat16"} | changes)
    if told:
        assert told in problems_of(config)
    else:
        config_lib.validate(config)


def test_unknown_and_missing_options_are_told():
    config = tiny_preset().to_dict()
    config["encoder"]["dpeth"] = config["encoder"].pop("depth")
    config["encoder"]["haeds"] = 3
    del config["mim"], config["log_every"]
    message = problems_of(config)
    assert "config.encoder.dpeth does not exist; did you mean config.encoder.depth?" in message
    assert "config.encoder.haeds does not exist" in message
    assert "config.encoder.depth is missing" not in message
    assert "config.mim.unit is missing" in message and "config.log_every is missing" in message


def test_one_wrong_value_or_name_makes_one_problem():
    """Whatever follows from it; config.task alone decides what else must change."""
    tokenizer = {"task": "tokenizer", "tokenizer.name": "vqgan", "data.channels": 3,
                 "tokenizer.channel_multipliers": "1,2", "eval.evaluators": "tokenizer",
                 "checkpoint.keep_best_metric": "tokenizer/psnr"}  # fmt: skip
    segmentation = {"task": "segmentation", "data.train": "scenes:train", "data.eval_resize": 32,
                    "eval.evaluators": "segmentation", "segmentation.window": 8,
                    "segmentation.stride": 2, "classifier.num_classes": 11,
                    "checkpoint.keep_best_metric": "segmentation/miou"}  # fmt: skip
    coloured = {"data.channels": 3, "data.three_augment": True}
    for changes in ({}, tokenizer, segmentation, coloured):
        flat = config_lib.flatten(tiny_config(**changes))
        for path, option in options.OPTIONS.items():
            if changes is coloured and not path.startswith("data."):
                continue
            value = flat[path]
            wrong = [*option.choices] if path != "task" else []
            if isinstance(value, str):
                wrong += [f"{value}x", 3]
            elif not isinstance(value, bool):
                wrong += [value + 1, 3 * value, value // 2, -5, 0, 10**6, "x"]
            for other in (*wrong, None):
                found = checks.problems(flat | {path: other})
                assert len(found) <= 1, (path, other, found)
            if path != "tokenizer.perceptual_weight":  # one more letter makes another option
                misspelt = {name if name != path else f"{path}s": flat[name] for name in flat}
                (problem,) = checks.problems(misspelt)
                assert problem == f"config.{path}s does not exist; did you mean config.{path}?"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder.patch_size": -1, "optimizer.frozen": "encoder", "optimizer.layer_decay": 0.5},
         "layer_decay=0.5 has nothing to act on"),
        ({"task": "supmin", "data.area_min": 0.9, "data.area_max": 0.1}, "area_min=0.9 exceeds"),
        ({"eval.evaluators": "kn", "checkpoint.keep_best_metric": "knn/recal"}, "keep_best_metric"),
        ({"data.image_size": 9, "mim.mask_ratio": 0.99}, "leaves none of 25 tokens visible"),
    ],
)  # fmt: skip
def test_a_second_mistake_is_told_beside_the_first(changes, told):
    found = checks.problems(config_lib.flatten(tiny_preset(**changes)))
    assert len(found) == 2 and told in found[1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mim.passes": "one", "data.mixup": 0.2}, "set config.data.mixup=0"),
        ({"mim.passes": "one", "data.cutmix": 1.0}, "set config.data.cutmix=0"),
        ({"mim.passes": "one", "data.erase": 0.1}, "set config.data.erase=0"),
        ({"mim.passes": "one", "data.randaug_num": 2}, "set config.data.randaug_num=0 or"),
        (
            {"mim.passes": "one", "data.colour_jitter": 0.3, "data.three_augment": True},
            "set config.data.three_augment=False, config.data.colour_jitter=0.0 or",
        ),
        (
            {"data.channels": 2, "data.randaug_num": 2},
            "channels=2: an image has 1 channel, grey, or 3",
        ),
        ({"mim.masking": "units", "mim.unit": 3}, "nearest: 2 or 4"),
        ({"mim.masking": "units", "mim.mask_ratio": 0.9}, "the largest ratio here is 0.75"),
        ({"mim.hidden": "mask_token", "mim.mask_ratio": 1.0}, "leaves none of 16 tokens visible"),
        ({"mim.masking": "block", "mim.block_min": 17}, "exceeds the 16 tokens"),
        ({"class_weight": 0.0, "mim_weight": 0.0}, "nothing would be trained"),
        ({"mim.mask_ratio": 0.03}, "hides none of 16 tokens, so that no token would be learned"),
        (
            {"eval.all_labels": True, "checkpoint.keep_best_metric": "knn/all_labels_recall_at_1"},
            "keep_best_metric=knn/all_labels_recall_at_1 is not a higher",
        ),
        ({"class_pass.keep": 0.03}, "keeps none of 16 tokens; the smallest share here is 0.0625"),
        (
            {
                "mim.passes": "one",
                "class_pass.keep": 0.5,
                "mim.row_share": 0.5,
                "mim.end_share": 0.5,
                "mim.soft_target_weight": 1.0,
            },
            "set config.class_pass.keep=1.0, config.mim.row_share=1.0, config.mim.end_share=1.0, "
            "config.mim.soft_target_weight=0.0 or config.mim.passes=two",
        ),
        ({"mim.soft_target_weight": 1.0, "data.mixup": 0.2}, "set config.data.mixup=0.0 or"),
        ({"mim.start_share": 0.5, "mim.end_share": 0.5}, "no step would have a masked pass"),
        (
            {"mim.row_share": 0.3},
            "takes 3 rows of every 10, so config.batch_size=96 must be divisible by 10; "
            "nearest: 90 or 100",
        ),
        (
            {"mim.row_share": 0.5, "mesh.data": 4, "mesh.fsdp": 4, "accumulation_steps": 2},
            "divisible by 64 with this mesh and accumulation_steps; nearest: 64 or 128",
        ),
    ],
)
def test_impossible_combinations_are_told(changes, told):
    with pytest.raises(ConfigError, match=told):
        tiny_config(**changes)


def test_the_baseline_takes_any_class_view_in_one_pass():
    tiny_config(mim_weight=0.0, **{"mim.passes": "one", "data.randaug_num": 2, "data.mixup": 0.2})
    tiny_config(mim_weight=0.0, **{"mim.passes": "one", "class_pass.keep": 0.5})


def test_ratio_zero_is_legal_and_baseline_ignores_mim_options():
    tiny_config(**{"mim.mask_ratio": 0.0})
    tiny_config(mim_weight=0.0, **{"tokenizer.patch_size": 4, "decoder.width": 15})


def test_json_brings_the_config_back_equal():
    config = tiny_config(**{"optimizer.learning_rate": 3e-4, "class_weight": 2.0})
    back = config_lib.from_json(config_lib.to_json(config), "config.json")
    assert back == config and hash(back) == hash(config)
    assert isinstance(back.class_weight, float)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not a supmim config"),
        ('{"schema_version": 99, "config": {}}', "schema version 99"),
        ('{"schema_version": 99, "config": {}, "supmim_version": "3.1"}', "by supmim 3.1.* Update"),
        ('{"schema_version": 6, "config": {"seed": "x"}}', "config.seed is 'x'"),
        ('{"schema_version": 6, "config": 5}', "is not a supmim config"),
        (
            '{"schema_version": 6, "config": {"data.train": "digits:"}}',
            "not a supmim .* with a dot",
        ),
        ('{"schema_version": 6, "config": {"__class__": 1}}', "config.__class__ does not exist"),
        ("[" * 100_000, "is not a supmim config.* Restore it from a copy"),
        ('{"schema_version": 5, "config": {}}', "version 5.*before 0.2.0.*with the supmim that"),
    ],
)
def test_a_damaged_older_or_newer_json_is_refused(text, told):
    with pytest.raises(ConfigError, match=told):
        config_lib.from_json(text, "config.json")


@pytest.mark.parametrize(("change", "told"), [(-1, "with the supmim that wrote it"), (1, "Update")])
def test_a_config_of_the_schema_before_or_after_is_refused_though_its_options_fit(change, told):
    document = json.loads(config_lib.to_json(tiny_config()))
    document["schema_version"] += change
    with pytest.raises(ConfigError, match=f"schema version {document['schema_version']}.*{told}"):
        config_lib.from_json(json.dumps(document), "config.json")


def test_only_free_options_may_differ_on_resume():
    stored, expected = tiny_config(), tiny_config(log_every=7, **{"mesh.fsdp": 2, "seed": 1})
    assert config_lib.resume_differences(stored, expected) == [
        "config.seed: the workdir has 0, but you ask for 1"
    ]


def test_variants_name_sizes_and_any_patch():
    assert config_lib.variant("B/14") == {
        "patch_size": 14, "width": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12,
    }  # fmt: skip
    published = {  # width, depth, MLP, heads
        "mu": (32, 1, 128, 2), "Ti": (192, 12, 768, 3), "S": (384, 12, 1536, 6),
        "L": (1024, 24, 4096, 16), "So400m": (1152, 27, 4304, 16), "H": (1280, 32, 5120, 16),
        "g": (1408, 40, 6144, 16),
    }  # fmt: skip
    for name, sizes in published.items():
        found = config_lib.variant(f"{name}/16")
        keys = ("patch_size", "width", "depth", "mlp_dim", "num_heads")
        assert [found[key] for key in keys] == [16, *sizes]
    assert all(width % heads == 0 for width, _, _, heads in presets.VARIANTS.values())
    with pytest.raises(ConfigError, match="e.g. B/14"):
        config_lib.variant("XL/14")


def test_augmentations_name_their_options():
    assert config_lib.augmentation("none") == {
        path.removeprefix("data."): option.default
        for path, option in options.OPTIONS.items()
        if option.augmentation
    }
    published = {  # AugReg's layers, magnitude and mixup
        "light1": (0, 0.0), "light2": (10, 0.2), "medium1": (15, 0.2), "medium2": (15, 0.5),
        "strong1": (20, 0.5), "strong2": (20, 0.8),
    }  # fmt: skip
    for name, (magnitude, mixup) in published.items():
        found = config_lib.augmentation(name)
        drawn = found["randaug_num"], found["randaug_magnitude"], found["mixup"]
        assert drawn == (2, magnitude, mixup), name
    light = config_lib.augmentation("light2")
    assert light["crop"] == "inception" and light["flip"] is True
    assert (light["randaug_num"], light["randaug_magnitude"], light["mixup"]) == (2, 10.0, 0.2)
    with pytest.raises(ConfigError, match="medium1, medium2, strong1"):
        config_lib.augmentation("medium3")


def test_help_lists_every_option_in_80_columns():
    text = help.describe_options({path: option.default for path, option in options.OPTIONS.items()})
    assert all(f"--config.{path}=" in text for path in options.OPTIONS)
    assert max(map(len, text.splitlines())) <= 80


def test_an_option_that_config_json_lacks_is_filled_in_only_if_it_is_declared_so(monkeypatch):
    document = json.loads(config_lib.to_json(tiny_config()))
    del document["config"]["mim"]["unit"]
    with pytest.raises(ConfigError, match="config.mim.unit is missing"):
        config_lib.from_json(json.dumps(document), "config.json")
    later = dataclasses.replace(options.OPTIONS["mim.unit"], default_is_before=True)
    monkeypatch.setitem(convert.OPTIONS, "mim.unit", later)
    assert config_lib.from_json(json.dumps(document), "config.json") == tiny_config()


def test_config_json_names_the_supmim_that_wrote_it():
    document = json.loads(config_lib.to_json(tiny_config()))
    assert document["supmim_version"] == importlib.metadata.version("supmim")
    assert document["schema_version"] == config_lib.SCHEMA_VERSION == 6


def test_a_whole_number_for_a_float_becomes_one_and_a_bool_for_a_number_is_refused():
    flat = config_lib.flatten(tiny_preset())
    assert type(config_lib.validate(flat | {"class_weight": 2}).class_weight) is float
    assert "config.batch_size is True, of type bool" in problems_of(flat | {"batch_size": True})


def test_every_option_of_a_group_is_declared_with_its_facts():
    """A field without `option(...)` would escape checks, flags and JSON."""
    assert set(config_lib.flatten(tiny_config())) == set(options.OPTIONS)
    assert [
        path for path, option in options.OPTIONS.items() if option.problem(option.default)
    ] == []
    known = set(options.tasks.FACTS)
    assert all(set(option.unused_by) <= known for option in options.OPTIONS.values())


def test_a_debug_size_is_valid_by_itself():
    sizes = {path: option.debug for path, option in options.OPTIONS.items()}
    assert not [p for p, v in sizes.items() if v is not None and options.OPTIONS[p].problem(v)]
