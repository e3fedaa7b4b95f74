"""Maps of embeddings and patches: what is drawn, of how many, and the same every time."""

import jax
import numpy as np
import pytest

from supmim import evaluators, sharding
from supmim.evaluators import maps
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import curves, embedding_map, figures, page
from supmim.tasks.supmim import SupMIM
from tests.conftest import digit_views, plain_readers, tiny_config

rng = np.random.default_rng(0)


def test_small_sets_are_placed_by_tsne_and_others_by_components(monkeypatch):
    rows = np.concatenate([c + 0.05 * rng.normal(size=(20, 8)) for c in np.eye(8)[:3]])
    points, how = maps.project(rows)
    assert points.shape == (60, 2) and "t-SNE" in how
    centre = points.reshape(3, 20, 2).mean(axis=1)
    own = np.linalg.norm(points.reshape(3, 20, 2) - centre[:, None], axis=2)
    others = np.linalg.norm(points.reshape(3, 20, 1, 2) - centre, axis=3)
    assert (others.argmin(axis=2) == np.arange(3)[:, None]).all() and own.mean() < others.mean()
    monkeypatch.setattr(maps, "NEIGHBOURHOODS", range(0))
    points, how = maps.project(rows)
    assert "principal" in how and np.abs((points.T @ points)[0, 1]) < 1e-6
    for few in (rows[:1], rows[:2], rows[:, :1]):
        assert maps.project(few)[0].shape == (len(few), 2)


def test_patches_alike_in_any_image_are_of_one_colour():
    kinds = rng.normal(size=(4, 6))
    which = rng.integers(0, 4, (3, 16))
    colours = maps.patch_colours(kinds[which])
    assert colours.shape == (3, 16, 3) and colours.min() == 0 and colours.max() == 1
    found = [np.unique(colours[which == kind].round(6), axis=0) for kind in range(4)]
    assert [len(one) for one in found] == [1] * 4
    assert len(np.unique(np.concatenate(found), axis=0)) == 4
    assert maps.patch_colours(np.ones((1, 1, 2))).shape == (1, 1, 3)


def test_a_hundredth_of_the_patches_is_beyond_either_end_of_a_colour():
    colours = maps.patch_colours(rng.normal(3, 1, (10, 100, 8))).reshape(-1, 3)
    for end in (0, 1):
        np.testing.assert_allclose((colours == end).mean(axis=0), 0.01, atol=0.002)
    assert ((colours > 0.1) & (colours < 0.9)).mean() > 0.8


@pytest.mark.parametrize(("classes", "others"), [(20, []), (22, ["2 other classes"])])
def test_twenty_classes_have_colours_and_the_rest_is_grey(tmp_path, monkeypatch, classes, others):
    drawn, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    label = np.repeat(np.arange(classes), np.arange(classes) + 3)
    points, names = rng.normal(size=(len(label), 2)), [f"class {n}" for n in range(classes)]
    path = tmp_path / "m.png"
    embedding_map.draw(path, points=points, label=label, class_names=names, title="x")
    legend, scatters = drawn[0].axes[0].get_legend(), drawn[0].axes[0].collections
    drawn[0].draw_without_rendering()
    inside, hidden = drawn[0].axes[0].get_window_extent(), legend.get_window_extent()
    assert inside.containsx(hidden.x0) and inside.containsx(hidden.x1)
    assert hidden.y0 > inside.y0 and hidden.y1 < inside.y1
    assert not hidden.count_contains(drawn[0].axes[0].transData.transform(points))
    assert [t.get_text() for t in legend.get_texts()] == others + names[classes - 20 :]
    assert sum(len(one.get_offsets()) for one in scatters) == len(label)
    assert len({tuple(one.get_facecolor()[0]) for one in scatters}) == 20 + len(others)
    save(drawn[0], path)
    assert path.stat().st_size


def test_the_evaluator_draws_both_and_the_report_shows_them(tmp_path):
    config = tiny_config(**{"mim_weight": 0.0, "encoder.depth": 1, "encoder.pool": "cls"})
    task, view = SupMIM(config, None), digit_views("test", config)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    predictions = Predictions(task, {"eval": view}, 104, mesh, {"eval": plain_readers()})
    embedding, index = rng.normal(size=(5, 4)), np.array([3, 50, 100, 200, 290])
    predictions.fresh = lambda params, split, method=None: {
        "embedding": embedding, "index": index, "label": view.source.label[index]}  # fmt: skip
    params = jax.jit(task.init)(jax.random.key(0))
    judge = maps.Evaluator(predictions, config)
    suite = evaluators.Suite({"maps": judge}, predictions)
    assert suite.run(params, tmp_path / "pictures") == {}
    last = judge._last
    np.testing.assert_array_equal(last["image"], view.source.image[[3, 50, 100, 290]])
    image = 2 * last["image"].astype(np.float32) / 255 - 1
    _, encoded = task.model.apply({"params": params}, image, method="classify")
    np.testing.assert_allclose(last["tokens"], encoded.latent, atol=1e-5)
    page.write(tmp_path, {}, config, {"checkpoint": {}, "protocols": {}}, "")
    text = (tmp_path / "report.html").read_text()
    for name in ("embedding_map.png", "patches.png"):
        assert f"alt='{name}'" in text and all(part in text for part in page.CAPTIONS[name])


def test_every_evaluator_has_a_panel_once_it_has_two_results():
    names = ("knn/recall_at_1", "knn/dino_k20", "fewshot/1_shot", "floor/top1",
             "retrieval/without_positives", "reconstruction/token_accuracy")  # fmt: skip
    rows = [{"step": n, "loss": 1.0, **dict.fromkeys(names, 0.5)} for n in (1, 2)]
    assert list(curves.evaluator_panels(rows[:1])) == []
    found = {title: [name for name, _ in panel] for title, panel in curves.evaluator_panels(rows)}
    assert found == {"knn, %": list(names[:2]), "fewshot, %": ["fewshot/1_shot"]}
    many = [{"step": n, **{f"linear/{i}": 0.5 for i in range(12)}} for n in (1, 2)]
    assert [len(panel) for _, panel in curves.evaluator_panels(many)] == [10, 2]


def test_curves_have_the_units_of_the_report_and_no_panel_for_each_of_many_classes():
    names = ["classification/top1", "classification/loss", "segmentation/miou",
             "segmentation/classes_in_masks"]  # fmt: skip
    few = [f"segmentation/iou/{name}" for name in ("sky", "a/b")]
    rows = [{"step": n, **dict.fromkeys(names + few, 1.5)} for n in (1, 2)]
    found = {title: [name for name, _ in panel] for title, panel in curves.evaluator_panels(rows)}
    assert found == {
        "classification, %": names[:1], "segmentation, %": names[2:3],
        "classification/loss": names[1:2], "segmentation/classes_in_masks": names[3:],
        "segmentation/iou, %": few,
    }  # fmt: skip
    many = [{"step": n, **{f"segmentation/iou/{i}": 0.5 for i in range(150)}} for n in (1, 2)]
    assert list(curves.evaluator_panels(many)) == []
