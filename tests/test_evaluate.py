"""The verb evaluate: what it may be told, whose results join, and images that a run never saw."""

import functools
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from supmim import assemble, cli, optimizer, sharding, step
from supmim import config as config_lib
from supmim.commands import evaluate, evaluation_results
from supmim.data import data_identity, sources
from supmim.data.sources import base
from supmim.evaluators import knn
from supmim.runtime import devices
from supmim.workdir import model
from supmim.workdir.checkpoint import Checkpoints
from supmim.workdir.files import read_notes, read_results, write_results
from tests.conftest import digits, tiny_config

STEP = 15


def stored_run(workdir, noise=0.0, **changes):
    """A workdir as a finished run leaves it, whose parameters were never trained.

    noise: added to the parameters and, another one, to their average.
    """
    config = tiny_config(**{"encoder.depth": 1, **changes})
    workdir.mkdir()
    (workdir / "config.json").write_text(config_lib.to_json(config))
    source, eval_source = sources.load(config.data, config.facts.has_labels)
    model.write(workdir, model.of(config, source.class_names))
    own = evaluate.model_config(config, config)
    tx = optimizer.create(own.optimizer, lambda _: 0.0)
    mesh = assemble.mesh_of(own)
    with jax.set_mesh(mesh):
        make = functools.partial(
            step.create_state, jax.random.key(0), evaluate.abstract_task(own), tx
        )
        state = jax.jit(
            make, out_shardings=sharding.of(assemble.placed_shapes(make, mesh, "state"))
        )()
        rng = np.random.default_rng(0)

        def noisy(path, leaf):
            moves = noise and re.match("params/|.*/average/", sharding.path_name(path))
            return leaf + noise * rng.normal(size=leaf.shape) if moves else leaf

        state = jax.tree_util.tree_map_with_path(noisy, state)
        state = state.replace(step=state.step + STEP)
        checkpoints = Checkpoints(workdir / "checkpoints", print)
        checkpoints.save_now(STEP, state, data_identity.of(source, eval_source, config))
    notes = {"checkpoint": {"step": STEP, "digest": checkpoints.digest(STEP)}, "protocols": {}}
    numbers = {"step": STEP, "classification/top1": 0.5, "retrieval/old": 0.1, "unreadable/x": 2.0}
    write_results(workdir, numbers, notes)
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stored_run(tmp_path_factory.mktemp("runs") / "run", **{"encoder.positions": "learned"})


