"""A tokenizer is a task like any other: the laws of the step hold, and the loop trains it."""

import contextlib
import functools
import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from supmim import cli, metrics, optimizer, sharding, step, tokenizers
from supmim import config as config_lib
from supmim.config import checks, options
from supmim.data import images, run_sources, sources, stream
from supmim.data.augment import views
from supmim.data.sources import base
from supmim.errors import ConfigError
from supmim.runtime.preemption import StopSignal
from supmim.tasks.tokenizer import TokenizerTraining
from supmim.tokenizers import quality
from supmim.workdir.files import read_config, read_results
from tests.conftest import digit_views, tiny_config

BATCH = 16
SMALL = {
    "task": "tokenizer", "batch_size": BATCH, "eval.evaluators": "tokenizer",
    "checkpoint.keep_best_metric": "tokenizer/psnr", "tokenizer.name": "vqgan",
    "tokenizer.filters": 8, "tokenizer.norm_groups": 4,
    "tokenizer.channel_multipliers": "1,1", "tokenizer.patch_size": 2,
    "tokenizer.num_res_blocks": 1, "tokenizer.embedding_dim": 8,
}  # fmt: skip
ALIVE = {"tokenizer.codebook": "ema", "tokenizer.revive_below": 0.2,
         "tokenizer.entropy_weight": 0.0, "tokenizer.codebook_decay": 0.9}  # fmt: skip
ADVERSARY = {"tokenizer.adversarial_weight": 0.1, "tokenizer.discriminator_filters": 4,
             "tokenizer.lecam_weight": 0.5, "tokenizer.r1_weight": 0.0}  # fmt: skip
R1 = {"tokenizer.r1_weight": 10.0}  # second gradients take long to compile: where they matter


def small_config(**changes):
    return tiny_config(**SMALL | {"data.rotate": 0.0, "data.shift": 0.0} | changes)


def task_of(**changes):
    config = small_config(**changes)
    return TokenizerTraining.create(config, None, None), config


@functools.cache
def raw_batch(number=0):
    read = stream.Training(digit_views("train", small_config()), 0, BATCH, np.arange(BATCH))
    return read(number)[0]


@functools.lru_cache(maxsize=8)
def preparing(task):
    return jax.jit(task.prepare)


def prepared(task, number=0):
    return preparing(task)(raw_batch(number))


def programs(task, config, parts=1):
    tx = optimizer.create(config.optimizer, lambda _: 3e-3)
    state = jax.jit(functools.partial(step.create_state, task=task, tx=tx))(jax.random.key(0))
    return state, jax.jit(functools.partial(step.train_step, task=task, tx=tx, parts=parts))


def trained(steps=3, **changes):
    task, config = task_of(**changes)
    state, program = programs(task, config)
    for number in range(steps):
        state, totals = program(state, prepared(task, number), jax.random.key(7))
    return state, totals


def loss_of(task):
    return lambda params, batch, rng: task.loss_fn(params, task.draw(batch, rng), rng)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_same_seed_gives_the_same_parameters_bit_for_bit_and_they_move():
    """Law 1."""
    first, totals = trained(**ALIVE, **ADVERSARY | R1)
    again, _ = trained(**ALIVE, **ADVERSARY | R1)
    equal(first, again)
    values = metrics.summarize([totals])
    assert np.isfinite(list(values.values())).all() and "code_statistics" not in totals
    assert {"reconstruction_loss", "commitment_loss", "psnr", "code_usage", "r1_loss", "lecam_loss",
            "discriminator_loss"} <= values.keys()  # fmt: skip
    assert first.params["statistics"]["updates"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(ALIVE | ADVERSARY, id="ema, adversary"),
        pytest.param({"tokenizer.entropy_weight": 0.0}, id="gradient", marks=pytest.mark.slow),
    ],
)
def test_parts_give_the_step_of_the_whole_batch(changes):
    """Law: 1 part or 4, statistics too."""
    task, config = task_of(**changes)
    batch, rng = prepared(task), jax.random.key(7)
    ends = []
    for parts in (1, 4):
        state, _ = programs(task, config)
        drawn = task.draw(batch, rng)
        grads, totals = jax.jit(functools.partial(step.gradients, task.loss_fn, parts=parts))(
            state.params, drawn, rng
        )
        params, totals = task.after_update(state.params, totals)
        ends.append((grads, params, metrics.summarize([totals])))
    for whole, split in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        scale = max(1.0, float(np.abs(whole).max()))
        np.testing.assert_allclose(split, whole, atol=1e-5 * scale, rtol=1e-4)


