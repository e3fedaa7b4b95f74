"""Galleries with positives and junk: files that say so, views of boxes, rankings by hand."""

import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

from supmim import sharding
from supmim.data import landmarks
from supmim.errors import ConfigError, DataError
from supmim.evaluators import landmarks as evaluator
from supmim.evaluators.lib.predictions import Predictions
from supmim.runtime import hosts
from tests.conftest import plain_readers, tiny_config

GALLERY = ["a.png", "b.png", "sub/c.png", "d.png", "e.png"]
BASE = {
    "images": "pictures",
    "gallery": GALLERY,
    "queries": [
        {"image": "q.png", "box": [16, 0, 32, 16], "easy": ["sub/c.png"],
         "hard": ["e.png", "a.png"], "junk": ["b.png"]},
        {"image": "q.png", "easy": [], "hard": [], "junk": ["a.png"]},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """One grey per gallery image; the query is dark on the left and light on the right."""
    (tmp_path / "pictures/sub").mkdir(parents=True)
    for number, name in enumerate(GALLERY):
        save(tmp_path / "pictures" / name, np.full((16, 20), 50 * number))
    save(tmp_path / "pictures/q.png", np.repeat([[20, 160]], 16, axis=1).repeat(16, axis=0))
    return tmp_path


def save(path, grey):
    Image.fromarray(np.asarray(grey, np.uint8)).save(path)


def write(folder, **changes):
    (folder / "set.json").write_text(json.dumps(BASE | changes))
    return str(folder / "set.json")


def with_query(**changes):
    return {"queries": [BASE["queries"][0] | changes]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": "nowhere"}, "set.json: its images should be in .*nowhere, which is not a f"),
        ({"gallery": []}, "set.json: gallery is empty"),
        ({"queries": []}, "set.json: queries is empty"),
        ({"gallery": "a.png"}, "'gallery' must be a list, but it is 'a.png'"),
        ({"gallery": [*GALLERY, 7]}, r"gallery\[5\] must be the name of an image, not 7"),
        ({"gallery": [*GALLERY, "b.png"]}, r"gallery\[5\], 'b.png', is listed twice"),
        ({"gallery": ["x.png"]}, r"gallery\[0\]: there is no image 'x.png' in .*pictures"),
        ({"queries": [7]}, r"queries\[0\]: 'image' must be a string"),
        (with_query(image="../set.json"), r"queries\[0\]: there is no image '../set.json' in"),
        (with_query(easy=["x.png"]), r"queries\[0\], 'q.png': 'x.png' of its easy is not in the"),
        (with_query(easy=["a.png"] * 2), r"queries\[0\], 'q.png': easy\[1\], 'a.png', is listed t"),
        (with_query(easy=["b.png"]), r"queries\[0\], 'q.png': 'b.png' is both easy and junk"),
        (with_query(esay=[]), "'esay' is not among image, box, easy, hard, junk"),
        (with_query(box=[0, 0, 33.5, 9]), r"'q.png': box .* outside of .* 32 x 16 pixels"),
        (with_query(box=[0, -2, 9, 9]), "outside of the image"),
        (with_query(box=[-0.9, 0, -0.1, 9]), "holds less than a pixel of the image"),
        (with_query(box=[32, 0, 32.5, 9]), "less than a pixel"),
        (with_query(box=[0, 15.5, 9, 16.5]), "less than a pixel"),
        (with_query(box=[9, 0, 9, 9]), r"box \[9, 0, 9, 9\] is not \[left, top, right, bottom\]"),
        (with_query(box=[0, 0, float("nan"), 9]), "is not"),
        (with_query(box=[0, 0, 10**400, 9]), r"is not \[left, top, right, bottom\]"),
        (with_query(box="all"), "box all is not"),
        ({"queries": [{"image": "q.png", "positives": []}]}, "'junk' must be a list"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named(folder, changes, told):
    with pytest.raises(DataError, match=told):
        landmarks.load(write(folder, **changes), 10**6)


def test_what_is_no_file_of_json_is_told(folder):
    with pytest.raises(DataError, match="No such file"):
        landmarks.load(str(folder / "none.json"), 10**6)
    for text in (b'{"images": ', b"\xff\xfe\x00"):
        (folder / "set.json").write_bytes(text)
        with pytest.raises(DataError, match="set.json is not JSON"):
            landmarks.load(str(folder / "set.json"), 10**6)
    with pytest.raises(ConfigError, match=r"--config.eval.landmarks=FILE.json"):
        tiny_config(**{"eval.evaluators": "landmarks", "checkpoint.keep_best": 0})


def test_a_query_is_seen_within_its_box_and_a_rounded_box_fits(folder):
    queries = with_query()["queries"] + [
        {**BASE["queries"][1], "box": [-0.5, 0, 16, 16.4]}, BASE["queries"][1]]  # fmt: skip
    found = landmarks.load(write(folder, queries=queries), 10**6)
    views = found.evaluation_images(tiny_config().data)
    image = views["queries"].read(np.arange(3))["image"]
    assert (image[0, :, 1:] == 160).all() and (image[1, :, :-1] == 20).all()
    assert (image[2, :, :4] < 60).all() and (image[2, :, 4:] > 120).all()
    np.testing.assert_array_equal(
        views["gallery"].read(np.arange(5))["image"].mean(axis=(1, 2, 3)), np.arange(5) * 50
    )


def test_a_view_of_a_box_is_that_of_the_image_cut_out(folder):
    picture = np.random.default_rng(0).integers(0, 255, (40, 60))
    save(folder / "pictures/q.png", picture)
    save(folder / "pictures/a.png", picture[3:35, 10:50])
    found = landmarks.load(write(folder, **with_query(box=[10, 3, 50, 35])), 10**6)
    views = found.evaluation_images(tiny_config().data)
    cut, whole = (views[name].read([0])["image"].astype(int) for name in ("queries", "gallery"))
    assert np.abs(cut - whole)[0, 1:-1, 1:-1].max() <= 1  # edges see what lies beyond the box


# The evaluator. An image's embedding is an angle that grows with its brightness.


def predict(params, batch):
    angle = batch["image"].astype(np.float32).mean(axis=(1, 2, 3)) / 255
    return {"embedding": jax.numpy.stack([jax.numpy.cos(angle), jax.numpy.sin(angle)], axis=1)}


def results(folder, **changes):
    found = landmarks.load(write(folder, **changes), 10**6)
    config = tiny_config()
    views = found.evaluation_images(config.data)
    readers = {name: plain_readers() for name in views}
    task, mesh = types.SimpleNamespace(predict=predict), sharding.make_mesh(8, 1, 1)
    predictions = Predictions(task, views, 8, mesh, readers, found)
    return evaluator.Evaluator(predictions, config).run(0) | predictions.unreadable()


def test_the_revisited_protocol_by_hand(folder):
    # The box is 160: d 150, e 200, c 100, b 50 (junk), a 0. Positives: easy c, hard e and a.
    found = results(folder)
    medium = ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3
    hard = ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    expected = {
        "map_easy": (0 + 1 / 2) / 2, "map_medium": medium, "map_hard": hard,
        "mp_at_1_easy": 0, "mp_at_5_easy": 1 / 2, "mp_at_10_easy": 1 / 2,
        "mp_at_1_medium": 0, "mp_at_5_medium": 3 / 4, "mp_at_10_medium": 3 / 4,
        "mp_at_1_hard": 0, "mp_at_5_hard": 2 / 3, "mp_at_10_hard": 2 / 3,
        **{f"without_positives_{setting}": 1 / 2 for setting in ("easy", "medium", "hard")},
    }  # fmt: skip
    assert found == pytest.approx({f"landmarks/{name}": value for name, value in expected.items()})


def test_plain_positives_by_hand_and_what_cannot_be_read_is_never_found(folder):
    query = {"image": "q.png", "box": [16, 0, 32, 16], "positives": ["e.png", "a.png"],
             "junk": ["d.png"]}  # fmt: skip
    found = results(folder, queries=[query])
    expected = {"map": (1 + 2 / 4) / 2, "map_at_100": (1 + 2 / 4) / 2, "without_positives": 0}
    assert found == pytest.approx({f"landmarks/{name}": value for name, value in expected.items()})
    (folder / "pictures/a.png").write_bytes(b"damaged")
    found = results(folder, queries=[query])
    assert found["landmarks/map"] == pytest.approx(1 / 2) and found["unreadable/gallery"] == 1


def test_where_no_query_has_positives_there_is_no_map(folder):
    query = {"image": "q.png", "positives": [], "junk": []}
    assert results(folder, queries=[query]) == {"landmarks/without_positives": 1}


# Processes must see the same.


def test_the_fingerprint_knows_images_boxes_and_truth(folder):
    plain = {"image": "q.png", "positives": ["a.png"], "junk": []}
    changed = [{}, {"gallery": GALLERY[::-1]}, with_query(box=[0, 0, 9, 9]), with_query(hard=[]),
               {"queries": [plain]}]  # fmt: skip
    found = [landmarks.load(write(folder, **one), 10**6).fingerprint()["landmarks"]
             for one in changed]  # fmt: skip
    (folder / "pictures/b.png").write_bytes(b"other")
    found.append(landmarks.load(write(folder), 10**6).fingerprint()["landmarks"])
    assert len(set(found)) == len(found)


def test_hosts_with_other_images_refuse_and_name_what_differs(monkeypatch):
    hosts.agree_on_data({"evaluation source, sha256": "1"})
    other = json.dumps({"evaluation source, sha256": "2", "same": 3})
    monkeypatch.setattr(hosts, "gather", lambda text: [text, other])
    with pytest.raises(
        DataError, match="source, sha256: process 0 has '1', process 1 has '2'"
    ) as e:
        hosts.agree_on_data({"evaluation source, sha256": "1", "same": 3})
    assert "same: " not in str(e.value)