@pytest.fixture
def workdir(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def evaluated(workdir, *args):
    """Exit code, and the files of results that are there then."""
    code = cli.run(["evaluate", f"--workdir={workdir}", "--config.data.workers=0", *args])
    return code, sorted(path.name for path in workdir.glob("results*.json"))


def folder(root, classes, count=60):
    """Digits in colour, twice as wide as high, in folders of these names."""
    source = digits("train")
    for index in range(count):
        image = source[index].image.repeat(2, axis=1).repeat(3, axis=2)
        path = root / classes[source[index].label % len(classes)]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{index}.png")
    return f"folder:{root}"


def test_options_of_the_run_are_refused_by_name(run, capsys):
    wrong = ["--config.encoder.gelu=exact", "--config.encoder.dtype=bfloat16", "--config.seed=3"]
    code, files = evaluated(run, "--evaluators=retrieval", *wrong)
    told = capsys.readouterr().err
    assert code == 2 and files == ["results.json"]
    for name in ("config.encoder.gelu: the run has 'tanh'", "config.encoder.dtype", "config.seed"):
        assert name in told


def test_results_of_the_runs_own_images_join_and_replace_their_own(workdir):
    assert evaluated(workdir, "--evaluators=retrieval") == (0, ["results.json"])
    results, notes = read_results(workdir), read_notes(workdir)
    assert results["classification/top1"] == 0.5 and results["retrieval/map"] > 0
    assert "retrieval/old" not in results and results["unreadable/x"] == 2.0
    assert notes["data"]["eval"]["name"] == "digits:test"
    assert (workdir / "pictures").is_dir() and "digits:test" in (
        workdir / "report.html"
    ).read_text()


def test_floors_of_the_runs_own_images_are_not_measured_twice(workdir, monkeypatch):
    measured = []
    floor = knn.random_floor
    monkeypatch.setattr(knn, "random_floor", lambda *a: measured.append(a) or floor(*a))
    assert evaluated(workdir, "--evaluators=knn")[0] == 0 and len(measured) == 1
    first = read_results(workdir)
    assert evaluated(workdir, "--evaluators=knn")[0] == 0 and len(measured) == 1
    assert read_results(workdir) == first and "floor/random_encoder_recall_at_1" in first
    assert evaluated(workdir, "--evaluators=knn", "--config.data.limit=50")[0] == 0
    assert len(measured) == 2


def test_results_of_other_images_have_a_file_of_their_own(workdir, capsys):
    before = {name: (workdir / name).read_bytes() for name in ("results.json", "config.json")}
    few = ["--config.data.limit=40", "--config.data.eval=digits:validation"]
    code, files = evaluated(workdir, "--evaluators=retrieval", *few)
    assert code == 0 and len(files) == 2 and files[1].startswith("results_step_15_on_digits-valid")
    out = capsys.readouterr().out
    assert files[1] in out and "evaluated sample: was None, is 40" in out
    assert "images      digits:validation: 40; training source digits:train: 40" in out
    assert evaluated(workdir, "--evaluators=fewshot", *few) == (0, files)
    both = read_notes(workdir, files[1])
    assert (
        list(both["protocols"]) == ["retrieval", "fewshot"] and both["data"]["eval"]["images"] == 40
    )
    assert {"retrieval/map", "fewshot/1_shot"} <= read_results(workdir, files[1]).keys()
    assert before == {name: (workdir / name).read_bytes() for name in before}
    assert not (workdir / "report.html").exists()


def test_a_sample_of_either_source_is_other_data():
    stored = {"name": "a", "evaluated name": "b", "tokenizer": "t"}
    assert evaluation_results.differences(stored, {"name": "a", "evaluated name": "b"}) == []
    for one, other in ((stored, stored | {"sample": 4}), (stored | {"sample": 4}, stored)):
        assert len(evaluation_results.differences(one, other)) == 1


def test_windows_at_another_stride_are_another_view():
    near, far = (
        tiny_config(**{"task": "segmentation", "eval.evaluators": "segmentation",
                       "checkpoint.keep_best": 0, "data.train": "scenes:tune",
                       "segmentation.stride": stride})
        for stride in (2, 4)
    )  # fmt: skip
    source, eval_source = sources.load(near.data)
    stored, seen = (evaluation_results.fingerprint(source, eval_source, c) for c in (near, far))
    assert evaluation_results.differences(stored, seen) == ["stride: was 2, is 4"]


def test_counts_of_unreadable_images_stay_with_the_numbers_they_qualify(tmp_path):
    of_step = {"checkpoint": {"step": 5, "digest": "a"}, "data": {}}
    first = {"knn/recall_at_1": 0.5, "unreadable/train": 3.0, "unreadable/eval": 1.0}
    file = "results_step_5.json"
    evaluation_results.write(
        tmp_path, file, first, of_step | {"protocols": {"knn": {}}}, ("train", "eval")
    )
    other = {"classification/top1": 0.4}
    notes = of_step | {"protocols": {"classification": {}}}
    evaluation_results.write(tmp_path, file, other, notes, ("eval",))
    joined = {"step": 5, "knn/recall_at_1": 0.5, "unreadable/train": 3.0, **other}
    assert read_results(tmp_path, file) == joined
    assert list(read_notes(tmp_path, file)["protocols"]) == ["knn", "classification"]
    notes = notes | {"checkpoint": {"step": 5, "digest": "b"}}
    evaluation_results.write(tmp_path, file, other, notes, ("eval",))  # of another checkpoint
    assert read_results(tmp_path, file) == {"step": 5, **other}


def test_another_checkpoint_of_the_last_step_does_not_join(run):
    found = evaluation_results.file_name(run, STEP, "another digest", "x", {})
    assert found == "results_step_15.json"


def test_frozen_embeddings_of_other_classes_are_judged(workdir, tmp_path, capsys):
    train_on = folder(tmp_path / "gallery", "abc")
    other = folder(tmp_path / "queries", "bcd", 40)
    source = [f"--config.data.train={train_on}", f"--config.data.eval={other}"]
    names = "knn,retrieval,fewshot,linear,logistic,maps"
    code, files = evaluated(workdir, f"--evaluators={names}", *source)
    assert code == 0 and files[1].startswith("results_step_15_on_queries_")
    results = read_results(workdir, files[1])
    for name in (
        "knn/recall_at_1",
        "retrieval/map",
        "fewshot/5_shot",
        "linear/top1",
        "logistic/top1",
    ):
        assert 0 <= results[name] <= 1
    assert results["retrieval/train_without_positives"] > 0  # class d
    code, _ = evaluated(workdir, "--evaluators=classification,knn", *source)
    assert code == 3
    told = capsys.readouterr().err
    assert (
        "classification: the model's classes are not those" in told
        and "class 0 was '0', is 'a'" in told
        and "knn:" not in told
    )


def test_renamed_classes_are_told_by_name(tmp_path, capsys):
    photos = folder(tmp_path / "photos", ("cat", "dog", "owl")).removeprefix("folder:")
    named = {"classifier.num_classes": 3, "data.train": f"folder:{photos}", "mim_weight": 0.0,
             "eval.evaluators": "classification,knn"}  # fmt: skip
    run = stored_run(tmp_path / "run", **named)
    assert evaluated(run)[0] == 0
    assert read_notes(run)["model"]["class_names"] == ["cat", "dog", "owl"]
    (Path(photos) / "dog").rename(Path(photos) / "wolf")
    capsys.readouterr()
    assert evaluated(run)[0] == 0
    told = (
        "classification: the model's classes are not those of the images: class 1 was 'dog', is "
        "'owl'; 2 differ"
    )
    assert f"left out    {told}\n" in capsys.readouterr().out
    assert evaluated(run, "--evaluators=classification")[0] == 3
    assert told in capsys.readouterr().err


def test_disjoint_classes_are_searched_among_themselves_alone(workdir, tmp_path, capsys):
    source = [f"--config.data.train={folder(tmp_path / 'gallery', 'ab')}",
              f"--config.data.eval={folder(tmp_path / 'queries', 'cd')}"]  # fmt: skip
    code, files = evaluated(workdir, "--config.eval.evaluators=retrieval", *source)
    results = read_results(workdir, files[1])
    assert code == 0 and results["retrieval/map"] > 0
    assert "retrieval/train_recall_at_1" not in results
    assert evaluated(workdir, "--evaluators=knn,retrieval", *source)[0] == 2
    assert "knn: the training source has none of the classes of" in capsys.readouterr().err


def test_what_means_nothing_is_left_out_of_all_and_refused_by_name(run, capsys):
    config = tiny_config(**{"eval.evaluators": "all", "data.image_size": 12})
    run_config = tiny_config()
    reasons = evaluate.meaningless(config, run_config, "others", digits("train"), digits("test"))
    left = evaluate.without_meaningless(config, run_config, reasons)
    assert left.eval.evaluators == "knn,retrieval,fewshot,linear,logistic,maps"
    out = capsys.readouterr().out
    for name in ("classification", "corruptions", "reconstruction"):
        assert f"left out    {name}: " in out


@pytest.mark.parametrize("name", ["model.json", "init.json"])
def test_a_damaged_note_of_the_run_is_told_before_the_work(workdir, capsys, name):
    (workdir / name).write_text("{")
    assert evaluated(workdir, "--evaluators=knn")[0] == 4
    told = capsys.readouterr()
    assert f"{name} is damaged" in told.err and "images " not in told.out


def test_images_may_be_seen_at_another_size_and_stretched(workdir, tmp_path, capsys):
    views = ["--config.data.eval_view=stretch", "--config.data.eval_resize=16",
             "--config.data.image_size=12"]  # fmt: skip
    code, files = evaluated(workdir, "--evaluators=retrieval,classification", *views)
    notes = read_notes(workdir, files[1])
    assert code == 0 and "data.image_size: was 8, is 12" in capsys.readouterr().out
    view = {"view": "stretch", "resize": 16, "size": 12, "interpolation": "bilinear"}
    assert notes["data"]["view"] == view
    assert evaluated(workdir, "--evaluators=reconstruction", *views)[0] == 2
    assert "takes only images of 8 pixels" in capsys.readouterr().err


def test_images_that_are_all_trained_on_are_not_judged_by_their_neighbours(
    workdir, tmp_path, capsys
):
    whole = folder(tmp_path / "pictures", "0123456789", 80)
    both = [f"--config.data.train={whole}", f"--config.data.eval={whole}/"]
    assert evaluated(workdir, "--evaluators=knn,retrieval", *both)[0] == 2
    told = capsys.readouterr().err
    assert "knn: 80 of 80 images of folder:" in told and "retrieval: " not in told
    code, files = evaluated(workdir, "--config.eval.evaluators=retrieval", *both)
    results = read_results(workdir, files[1])
    assert code == 0 and results["retrieval/map"] > 0
    assert "retrieval/train_recall_at_1" not in results


def test_the_held_out_part_is_named_where_both_sources_are_one(workdir, tmp_path):
    whole = folder(tmp_path / "pictures", "0123456789", 80)
    both = [f"--config.data.train={whole}", "--config.data.eval="]
    code, files = evaluated(workdir, "--evaluators=maps", "--config.data.holdout=0.3", *both)
    seen = read_notes(workdir, files[1])["data"]
    assert code == 0 and seen["eval"]["name"].endswith("pictures (held out)")
    assert seen["train"]["images"] + seen["eval"]["images"] == 80


def test_labels_count_by_the_classes_of_both_sources():
    image = np.zeros((3, 1, 1, 1), np.uint8)
    two = (
        base.InMemory("a", image, np.array([0, 1, 1]), "xy"),
        base.InMemory("b", image, np.array([0, 1, 0]), "zx"),
    )
    train_on, other = sources.with_all_classes(*two)
    assert train_on.class_names == ("x", "y", "z") and train_on[1].label == 1
    assert other.class_names == ("x", "y", "z") and other[0].label == 2
    assert [record.label for record in other.__getitems__([0, 1, 2])] == [2, 0, 2]
    assert base.innermost(base.Sample(other, 2)) is two[1]
    assert other.fingerprint() == two[1].fingerprint() and sources.share_classes(train_on, other)


def test_it_takes_pretend_devices(run, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "prepare", lambda *args: asked.append(args))
    assert evaluated(run, "--fake-devices=4", "--step=3")[0] == 4  # no such checkpoint
    assert asked == [("4", False)]
