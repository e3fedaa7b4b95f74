"""Few labels, and images without any: which keep theirs, what a step takes, and what it uses."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from supmim import assemble, cli, sharding, train
from supmim import config as config_lib
from supmim.commands import data_tokens
from supmim.data import images, pipeline, run_sources, sources, stream
from supmim.data.bad_records import BadRecords
from supmim.data.sources import base, joined
from supmim.errors import ConfigError, DataError, Interrupted
from supmim.evaluators import knn
from supmim.planning import hlo, program, topology
from supmim.runtime import hosts
from supmim.runtime.preemption import StopSignal
from supmim.target_ids import files
from supmim.tasks.registry import TASKS
from tests.conftest import digits, tiny_config
from tests.files import Files

pytestmark = pytest.mark.usefixtures("all_undrawn")

FEW = {"data.labels": 20.0, "data.unlabelled": "rest", "batch_size": 32, "total_steps": 12}
QUICK = {"eval.evaluators": "classification", "checkpoint.keep_best": 0, "encoder.depth": 1,
         "data.mixup": 0.2, "log_every": 6}  # fmt: skip


def source_of(**changes):
    return run_sources.load(tiny_config(**changes))[1]


def kept(**changes):
    """Which records of the digits keep their labels."""
    return source_of(**changes).index.tolist()


def stream_of(source, batch_size, unlabelled=0, rows=None):
    rows = np.arange(batch_size + unlabelled) if rows is None else rows
    seen = images.training(source, tiny_config().data)
    return stream.Training(seen, 3, batch_size, rows, unlabelled)


def lying(folder, count, value):
    """A flat folder of images of one grey level each."""
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((8, 8), value + number, np.uint8)).save(folder / f"{number}.png")
    return f"folder:{folder}"


@pytest.mark.parametrize("unlabelled", ["rest", "digits:train"])
def test_images_that_are_trained_on_without_labels_are_not_evaluated(unlabelled):
    sources = {"data.train": "digits:train", "data.eval": "digits:validation"}
    with pytest.raises(DataError, match=r"300 of 300 images of digits:validation are in"):
        source_of(**FEW | sources | {"data.unlabelled": unlabelled})


def test_classes_are_shared_with_images_that_have_labels_alone(tmp_path):
    where = {"data.eval": lying(tmp_path / "flat", 4, 1).replace("/flat", "")}
    (tmp_path / "flat").rename(tmp_path / "other")
    config = tiny_config(**FEW | where | {"data.holdout": 0.0})
    train_source, eval_source = sources.load(config.data, all_classes=True)
    assert isinstance(train_source, joined.Joined) and eval_source.class_names
    assert not sources.share_classes(train_source, eval_source)


def test_a_run_is_evaluated_at_another_size():
    few = tiny_config(**FEW)
    asked = config_lib.flatten(few) | {"data.image_size": 16}
    assert config_lib.for_evaluation(few, asked, "knn").data.image_size == 16


# Which images keep their labels.


def test_labels_are_kept_class_by_class_and_a_larger_number_keeps_those_of_a_smaller():
    label = digits("train").label
    for count in (10, 50, 100, 750):
        found = kept(**{"data.labels": float(count)})
        assert len(set(found)) == count and sorted(found) == found
        share = np.bincount(label[found], minlength=10)
        exact = np.bincount(label) * count / len(label)
        assert (share >= 1).all() and (np.abs(share - exact) <= 1).all()
    assert set(kept(**{"data.labels": 100.0})) < set(kept(**{"data.labels": 750.0}))
    assert kept(**{"data.labels": 0.5}) == kept(**{"data.labels": 750.0})
    other = kept(**{"data.labels": 100.0, "data.seed": 1})
    assert len(set(other) & set(kept(**{"data.labels": 100.0}))) < 30


def test_a_rare_class_keeps_one_label():
    label = np.repeat([0, 1, 2], [96, 3, 1])
    assert np.bincount(label[joined.stratified(label, 10, 0)]).tolist() == [8, 1, 1]
    assert np.bincount(label[joined.stratified(label, 3, 0)]).tolist() == [1, 1, 1]
    assert joined.stratified(label, 100, 0).tolist() == list(range(100))


def test_the_others_are_the_rest():
    source = source_of(
        **{"data.labelled_classes": "0, 3", "data.labels": 0.5} | {"data.unlabelled": "rest"}
    )
    label = digits("train").label
    assert set(label[source.labelled.index].tolist()) == {0, 3}
    assert len(source.labelled) == round(0.5 * np.isin(label, (0, 3)).sum())
    both = np.concatenate([source.labelled.index, source.unlabelled.index])
    assert sorted(both) == list(range(1500)) and len(source) == 1500
    assert source.class_names == digits("train").class_names


def test_classes_without_labels_are_evaluated_alone():
    unseen = {"data.labelled_classes": "0,1,2", "data.eval_classes": "8, 9"}
    _, source, evaluation = run_sources.load(tiny_config(**unseen))
    assert set(source.labels()) == {0, 1, 2}
    assert set(evaluation.labels()) == {8, 9}
    assert len(evaluation) == np.isin(digits("test").label, (8, 9)).sum()
    assert evaluation.class_names == source.class_names
    assert evaluation.fingerprint() != run_sources.load(tiny_config())[2].fingerprint()
    with pytest.raises(DataError, match="eval_classes=9: digits:test has no image of them"):
        run_sources.load(tiny_config(**{"data.eval_classes": "9", "data.limit": 5}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.labels": 1501.0}, "more labels than digits:train has: 1,500 images"),
        ({"data.labels": 9.0}, "9 labels, too few for the 10 classes of digits:train; set it"),
        ({"data.labelled_classes": "1,x,10"}, "names x, 10; digits:train has classes 0 to 9"),
        ({"data.labelled_classes": "9" * 5000}, "digits:train has classes 0 to 9"),
        ({"data.eval_classes": "11"}, "eval_classes names 11; digits:test has classes 0 to 9"),
        (FEW | {"data.unlabelled_batch": 1488}, "1,480 images of digits:train can be used without"),
        ({"data.unlabelled": "digits:test"}, "297 images of digits:test are in digits:test too"),
        ({"data.unlabelled": "digits:none"}, "none"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_trained_on_are_refused(changes, told):
    with pytest.raises(DataError, match=told):
        run_sources.load(tiny_config(**changes))


def test_images_of_other_channels_are_refused():
    grey, colour = (
        base.InMemory(name, np.zeros((4, 8, 8, channels), np.uint8), np.zeros(4, int), "a")
        for name, channels in (("grey", 1), ("colour", 3))
    )
    with pytest.raises(DataError, match="colour has 3 channels, grey has 1"):
        joined.check(joined.Joined(grey, colour), 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mim_weight": 0.0}, "is for the token loss"),
        ({"mim.passes": "one", "data.mixup": 0.0}, "set config.data.unlabelled= or config.mim.p"),
        ({"mim.row_share": 0.5}, "config.mim.row_share=0.5 lets the masked pass skip"),
        ({"mim.soft_target_weight": 1.0}, "needs the full pass of each masked image"),
        ({"data.labels": 0.0}, "means the images that lose their labels, and none do"),
        ({"accumulation_steps": 4, "data.unlabelled_batch": 30}, "nearest: 28 or 32"),
        ({"data.unlabelled": "", "data.unlabelled_batch": 5}, "_batch=5 is set, but"),
        ({"data.labels": 20.5}, "neither a share below 1 nor a whole number; nearest: 20 or 21"),
    ],
)  # fmt: skip
def test_options_that_cannot_stand_together_are_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        tiny_config(**FEW | changes)


def test_all_of_them_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        tiny_config(
            **FEW | {"mim.row_share": 0.5, "mim.soft_target_weight": 1.0, "data.labels": 0.0}
        )
    assert all(word in str(error.value) for word in ("row_share", "soft_target", "none do"))


# What a step takes.


def test_law_4_holds_for_both_streams_whatever_the_other_has():
    """Rows of the two kinds alternate in their proportion; each kind has a stream of its own."""
    source = source_of(**FEW)
    alone = stream_of(source.labelled, 30)
    mixed = stream_of(source, 30, 10)
    for step in (0, 7):
        batch = mixed(step)[0]
        index, epoch = batch["index"].reshape(10, 4), batch["epoch"].reshape(10, 4)
        expected = alone(step)[0]
        np.testing.assert_array_equal(index[:, :3].ravel(), expected["index"])
        np.testing.assert_array_equal(epoch[:, :3].ravel(), expected["epoch"])
        assert (index[:, 3] >= 20).all() and (epoch[:, 3] == 0).all()
        pixels = batch["image"].reshape(10, 4, 8, 8, 1)
        np.testing.assert_array_equal(pixels[:, :3].reshape(30, 8, 8, 1), expected["image"])
        stored = source.unlabelled.__getitems__((index[:, 3] - 20).tolist())
        np.testing.assert_array_equal(pixels[:, 3], [record.image for record in stored])
    whole = np.concatenate([stream_of(source, 5, 148)(step)[0]["index"] for step in range(20)])
    epochs = whole.reshape(20, 153)[:, 5:].reshape(2, 1480)
    assert all(sorted(epoch) == list(range(20, 1500)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    twice = stream_of(joined.Joined(source.labelled, source.labelled), 20, 20)(0)[0]["index"]
    assert (twice[::2] != twice[1::2] - 20).any()


def test_hosts_share_the_rows_of_both_kinds():
    source = source_of(**FEW)
    whole = stream_of(source, 24, 8)(5)[0]
    for rows in (np.arange(16), np.arange(16, 32), np.array([1, 2, 30])):
        part = stream_of(source, 24, 8, rows)(5)[0]
        for name, value in part.items():
            np.testing.assert_array_equal(value, whole[name][rows])


def test_a_bad_image_is_replaced_by_one_of_its_kind():
    both = joined.Joined(Files(at3=b""), Files(at19=b"", at0=b""))
    found, met = np.empty((0, 8), int), set()
    for step in range(10):
        batch, bad = stream_of(both, 4, 4)(step)
        found, met = np.concatenate([found, batch["index"][None]]), met | {one.index for one in bad}
    assert met == {3, 20, 39}
    rows = found.reshape(10, 4, 2)
    assert sorted(rows[:5, :, 0].ravel()) == sorted([*range(3), 4, 4, *range(5, 20)])
    assert sorted(rows[:5, :, 1].ravel()) == sorted([*range(21, 39), 21, 21])


def test_a_batch_may_span_epochs_of_the_images_with_labels():
    batch = stream_of(source_of(**FEW), 50)(1)[0]
    count, repeats = np.unique(batch["index"], return_counts=True)
    assert len(count) == 20 and set(repeats) <= {2, 3}
    assert (batch["epoch"] == np.arange(50, 100) // 20).all()


def test_labels_of_images_without_labels_are_not_read():
    source = joined.Joined(source_of(**FEW).labelled, digits("train"))
    label = digits("train").label
    assert [source[i].label for i in (0, 19)] == [label[i] for i in source.labelled.index[[0, 19]]]
    assert {record.label for record in source.__getitems__(range(20, 60))} == {0}


def test_a_flat_folder_has_no_labels(tmp_path):
    flat = lying(tmp_path / "flat", 40, 100)
    source = source_of(**{"data.unlabelled": flat, "batch_size": 32})
    assert len(source) == 1540 and source[1500].label == 0
    assert source[1501].image[:4] == b"\x89PNG" and source.name_of(1501).endswith(".png")
    assert pipeline.num_workers(source, -1) >= 1
    assert [record.name for record in source.__getitems__([1539, 2])] == [
        source.name_of(1539), source.name_of(2),
    ]  # fmt: skip


# What a step uses.


def terms(config, batch, params=None, frozen=None):
    task = TASKS[config.task].abstract(config)
    params = jax.jit(task.init)(jax.random.key(0)) if params is None else params

    @jax.jit
    def program(params, batch):
        drawn = task.draw(task.prepare(batch), jax.random.key(1))
        return task.loss_fn(params, drawn, jax.random.key(2))[1]

    return program(params, batch)


def test_the_class_loss_is_of_images_with_labels_and_the_token_loss_of_all():
    config = tiny_config(**FEW)
    raw = stream_of(source_of(**FEW), 32, 32)(0)[0]
    raw["target_ids"] = np.random.default_rng(0).integers(0, 16, (64, 16))
    plain = terms(config, raw)
    without = np.arange(64) % 2 == 1
    for name, value in (("label", raw["label"] + without), ("image", raw["image"].copy())):
        changed = raw | {name: value}
        if name == "image":
            changed["image"][without] = 255 - changed["image"][without]
        found = terms(config, changed)
        assert found["class_loss"].compute() == plain["class_loss"].compute()
        assert (found["mim_loss"].compute() == plain["mim_loss"].compute()) == (name == "label")
    alone = terms(tiny_config(batch_size=32), jax.tree.map(lambda x: x[::2], raw))
    np.testing.assert_allclose(
        alone["class_loss"].compute(), plain["class_loss"].compute(), rtol=1e-6
    )
    assert plain["class_loss"].count == 32 and plain["mim_loss"].count == 64


def test_a_plan_has_no_new_collective_of_the_size_of_activations():
    where = topology.load("cpu:8")
    mesh = sharding.make_mesh(8, 1, 1, devices=where.devices)

    def payloads(**changes):
        config = tiny_config(**{"data.mixup": 0.0} | changes)
        with jax.set_mesh(mesh):
            planned = program.build(config, mesh)
            text = program.compile_step(planned, where).text
        return sum(one.bytes * one.times for one in hlo.Program(text).collectives())

    few = FEW | {"batch_size": 512, "data.unlabelled_batch": 256}
    largest = payloads(**few) - payloads(batch_size=512)
    assert largest <= 1024  # a view of one of a device's 96 images has 64 floats in 16 KB more


# Runs.


def run(workdir, **options):
    train.train_and_evaluate(tiny_config(**FEW | QUICK | options), workdir)
    return ocp.load(workdir / "checkpoints/12")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    options = {"steps_per_call": 1, "data.resident": "off"}
    return run(tmp_path_factory.mktemp("plain") / "run", **options)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_evaluation_knows_images_with_labels_alone_and_hosts_compare_all(tmp_path, monkeypatch):
    config, source, evaluation = run_sources.load(tiny_config(**FEW | QUICK))
    compared = {}
    monkeypatch.setattr(hosts, "agree_on_data", compared.update)
    bad_records = BadRecords(tmp_path / "bad_records.jsonl", print)
    task, mesh = TASKS[config.task].abstract(config), assemble.mesh_of(config)
    found = assemble.create_predictions(config, task, source, evaluation, mesh, bad_records)
    assert len(found.sources["train"]) == 20
    assert "training source, unlabelled images kept" in compared


def test_knn_searches_the_images_whose_labels_were_set_aside(tmp_path):
    found = {}
    for rest in ("rest", ""):
        few = FEW | QUICK | {"data.unlabelled": rest, "eval.all_labels": True}
        config, *both = run_sources.load(tiny_config(**few | {"eval.evaluators": "knn"}))
        task, mesh = TASKS[config.task].abstract(config), assemble.mesh_of(config)
        bad_records = BadRecords(tmp_path / "bad_records.jsonl", print)
        predictions = assemble.create_predictions(config, task, *both, mesh, bad_records)
        params = jax.jit(task.init)(jax.random.key(0))
        with jax.set_mesh(mesh):
            results = knn.Evaluator(predictions, config).run(params)
        found[rest] = results["knn/all_labels_recall_at_1"]
        whole, out = (predictions.of(params, name) for name in ("whole", "eval"))
        assert len(whole["label"]) == 1500
        rows, queries = (x["embedding"] / np.linalg.norm(x["embedding"], axis=1, keepdims=True)
                         for x in (whole, out))  # fmt: skip
        nearest = whole["label"][(queries @ rows.T).argmax(axis=1)]
        assert found[rest] == pytest.approx((nearest == out["label"]).mean())
        assert found[rest] > results["knn/recall_at_1"]
    assert found["rest"] == found[""]
    plain = run_sources.load(tiny_config(**{"eval.all_labels": True}))[1]
    assert joined.whole(plain) is None


@pytest.mark.slow
def test_a_resumed_run_on_resident_images_is_the_same_bit_for_bit(
    plain, tmp_path, monkeypatch, capsys
):
    asked = StopSignal.asked
    monkeypatch.setattr(StopSignal, "asked", lambda stop: next(answers, True))
    answers = iter([False, False])
    with pytest.raises(Interrupted, match="stopped at step 4 of 12"):
        run(tmp_path / "run", **{"steps_per_call": 2, "data.resident": "off"})
    monkeypatch.setattr(StopSignal, "asked", asked)
    assert_equal(run(tmp_path / "run", **{"data.resident": "on"}), plain)
    assert cli.run(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "training source digits:train: 20\n" in capsys.readouterr().out


def test_other_images_without_labels_end_a_resumed_run(tmp_path):
    flat = lying(tmp_path / "flat", 40, 100)
    options = {"data.unlabelled": flat, "data.workers": 0}
    run(tmp_path / "run", **options)
    (tmp_path / "run/results.json").unlink()
    (tmp_path / "flat/39.png").unlink()
    with pytest.raises(DataError, match="unlabelled length: was 40, is 39"):
        run(tmp_path / "run", **options)


@pytest.mark.slow
def test_cached_ids_are_those_of_the_run_for_both_kinds(plain, tmp_path, monkeypatch):
    """A file holds images of one kind, and each kind has as many epochs as the run begins."""
    monkeypatch.setattr(files, "FILE_BYTES", 12 * 500)
    config = tiny_config(**FEW | QUICK)
    (tmp_path / "ids").mkdir()
    data_tokens.write(config, tmp_path / "ids", SimpleNamespace(requested=False))
    names = sorted(path.name for path in (tmp_path / "ids").glob("*.ids"))
    assert sum("00000-of-00004" in name for name in names) == -(-12 * 32 // 20)
    assert sum("00003-of-00004" in name for name in names) == 1
    cached = run(tmp_path / "run", **{"data.targets": str(tmp_path / "ids")})
    assert_equal(cached, plain)