def test_the_mesh_does_not_change_gradients_or_statistics():
    """Law 3: 8 devices against 1."""
    task, config = task_of(**ALIVE, **ADVERSARY)
    found = []
    for count in (1, 8):
        mesh = sharding.make_mesh(count, 1, 1, devices=jax.devices()[:count])
        with jax.set_mesh(mesh):
            params = jax.jit(task.init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
            batch = jax.device_put(prepared(task), sharding.batch_sharding(mesh))

            @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
            def one(params, batch):
                drawn = task.draw(batch, jax.random.key(7))
                grads, totals = step.gradients(task.loss_fn, params, drawn, jax.random.key(7), 1)
                return grads, task.after_update(params, totals)[0]

            found.append(jax.device_get(one(params, batch)))

    def compare(path, ours, expected):
        name = sharding.path_name(path)
        nothing = name.endswith("decoder/Conv_1/bias")  # in exact numbers: the next norm removes it
        least = 1e-2 if nothing else 1e-3
        assert np.abs(ours - expected).max() <= 1e-5 * max(np.linalg.norm(expected), least), name

    jax.tree_util.tree_map_with_path(compare, *reversed(found))


def test_padding_changes_no_loss_gradient_or_statistic():
    """Law 10."""
    task, _ = task_of(**{"tokenizer.revive_below": 0.2}, **ADVERSARY | R1)
    params, rng = jax.jit(task.init)(jax.random.key(0)), jax.random.key(1)
    half = prepared(task).replace(valid=(jnp.arange(BATCH) < BATCH // 2).astype(jnp.float32))
    scribbled = half.replace(mim_view=half.mim_view.at[BATCH // 2 :].set(7.0))
    grad = jax.jit(jax.grad(loss_of(task), has_aux=True))
    equal(grad(params, half, rng), grad(params, scribbled, rng))


def test_a_step_that_is_not_finite_changes_nothing():
    task, config = task_of(**ALIVE, **ADVERSARY)
    state, program = programs(task, config)
    batch = prepared(task)
    state, _ = program(state, batch, jax.random.key(7))
    after, totals = program(
        state, batch.replace(mim_view=batch.mim_view * jnp.nan), jax.random.key(7)
    )
    equal(after.params, state.params)
    assert metrics.summarize([totals])["skipped_in_a_row"] == 1


def test_decay_and_gradients_leave_statistics_alone():
    task, config = task_of(**ALIVE, **{"optimizer.weight_decay": 0.5, "optimizer.ema_decay": 0.9})
    state, _ = programs(task, config)
    params = state.params
    grads, _ = jax.jit(jax.grad(loss_of(task), has_aux=True))(
        params, prepared(task), jax.random.key(0)
    )
    still = {name: grads[name] for name in ("statistics", "quantizer")}
    assert largest(still) == 0 and largest(grads["encoder"]) > 0
    tx = optimizer.create(config.optimizer, lambda _: 3e-3)
    ones = jax.tree.map(jnp.ones_like, params)
    update = jax.jit(functools.partial(tx.update, step=0))
    updates, _ = update(grads, tx.init(ones), ones)
    assert largest({name: updates[name] for name in still}) == 0 < largest(updates["encoder"])


def test_each_side_is_a_constant_in_the_losses_of_the_other():
    patch = {"tokenizer.adversarial_loss": "hinge", "tokenizer.discriminator": "patch"}

    def grads(**changes):
        task, _ = task_of(**patch, **ADVERSARY | changes)
        params = jax.jit(task.init)(jax.random.key(0))
        grad = jax.jit(jax.grad(loss_of(task), has_aux=True))
        return grad(params, prepared(task), jax.random.key(0))[0]

    def close(a, b):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)

    base, stronger = grads(), grads(**{"tokenizer.adversarial_weight": 5.0})
    close(base["discriminator"], stronger["discriminator"])
    assert largest(jax.tree.map(jnp.subtract, base["decoder"], stronger["decoder"])) > 0
    kinder = grads(**{"tokenizer.r1_weight": 0.0, "tokenizer.lecam_weight": 0.0})
    close(base["decoder"], kinder["decoder"])
    assert largest(jax.tree.map(jnp.subtract, base["discriminator"], kinder["discriminator"])) > 0


def test_the_adversary_waits_for_its_start():
    late = {"tokenizer.adversarial_start": 2, "tokenizer.discriminator": "patch"}
    task, config = task_of(**ADVERSARY, **late)
    state, program = programs(task, config)
    terms = []
    for number in range(3):
        state, totals = program(state, prepared(task, number), jax.random.key(7))
        terms.append(metrics.summarize([totals]))
    assert [row["generator_loss"] > 0 for row in terms] == [False, False, True]
    assert all(row["discriminator_loss"] > 0 for row in terms)  # it learns from the first step on


def test_a_codebook_far_from_all_latents_comes_alive():
    def used(**changes):
        task, config = task_of(**{"tokenizer.codebook_size": 64}, **changes)
        state, program = programs(task, config)
        state.params["quantizer"]["codebook"] = state.params["quantizer"]["codebook"] + 9.0
        for number in range(6):
            state, totals = program(state, prepared(task, number), jax.random.key(7))
        return metrics.summarize([totals])["code_usage"]

    assert used(**ALIVE) > 0.3 > 0.1 > used(**ALIVE | {"tokenizer.revive_below": 0.0})


# What the config refuses, and what it does not look at.


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer.name": "patch_vq"}, "set config.tokenizer.name=vqgan"),
        ({"data.image_size": 9}, "nearest image sizes: 8 or 10"),
        ({"tokenizer.patch_size": 4}, "set config.tokenizer.patch_size=2"),
        ({"eval.evaluators": "tokenizer,knn"}, "task=tokenizer does not have. It takes tokenizer"),
        ({"accumulation_steps": 2}, "needs the codes of a whole batch"),
        ({"tokenizer.perceptual_weight": 1.0}, "needs images of 16 pixels or more"),
        ({"tokenizer.perceptual_weight": 1.0, "data.image_size": 16}, "config.tokenizer.perceptual_"
         "weights, config.tokenizer.perceptual_sha256 is empty: set --config.tokenizer.perceptual_w"
         "eights and --config"),
        ({"tokenizer.perceptual_weight": 1.0, "tokenizer.perceptual_weights": "vgg",
          "data.image_size": 16}, "yours, and config.tokenizer.perceptual_sha256 is empty"),
        ({**ADVERSARY, "accumulation_steps": 8, "tokenizer.entropy_weight": 0.0},
         "groups of 4 images"),
    ],
)  # fmt: skip
def test_what_no_tokenizer_can_be_trained_with_is_told(changes, told):
    with pytest.raises(ConfigError, match=told):
        small_config(**changes)


def test_options_of_the_other_task_are_refused_and_their_sizes_are_not_checked():
    others = {"encoder.width": 15, "encoder.patch_size": 3, "decoder.num_heads": 7,
              "mim.mask_ratio": 1.0, "class_weight": 0.0, "mim_weight": 0.0}  # fmt: skip
    (told,) = checks.problems(config_lib.flatten(small_config()) | others)
    assert all(f"config.{path}=" in told for path in others)
    assert told.endswith("are not for config.task=tokenizer: leave them out")
    source = base.InMemory("one", np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, int), ("all",))
    one_class = run_sources.with_num_classes(small_config(), source)
    assert one_class.classifier.num_classes == 0


# The loop.


PRESET = Path(__file__).parents[1] / "configs/tokenizer_cifar10.py"
ON_DIGITS = [
    f"--config={PRESET}", "--config.data.train=digits:train", "--config.data.channels=1",
    "--config.data.image_size=12", "--config.data.limit=96", "--config.batch_size=48",
    "--config.tokenizer.codebook_size=16", "--config.tokenizer.filters=8",
    "--config.tokenizer.norm_groups=4",
    "--config.tokenizer.channel_multipliers=1,1", "--config.tokenizer.patch_size=2",
    "--config.tokenizer.fit_steps=3", "--config.total_epochs=3", "--config.save_every=2",
    "--config.log_every=1", "--config.optimizer.warmup_steps=1", "--config.data.flip=False",
    "--config.eval.batch_size=96", "--config.eval.pictures=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tokenizer") / "run"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.run(["tokenizer", "train", *ON_DIGITS, f"--workdir={workdir}"]) == 0
    return workdir, out.getvalue()


def test_training_ends_with_results_pictures_and_a_tokenizer_folder(finished):
    workdir, told = finished
    results = json.loads((workdir / "results.json").read_text())
    assert {"tokenizer/psnr", "tokenizer/ssim", "tokenizer/code_usage",
            "tokenizer/code_perplexity", "floor/patch_vq_psnr"} <= results.keys()  # fmt: skip
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"psnr", "code_usage", "code_perplexity", "reconstruction_loss"} <= rows[0].keys()
    assert " dB" in (workdir / "report.html").read_text()
    assert (workdir / "pictures/decoded.png").is_file()
    flags = [line.strip() for line in told.splitlines() if line.startswith("  --config.")]
    assert f"--config.tokenizer.path={workdir / 'tokenizer'}" in flags
    assert "--config.tokenizer.name=vqgan" in flags

    asked = {"mim_weight": 0.0, "tokenizer.dtype": "float32"}  # as it was trained
    for flag in flags:
        name, _, value = flag.removeprefix("--config.").partition("=")
        asked[name] = type(options.OPTIONS[name].default)(value)
    config = config_lib.replaced(tiny_config(), asked)
    tokenizer = tokenizers.load(config)
    data = read_config(workdir).data
    source = images.evaluation(sources.load(data)[1], data)
    image = views.to_float(source.read(np.arange(len(source)))["image"])
    error = quality.squared_error(image, tokenizer.decode(tokenizer.encode(image)))
    assert quality.psnr(float(error.mean())) == pytest.approx(results["tokenizer/psnr"], abs=1e-3)


