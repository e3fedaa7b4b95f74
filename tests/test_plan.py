"""A plan tells what the real step would need, says no in time, and knows what would help."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from supmim import cli, sharding
from supmim import config as config_lib
from supmim.commands import plan
from supmim.errors import ConfigError, DeviceError
from supmim.planning import program, roofline, table, topology
from supmim.planning.hlo import Collective
from supmim.report import forecast
from supmim.updates import spikes
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[1]
TINY = {"batch_size": 16, "mesh.fsdp": 2}
EFFICIENT = {"class_pass.keep": 0.75, "mim.row_share": 0.5, "mim.start_share": 0.6}
TPU_OOM = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (28.32G) exceeds available HBM (15.75G)."
)


@pytest.fixture(scope="module")
def where():
    return topology.load("cpu:8")


@pytest.fixture(scope="module")
def result(where):
    return plan.make(tiny_config(**TINY), where, 1500)


def test_a_plan_counts_the_bytes_and_products_of_the_real_step(result):
    assert result["fits"] and result["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    memory = result["memory"]
    assert memory["total"] == sum(memory[name] for name in forecast.MEMORY)
    assert memory["temporaries"] > 16 * 2 * 16 * 16 * 4 / 8  # at least the images' first tokens
    assert result["parameters"] * 4 / 2 < memory["parameters"] < result["parameters"] * 4
    moments = memory["optimizer"] - 2 * spikes.WINDOW * 4  # which the spikes are told by
    assert 2 <= moments / memory["parameters"] < 2.01  # two moments, split alike
    work = result["flops"]
    assert work["train"] == work["executed"] == pytest.approx(work["analytic"], rel=0.1)
    moved = {one["kind"]: one for one in result["collectives"]}
    assert moved["all-reduce"]["bytes"] < 4 * 4 * result["parameters"]
    assert moved["all-gather"]["devices"] == 2


def test_ids_are_planned_too_whole_on_every_chip_and_in_turns_with_the_step(where, result):
    tokenizer, memory = result["tokenizer"], result["memory"]
    assert tokenizer["weights"] == 16 * 4 * 4  # all codes
    assert tokenizer["microbatches"] == 64 * (8 * 8 + 2 * 4)  # of uint8, with epoch and index
    large = plan.make(tiny_config(**TINY, **{"tokenizer.microbatch": 2048}), where, 0)
    turn = large["tokenizer"]["microbatches"] + large["tokenizer"]["temporaries"]
    assert turn > 2 * memory["temporaries"]
    beside = sum(memory[name] for name in ("parameters", "optimizer", "batch"))
    assert large["memory"]["total"] >= beside + tokenizer["weights"] + turn
    grown = turn - memory["temporaries"] + tokenizer["weights"] + large["tokenizer"]["program"]
    assert large["memory"]["tokenizer"] == grown
    assert "\n  tokenizer   " in forecast.text(result | {"plan_seconds": 1})


@pytest.mark.parametrize("changes", [{"data.targets": "cache"}, {"mim_weight": 0.0}], ids=str)
def test_a_run_that_computes_no_ids_has_no_memory_for_them(where, changes):
    told = plan.make(tiny_config(**TINY, **changes), where, 0)
    assert told["memory"]["tokenizer"] == 0 == sum(told["tokenizer"].values())
    assert "\n  tokenizer   " not in forecast.text(told)


def test_collectives_move_parameters_and_no_activations(where, result):
    """A batch twice as large moves the same bytes."""
    twice = plan.make(tiny_config(**TINY | {"batch_size": 32}), where, 0)

    def payload(one):
        return sum(moved["bytes"] for moved in one["collectives"])

    assert twice["memory"]["temporaries"] > 1.3 * result["memory"]["temporaries"]
    assert payload(twice) == payload(result) < 16 * result["parameters"]


@pytest.mark.slow
def test_collectives_of_cheaper_passes_move_no_activations_either(where, result):
    def payload(one):
        return sum(moved["bytes"] for moved in one["collectives"])

    shallow = TINY | EFFICIENT | {"encoder.depth": 1}
    small, large = (
        plan.make(tiny_config(**shallow | {"batch_size": rows}), where, 0) for rows in (16, 32)
    )
    assert payload(small) == payload(large) < 24 * result["parameters"]
    assert small["flops"]["train"] == pytest.approx(small["flops"]["analytic"], rel=0.1)
    assert any("40% of the steps have a masked pass" in note for note in small["notes"])


def test_remat_is_executed_but_is_no_work_of_the_training(where, result):
    with_remat = tiny_config(**TINY, **{"encoder.remat": "full"})
    mesh = sharding.make_mesh(4, 2, 1)
    with plan.jax.set_mesh(mesh):
        work = program.count_flops(program.build(with_remat, mesh))
    assert work["executed"] > 1.1 * work["train"]
    assert work["train"] == result["flops"]["train"]


def shrunk(where):
    return where._replace(chip=where.chip._replace(memory=40_000))


def test_what_does_not_fit_is_told_with_changes_that_are_valid(where):
    config = tiny_config(**TINY)
    told = plan.make(config, shrunk(where), 0)
    assert not told["fits"] and told["verdict"].startswith("it needs")
    options = dict(one["option"].removeprefix("--config.").split("=") for one in told["advice"])
    assert options == {
        "mesh.fsdp": "8", "optimizer.moment_dtype": "bfloat16", "encoder.remat": "full",
        "accumulation_steps": "2", "batch_size": "8",
    }  # fmt: skip
    for option, value in options.items():
        value = int(value) if value.isdigit() else value
        config_lib.validate(config_lib.flatten(config) | {option: value})
    state = next(one["effect"] for one in told["advice"] if "mesh.fsdp" in one["option"])
    assert state.startswith("parameters and optimizer")
    text = forecast.text(told)
    assert "DOES NOT FIT" in text and max(map(len, text.splitlines())) <= 80


@pytest.fixture
def tiny_preset(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        "from tests.conftest import tiny_preset\n"
        f"def get_config():\n    return tiny_preset(**{TINY!r})\n"
    )
    return f"--config={path}"


def test_the_verb_prints_a_table_or_json_and_ends_with_6_where_it_does_not_fit(
    where, tiny_preset, monkeypatch, capsys
):
    assert cli.run(["plan", tiny_preset, "--topology=cpu:8"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and "verdict       fits" in text
    monkeypatch.setattr(topology, "load", lambda name: shrunk(where))
    assert cli.run(["plan", tiny_preset, "--topology=cpu:8", "--json"]) == 6
    printed = capsys.readouterr()
    assert not json.loads(printed.out)["fits"]
    assert "does not fit cpu:8" in printed.err and len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "--topology is missing"),
        (["--topology=v5e"], "GENERATION:SIZE"),
        (["--topology=v9:4x4"], "generations: v4, v5e"),
        (["--topology=v5e:0x4"], "GENERATION:SIZE"),
        (["--topology=v5e:4x4x4"], "a v5e has a size like v5e:4x4"),
        (["--topology=v5p:4x4"], "a v5p has a size like v5p:4x4x4"),
        (["--topology=cpu:2x2"], "a cpu has a size like cpu:8"),
        (["--topology=h200:12"], "do not fill hosts of 8"),
        (["--topology=cpu:8", "--images=many"], "--images=many is not a number"),
        (["--topology=cpu:8", "--config.batch_size=12"], "does not divide over 8 devices"),
        (["--topology=cpu:8", "--config.mim.row_share=0.25"],
         "does not divide over 8 devices of whole groups of 4, for mim.row_share; nearest: 32"),
        (["--topology=cpu:8", "--config.encoder.attention=cudnn",
          "--config.encoder.dtype=bfloat16"], "needs a GPU, which cpu:8 is not"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_told_with_exit_2(tiny_preset, capsys, args, told):
    assert cli.run(["plan", tiny_preset, *args]) == 2
    assert told in capsys.readouterr().err


def test_a_plan_of_nothing_names_the_flag(capsys):
    assert cli.run(["plan", "--topology=cpu:8"]) == 2
    assert "--config is missing" in capsys.readouterr().err


def test_flags_of_two_words_take_dashes():
    values = cli.parse("plan", ["--largest-batch", "--config=digits"])
    assert values.largest_batch is True


def test_a_mesh_for_more_chips_is_planned_smaller_with_a_note():
    config, notes = plan.fitted_mesh(tiny_config(**{"mesh.fsdp": 16}), 8)
    assert config.mesh.fsdp == 8 and "--config.mesh.fsdp=8" in notes[0]
    same = tiny_config(**{"mesh.fsdp": 4})
    assert plan.fitted_mesh(same, 8) == (same, [])


def test_an_evaluation_batch_that_train_would_refuse_is_noted(where):
    config = tiny_config(**{"eval.batch_size": 100})
    (note,) = plan.check_config(config, where, sharding.make_mesh(8, 1, 1))
    assert "--config.eval.batch_size=104" in note


def test_the_number_of_training_images_is_found_or_asked_for():
    config = tiny_config()
    assert plan.training_images(config, "") == 1500
    assert plan.training_images(config, "77") == 77
    few = tiny_config(**{"data.labels": 100.0, "data.unlabelled": "rest"})
    assert plan.training_images(few, "") == 100
    part = tiny_config(**{"data.train": "imagenet2012:train", "data.limit": 10})
    assert plan.training_images(part, "") != plan.IMAGENET_TRAIN
    for name, images in (("[:99%]", 1_268_355), ("", 1_281_167), ("[:10%]", 128_116)):
        named = tiny_config(**{"data.train": f"imagenet2012:train{name}"})
        assert plan.training_images(named, "") == images
    assert plan.training_images(tiny_config(**{"data.train": "elsewhere:train"}), "") == 0


def test_bytes_that_a_compiler_lacks_are_read_from_its_error():
    assert program._bytes_needed(TPU_OOM) == int(28.32 * 2**30)
    assert program._bytes_needed("Used 512.5M of 15.75G hbm. Exceeded") == int(512.5 * 2**20)
    assert program._bytes_needed("INTERNAL: something else (3.0G)") == 0


@pytest.mark.parametrize("start", [8, 64, 640])
def test_the_largest_batch_is_on_the_line_through_two_plans_and_is_checked(
    where, monkeypatch, start
):
    tried = []

    def affine(config, where, num_images):
        images = config.batch_size // 8
        tried.append(images)
        total = 1000 + 10 * images + (5000 if images > 90 else 0)
        return {
            "batch_size": config.batch_size, "images_per_chip": images, "chips": 8,
            "fits": total <= 2000 * topology.MEMORY_SHARE, "memory": {"total": total},
        }  # fmt: skip

    monkeypatch.setattr(plan, "make", affine)
    small = where._replace(chip=where.chip._replace(memory=2000))
    config = tiny_config(batch_size=start)
    first = affine(config, small, 0)
    found = plan.largest_batch(config, small, 0, first)
    assert found["batch_size"] == 8 * 86  # the line says 96, which does not fit; then 9/10 of it
    assert found["bytes_per_image"] == 10 and found["predicted"] == 1960
    assert 96 in tried and len(tried) == len(set(tried))


@pytest.mark.parametrize(
    ("steps", "images", "told"),
    [(3000, 0, "hours for 3,000 steps"), (30, 960, "hours for 3 epochs of 960 images"),
     (0, 0, "hours need the number of images of folder:x: give --images=N")],
)  # fmt: skip
def test_hours_are_of_a_length_in_steps_or_in_epochs(result, steps, images, told):
    """A length in steps needs no number of images."""
    bound = dict.fromkeys(("compute", "memory", "network", "best", "worst"), 0.1)
    known = {"roofline": bound, "speeds": [], "train": "folder:x", "epochs": 3}
    known["tokenizer_seconds"] = 0.0
    text = forecast.text(result | known | {"steps": steps, "num_images": images, "plan_seconds": 1})
    assert f"\n  {told}\n" in text


def test_sizes_are_binary_and_have_three_digits():
    sizes = (999, 1010, 1536, 1010 * 2**10, 2**20, 1536 * 2**20, 5000 * 2**30)
    told = ["999 B", "0.986 KiB", "1.5 KiB", "0.986 MiB", "1 MiB", "1.5 GiB", "5,000.0 GiB"]
    assert list(map(forecast.size, sizes)) == told


def test_rings_send_less_than_twice_the_payload_whatever_the_number_of_chips():
    for devices in (16, 4096):
        all_reduce = Collective("all-reduce", "bf16", 1000, devices, 3)
        assert roofline.sent(all_reduce) == 2 * 3000 * (devices - 1) / devices
        gather = Collective("all-gather", "bf16", 1000, devices, 1)
        assert roofline.sent(gather) == 1000 * (devices - 1) / devices
    assert roofline.sent(Collective("collective-permute", "f32", 7, 2, 1)) == 7


def test_the_roofline_is_each_resource_at_its_full_rate():
    chip = topology.CHIPS["v5e"]
    moved = [Collective("collective-permute", "f32", 180e9, 2, 1)]
    bound = roofline.estimate(chip, 197e12, 819e9 / 2, moved)
    assert bound == pytest.approx((1.0, 0.5, 1.0))
    assert (bound.overlapped, bound.serial) == pytest.approx((1.0, 2.5))
    assert roofline.estimate(topology.CHIPS["cpu"], 1, 1, []) is None


def test_hours_include_the_tokenizer(result):
    chip = topology.CHIPS["v5e"]
    work = {"train": 3e9, "executed": 4e9, "tokenize": 1e9, "analytic": 0.0}
    known = result | {"chips": 4, "step_images": 64, "steps": 100, "images_per_chip": 16}
    half = list(plan.speeds(known | {"flops": work}, chip, 0))[1]
    assert half["mfu"] == 0.5
    assert half["images_per_second"] == pytest.approx(4 * 0.5 * 197e12 / 4e9)
    assert half["hours"] == pytest.approx(100 * 64 / half["images_per_second"] / 3600)
    program = SimpleNamespace(collectives=list, traffic=dict)
    where = SimpleNamespace(chip=chip)
    known |= {"flops": work, "plan_seconds": 1}
    told = known | plan.speed(known, where, program, 0)
    assert told["tokenizer_seconds"] == pytest.approx(16e9 / 197e12)
    assert "the tokenizer's program comes on top: 0.0812 or more" in forecast.text(told)


def test_a_row_of_the_table_is_whole_or_says_why(result):
    row = result | {"preset": "s16", "speeds": [{}, {"images_per_second": 5.0}]}
    row["roofline"] = {"best": 0.010, "worst": 0.021}
    dead = {"preset": "g14", "topology": "v5e:4x4", "fits": False, "verdict": "it died"}
    page = forecast.markdown([row, dead], table.IMAGES_PER_CHIP)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(forecast.COLUMNS) + 1}
    assert "| 10 to 21 | 5 | fits |" in page and page.endswith("| it died |\n")


# With the TPU compiler: each plan in a process of its own, since this one pretends to be 8 CPUs.


def tpu_plan(*args):
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs libtpu: pip install -e '.[tpu]'")
    done = subprocess.run(
        [sys.executable, "-m", "supmim", "plan", "--json", *args], capture_output=True, text=True,
        cwd=ROOT,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def test_a_stack_of_the_compiler_is_left_out_of_its_message(monkeypatch):
    def fail(**_):
        text = "INVALID: no such\ntopology\n=== Source Location Trace: ===\na.cc:1"
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr(topology.topologies, "get_topology_desc", fail)
    with monkeypatch.context() as context, pytest.raises(ConfigError) as caught:
        for variable in topology.TPU_ENVIRONMENT:
            context.setenv(variable, "")  # and put back afterwards
        topology.load("v5e:2x2")
    assert str(caught.value).endswith("libtpu 1.0 says: INVALID: no such\ntopology")


def test_without_libtpu_the_extra_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(DeviceError, match=r"pip install -e '\.\[tpu\]'"):
        topology.load("v5e:4x4")


def test_a_pod_is_planned_without_one():
    code, told = tpu_plan("--config=digits", "--config.batch_size=64",
                          "--topology=v5e:2x2")  # fmt: skip
    assert code == 0 and told["fits"] and told["chips"] == 4
    assert told["compiler"].startswith("libtpu") and told["roofline"]["best"] > 0
    assert {one["kind"] for one in told["collectives"]} <= {"all-reduce", "collective-permute"}


def test_a_step_too_large_for_the_pod_is_a_verdict():
    code, told = tpu_plan("--config=imagenet_l14", "--config.batch_size=512",
                          "--topology=v5e:2x2")  # fmt: skip
    assert code == 6 and not told["fits"] and "temporaries alone" in told["verdict"]
    assert any("mesh.fsdp=4" in one["option"] for one in told["advice"])


@pytest.mark.slow
def test_bytes_of_a_chip_do_not_grow_from_16_to_4096_chips():
    sent = []
    for chips, name in ((16, "v5p:4x2x2"), (4096, "v5p:16x16x16")):
        _, told = tpu_plan("--config=digits", f"--config.batch_size={4 * chips}",
                           f"--topology={name}")  # fmt: skip
        sent.append(sum(one["sent"] for one in told["collectives"]))
    assert sent[1] == pytest.approx(sent[0], rel=0.1)


def test_a_name_that_the_compiler_refuses_is_told(capsys):
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs libtpu")
    with pytest.raises(ConfigError, match="libtpu .* says"):
        topology.load("v5e:5x5")
