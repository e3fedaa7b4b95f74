"""The references of the benchmark compute what our models compute, and the verb runs."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from supmim import cli, sharding
from supmim.benchmarks import embed, input, job, knn, naive, step, tokenizer, turns
from supmim.config import options
from supmim.data import crop, pipeline
from supmim.errors import ConfigError, SupmimError
from supmim.models import layers
from supmim.models.encoder import Encoder
from tests.conftest import tiny_config
from tests.pictures import encoded, photo

GRID = 4
SIZES = options.Encoder(patch_size=2, width=16, depth=1, num_heads=2, mlp_dim=32)


@pytest.fixture(scope="module")
def encoder():
    model = Encoder(SIZES, GRID)
    image = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda p: 0.3 * draw.normal(size=p.shape).astype(np.float32), shapes)
    return model, params, image


def value_and_gradients(model, params, image):
    def loss(params):
        return (model.apply({"params": params}, image).embedding ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


def test_the_plain_vit_is_the_same_function(encoder):
    model, params, image = encoder
    plain = naive.PlainViT(SIZES, GRID)
    theirs = {name: part for name, part in params.items() if name != "blocks"}
    kernel = params["embedding"]["kernel"].reshape(2, 2, 3, 16)
    theirs["embedding"] = params["embedding"] | {"kernel": kernel}
    for name, block in params["blocks"].items():
        mlp = {f"mlp_{part}": block["mlp"][part] for part in ("up", "down")}
        theirs[name] = {k: v for k, v in block.items() if k != "mlp"} | mlp
    ours = jax.jit(model.apply)({"params": params}, image)
    found = jax.jit(plain.apply)({"params": theirs}, image)
    np.testing.assert_allclose(found.latent, ours.latent, atol=1e-5)
    np.testing.assert_allclose(found.embedding, ours.embedding, atol=1e-5)


@pytest.mark.parametrize("choice", naive.NAIVE)
def test_a_naive_choice_changes_the_program_and_not_the_function(encoder, choice):
    model, params, image = encoder
    value, gradients = value_and_gradients(model, params, image)
    with naive.patched(choice):
        assert getattr(layers, naive.NAIVE[choice][0]) is naive.NAIVE[choice][1]
        fresh = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        again, its_gradients = value_and_gradients(model, params, image)
        program = str(jax.make_jaxpr(lambda p: value_and_gradients(model, p, image))(params))
    assert jax.tree.structure(fresh) == jax.tree.structure(params)
    np.testing.assert_allclose(value, again, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, its_gradients)
    ours = str(jax.make_jaxpr(lambda p: value_and_gradients(model, p, image))(params))
    if choice != "scores":  # in float32 they are the same
        assert program != ours
    assert layers.flat is not naive.unflattened


def test_naive_scores_are_float32_in_a_bfloat16_network():
    query = jnp.ones((1, 4, 2, 8), jnp.bfloat16)
    ours, theirs = layers.dot_product_attention, naive.float32_scores
    assert "f32[1,2,4,4] = dot_general" not in str(
        jax.make_jaxpr(ours, static_argnums=3)(*[query] * 3, "xla")
    )
    assert "f32[1,2,4,4] = dot_general" in str(
        jax.make_jaxpr(theirs, static_argnums=3)(*[query] * 3, "xla")
    )


def test_the_ladder_goes_from_all_naive_to_none_one_by_one():
    left = [set(rung[1]) for rung in step.LADDER]
    assert left[0] == {*naive.NAIVE, "attention"} and not left[-1]
    assert all(below - above and above < below for below, above in itertools.pairwise(left))
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    assert len(step.rungs(tiny_config(), mesh)) == len(step.LADDER) - 1  # no cuDNN here


def test_the_verb_times_ours_against_the_plain_step(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "LADDER", step.LADDER[-1:])
    monkeypatch.setattr(turns, "TURN_SECONDS", 0)
    options = {"encoder.depth": 1, "batch_size": 16, "mim_weight": 0.0}
    preset = tmp_path / "tiny.py"
    preset.write_text(
        "from tests.conftest import tiny_preset\n"
        f"def get_config():\n    return tiny_preset(**{options!r})\n"
    )
    code = cli.run(["benchmark", "step", f"--config={preset}", "--rounds=1", "--json"])
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    names = [row["step"] for row in result["steps"]]
    assert names == ["plain Flax ViT", "supervised 6 separate q, k, v: ours"]
    assert result["steps"][0]["time_to_plain"] == 1.0
    assert all(0 < row["milliseconds"] < float("inf") for row in result["steps"])
    lines = step.table(result).splitlines()
    assert max(map(len, lines)) <= 80 and sum("supervised" in line for line in lines) == 1


def test_a_network_that_the_plain_one_is_not_is_refused():
    with pytest.raises(ConfigError, match="compares with a plain ViT"):
        step.check_plain(tiny_config(**{"encoder.pool": "map"}))
    assert cli.run(["benchmark", "step", "--config=digits", "--rounds=no"]) == 2


def test_settings_take_away_what_only_one_of_the_two_has():
    config = tiny_config(
        **{"encoder.scan": True, "encoder.remat": "full", "encoder.stochastic_depth": 0.2}
    )
    found = step.simplified(config, mim_weight=0.0).encoder
    assert (found.scan, found.remat, found.stochastic_depth) == (False, "none", 0.0)


def test_the_verb_times_the_stages_of_the_input(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "TURN_SECONDS", 0)
    monkeypatch.setattr(input, "PIPELINE_SECONDS", 0.01)
    monkeypatch.setattr(input, "worker_counts", lambda: [0])
    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(40, 50 + number)))
    preset = tmp_path / "tiny.py"
    preset.write_text(
        "from tests.conftest import tiny_preset\n"
        "def get_config():\n"
        "    return tiny_preset(**{'data.channels': 3, 'data.crop': 'inception', 'batch_size': 8,\n"
        f"        'data.train': 'folder:{tmp_path / 'pictures'}', 'classifier.num_classes': 0}})\n"
    )
    command = ["benchmark", "input", f"--config={preset}", "--rounds=1"]
    assert cli.run([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    stages = {row["stage"]: row for row in result["stages"]}
    assert stages["Pillow: decode, crop, resize"]["to_pillow"] == 1.0
    assert {"read", "bare simplejpeg decode", "ours: decode, crop, resize"} <= set(stages)
    assert all(0 < row["images_per_second"] < float("inf") for row in stages.values())
    assert result["pipelines"][0]["workers"] == 0 < result["pipelines"][0]["images_per_second"]
    lines = input.table(result).splitlines()
    assert max(map(len, lines)) <= 80 and sum("a thread" in line for line in lines) == 1
    assert cli.run(["benchmark", "input", "--config=digits"]) == 2
    assert "there is no decoding to time" in capsys.readouterr().err


def test_the_references_of_the_input_show_the_same_picture():
    pixels = photo(120, 160)
    file, box = encoded(pixels, quality=95), (10.0, 20.0, 110.0, 100.0)
    exact = input.pillow_crop(file, box, 32, input.PILLOW["bilinear"]).astype(int)
    ours = crop.resize(input.bare_decode(file), box, 32, "bilinear")
    assert np.abs(ours - exact).mean() < 2


def test_ids_that_are_read_cost_no_tokenizer_and_the_table_fits():
    still = {"data.shift": 0.0, "data.rotate": 0.0, "encoder.depth": 1}
    config = tiny_config(batch_size=8, **still)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        online = tokenizer.training_step("online", config, mesh)
        cached = tokenizer.training_step("cached", config, mesh, cached=True)
        alone = tokenizer.tokenizer_alone(config, "float32", mesh)
        turns.take_turns([online, cached, alone], 1)
        raw = tokenizer.raw_noise(config, mesh)
    assert online.flops - cached.flops == alone.flops == 8 * 2 * 16 * 4 * 16  # patches x codes
    assert len(np.unique(np.asarray(raw["image"]))) > 99
    rows = [tokenizer.training_row(one, cached, 8) for one in (cached, online)]
    assert rows[0]["time_ratio"] == rows[0]["time_by_flops"] == 1 < rows[1]["flop_ratio"]
    text = tokenizer.table({
        "device": "1 x cpu", "batch_size": 8, "rounds": 1, "matmul_tflops": 0.1,
        "weights": "random", "agreement_of_bfloat16": 0.5, "steps": rows,
        "tokenizers": [tokenizer.tokenizer_row(alone, 8, 1e11)],
    })  # fmt: skip
    assert max(map(len, text.splitlines())) <= 80


def test_what_predicts_no_ids_has_no_cost_of_them():
    for changes in ({"mim_weight": 0.0}, {"mim.target": "pixels"}):
        with pytest.raises(ConfigError, match="config.mim.target=tokens"):
            tokenizer.run(tiny_config(**changes), 1)


def test_the_verb_times_search_against_references_that_find_the_same(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "TURN_SECONDS", 0)
    monkeypatch.setattr(knn, "REFERENCE", 3000)
    monkeypatch.setitem(step.SIDE, "cpu", 16)
    preset = tmp_path / "tiny.py"
    preset.write_text("from tests.conftest import tiny_preset as get_config\n")
    command = ["benchmark", "knn", f"--config={preset}", "--rounds=1", "--queries=30", "--bank=200"]
    assert cli.run([*command, "--neighbours=7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["agreement"] == 1 and result["share_of_imagenet"] == 6000 / 50_000 / 1_281_167
    rows = {row["search"]: row for row in result["searches"]}
    assert [row["queries"] for row in rows.values()] == [30, 15, 15, 30]
    assert rows["ours"]["time_to_ours"] == 1
    theirs = rows["scikit-learn brute force"]
    assert theirs["time_to_ours"] == pytest.approx(2 * theirs["seconds"] / rows["ours"]["seconds"])
    assert max(map(len, knn.table(result).splitlines())) <= 80
    assert cli.run([*command, "--neighbours=201"]) == 2
    assert "--neighbours=201 is more than --bank=200 holds" in capsys.readouterr().err
    assert cli.run([*command, "--neighbours=-1"]) == 2


def test_neighbours_that_differ_are_no_agreement():
    queries, rows = knn.noise(5, 300, 8)
    bank = knn.ranking.Bank(rows[::-1], sharding.make_mesh(8, 1, 1), 1)
    assert knn.agreement(bank, queries, rows[::-1], 4) == 1
    assert knn.agreement(bank, queries, np.roll(rows, 1, axis=1), 4) < 0.5
    product = knn.product(knn.ranking.Bank(rows, bank.mesh, 1), queries)
    assert product.shape == (8, knn.ranking.QUERIES, 64)
    np.testing.assert_allclose(product[0, :5, :64], queries @ rows[:64].T, atol=1e-6)


def test_ratios_and_rates_are_medians_over_rounds():
    one = turns.Contestant("one", lambda: None, flops=6.0, seconds=[1.0, 2.0, 8.0])
    other = turns.Contestant("other", lambda: None, seconds=[4.0, 4.0, 4.0])
    assert one.ratio(other) == 0.5 and one.rate() == 3.0


def test_a_search_of_fewer_queries_is_compared_per_query():
    ours = turns.Contestant("ours", lambda: None, flops=300.0, seconds=[2.0])
    few = turns.Contestant("reference", lambda: None, flops=100.0, seconds=[1.0])
    row = knn.search_row(few, ours, work=10.0, peak=1000.0)
    assert (row["queries"], row["queries_per_second"], row["time_to_ours"]) == (10, 10.0, 1.5)
    assert row["share_of_matmul"] == 0.1


def test_embed_is_timed_beside_its_parts(capsys, tmp_path, monkeypatch):
    """The images are read again and again; the share is of what the parts let expect."""
    monkeypatch.setattr(embed, "SECONDS", 0)
    monkeypatch.setattr(embed, "BATCHES", 1)
    monkeypatch.setattr(embed, "BATCH_SIZE", 8)
    monkeypatch.setattr(pipeline, "num_workers", lambda source, requested: 0)
    for name in ("a/1", "a/2", "b/1", "b/2"):
        file = tmp_path / "photos" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(photo(12, 12)))
    options = {"data.train": f"folder:{tmp_path}/photos", "data.holdout": 0.5}
    options |= {"classifier.num_classes": 2, "encoder.depth": 1}
    preset = tmp_path / "tiny.py"
    preset.write_text(
        "from tests.conftest import tiny_preset\n"
        f"def get_config():\n    return tiny_preset(**{options!r})\n"
    )
    rates = {"forward": [100.0, 300.0], "reading": [100.0, 100.0], "embed": [45.0, 60.0]}
    measured = embed.rate
    monkeypatch.setattr(
        embed, "rate", lambda start, warm, size: measured(start, warm, size) * 0 + 1
    )
    assert cli.run(["benchmark", "embed", f"--config={preset}", "--rounds=1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["expected"] == 0.5 and result["share"] == 2.0  # each at 1 image/s
    turns = iter(rate for pair in zip(*rates.values(), strict=True) for rate in pair)
    monkeypatch.setattr(embed, "rate", lambda start, warm, size: next(turns))
    assert cli.run(["benchmark", "embed", f"--config={preset}", "--rounds=2"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "embed reaches 85% of the expected rate" in text  # of 45 / 50 and 60 / 75
    assert cli.run(["benchmark", "embed", "--config=digits"]) == 2


@pytest.mark.slow
def test_a_whole_training_is_timed_without_and_with_compiled_programs(
    capsys, tmp_path, monkeypatch
):
    """The parts, which the run has written, add up to what the processes took."""
    options = {"data.limit": 64, "batch_size": 16, "total_epochs": 1, "optimizer.warmup_steps": 0}
    preset = tmp_path / "tiny.py"
    preset.write_text(
        "from tests.conftest import tiny_preset\n"
        f"def get_config():\n    return tiny_preset(**{options!r})\n"
    )
    compiled, train = [], job.train

    def counting(config, workdir, cache):
        compiled.append(len(list(cache.glob("*"))))
        return train(config, workdir, cache)

    monkeypatch.setattr(job, "train", counting)
    assert cli.run(["benchmark", "job", f"--config={preset}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rounds"] == 1 and compiled[0] == 0 < compiled[1]
    rows = {row.pop("part"): row for row in result["parts"]}
    assert list(rows) == [*job.PARTS, "total"]
    for name, total in rows.pop("total").items():
        assert sum(row[name] for row in rows.values()) == pytest.approx(total)
    assert all(value > 0 for row in rows.values() for value in row.values())
    lines = job.table({**result, "parts": [{"part": p, **row} for p, row in rows.items()]})
    assert max(map(len, lines.splitlines())) <= 80


def test_a_training_that_fails_is_not_timed(tmp_path):
    broken = tiny_config(**{"data.train": "folder:nowhere"})
    with pytest.raises(SupmimError, match="(?s)that was timed failed.*nowhere") as told:
        job.train(broken, tmp_path / "run", tmp_path / "cache")
    assert told.value.exit_code == 3