def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_did(finished, tmp_path):
    """Law 2."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    whole = ocp.load(workdir / "checkpoints/6")
    assert cli.run(["train", f"--workdir={workdir}", "--resume=4"]) == 0
    equal(ocp.load(workdir / "checkpoints/6"), whole)
    assert read_results(workdir) == read_results(finished[0])


@pytest.mark.parametrize("verb", ["train", "tokenizer train"])
def test_what_was_interrupted_goes_on_with_the_command_that_began_it(
    verb, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(StopSignal, "asked", lambda self: True)
    assert cli.run([*verb.split(), *ON_DIGITS, f"--workdir={tmp_path}"]) == 75
    assert f"continue with:\n  supmim {verb} --workdir={tmp_path}\n" in capsys.readouterr().err


def test_perceptual_weights_may_move_but_not_change_and_evaluation_does_without(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(checks, "SMALLEST_PERCEPTUAL", 1)
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    note = workdir / "config.json"
    document = json.loads(note.read_text())
    document["config"]["tokenizer"] |= {
        "perceptual_weight": 0.1, "perceptual_weights": "gone", "perceptual_sha256": "0" * 64,
    }  # fmt: skip
    note.write_text(json.dumps(document))
    assert cli.run(["evaluate", f"--workdir={workdir}"]) == 0
    stored = read_config(workdir)
    for name, lines in (("perceptual_weights", 0), ("perceptual_sha256", 1)):
        other = config_lib.replaced(stored, {f"tokenizer.{name}": "another"})
        assert len(config_lib.resume_differences(stored, other)) == lines


def test_tokenizer_train_wants_a_config_of_its_task(tmp_path, capsys):
    preset = PRESET.with_name("digits.py")
    assert cli.run(["tokenizer", "train", f"--config={preset}", f"--workdir={tmp_path}"]) == 2
    assert "takes a config of task=tokenizer, not supmim" in capsys.readouterr().err
    assert cli.run(["tokenizer", "train", f"--config={PRESET}"]) == 2
    assert "--workdir is missing" in capsys.readouterr().err


def test_the_step_of_a_tokenizer_can_be_planned(capsys):
    changed = [f"--config={PRESET}", "--topology=cpu:8"]
    assert cli.run(["plan", *changed, "--images=45000"]) == 0
    assert "GF per image" in capsys.readouterr().out
