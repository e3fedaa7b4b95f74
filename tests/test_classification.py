"""The classifier's numbers, against hands and scikit-learn; labels that several classes fit."""

import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, log_loss

from supmim.data.sources.base import Record, Sample
from supmim.data.sources.folders import Folder, Listing
from supmim.errors import DataError, NumericsError
from supmim.evaluators import classification
from supmim.evaluators.lib import real_labels
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import confusion
from tests.conftest import tiny_config
from tests.test_evaluators import SPLITS

rng = np.random.default_rng(0)


def judge_of(out, **changes):
    """An evaluator of predictions that are given."""
    predictions = Predictions(None, SPLITS, 8, None, {})
    predictions.fresh = lambda params, split, view: out
    return classification.Evaluator(predictions, tiny_config(**changes))


def test_calibration_error_by_hand():
    """Bins (0.4, 0.4667], (0.6, 0.6667] and the last; three of eight images in the second."""
    confidence = np.array([0.41, 0.45, 0.61, 0.65, 0.66, 0.95, 1.0, 0.99])
    right = np.array([0, 1, 1, 1, 1, 1, 1, 0], bool)
    gaps = [abs(1 - 0.86) * 2, abs(3 - 1.92) * 3 / 3, abs(2 - 2.94) * 3 / 3]
    expected = (gaps[0] / 2 + gaps[1] + gaps[2]) / 8
    assert classification.calibration_error(confidence, right) == pytest.approx(expected)
    assert classification.calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_a_bin_holds_its_upper_edge_and_opposite_errors_of_one_bin_cancel():
    at_edge, above = np.array([1 / 15, 1 / 15 + 1e-9]), np.array([1, 0], bool)
    assert classification.calibration_error(at_edge, above) == pytest.approx(
        (14 / 15 + 1 / 15) / 2, abs=1e-8
    )
    cancels = classification.calibration_error(np.array([0.62, 0.64]), np.array([1, 0], bool))
    assert cancels == pytest.approx(abs(1 - 1.26) / 2)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_is_that_of_training_on_hard_labels(loss):
    logits, label = 3 * rng.normal(size=(60, 10)).astype(np.float32), np.arange(60) % 10
    options = {"classifier.loss": loss, "classifier.label_smoothing": 0.3}
    judge = judge_of({"logits": logits, "label": label, "index": np.arange(60)}, **options)
    results = judge.run(None)
    power = np.exp(logits.astype(np.float64))
    if loss == "softmax":
        expected = log_loss(label, power / power.sum(axis=1, keepdims=True))
        sure = (power / power.sum(axis=1, keepdims=True)).max(axis=1)
    else:
        sure = (power / (1 + power)).max(axis=1)
        binary = np.where(np.eye(10)[label] > 0, power / (1 + power), 1 / (1 + power))
        expected = -np.log(binary).sum(axis=1).mean()
    assert results["classification/loss"] == pytest.approx(expected, rel=1e-5)
    right = logits.argmax(axis=1) == label
    assert results["classification/calibration_error"] == pytest.approx(
        classification.calibration_error(sure, right), abs=1e-6
    )
    assert judge.protocol()["images"] == 60 and loss in judge.protocol()["metric"]


def test_confusions_are_scikit_learns_and_drawn_for_few_classes_alone(tmp_path):
    label, predicted = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    found = classification.confusion_matrix(predicted, label, 5)
    np.testing.assert_array_equal(found, confusion_matrix(label, predicted, labels=range(5)))
    judge = judge_of({})
    judge._confusion = confusion_matrix(label, predicted, labels=range(10))
    judge.num_classes = 51
    judge.draw(tmp_path)
    assert not list(tmp_path.iterdir())
    judge.num_classes = 10
    judge.draw(tmp_path)
    assert matplotlib.image.imread(tmp_path / "confusion.png").shape[2] == 4


def test_what_is_right_is_blue_what_is_wrong_orange_and_nothing_white():
    red, green, blue = np.moveaxis(confusion.shades(np.array([[0.99, 0.01], [0, 1.0]])), 2, 0)
    assert blue[0, 0] > red[0, 0] and red[0, 1] > blue[0, 1]
    assert red[0, 1] - blue[0, 1] > 0.1  # one in a hundred is seen
    assert red[1, 0] == green[1, 0] == blue[1, 0] == 1


class Images(list):
    """Records, in an order that is not that of their numbers."""

    name, class_names = "records:val", tuple("0123456789")


def val(number):
    return f"val/n01/ILSVRC2012_val_{number:08}.JPEG"


def real_of(tmp_path, document, records):
    path = tmp_path / "real.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return real_labels.read(path, Images(Record(b"", label, name) for label, name in records))


def test_real_labels_are_matched_by_number_and_never_by_place(tmp_path):
    """real.json runs by number; folders are sorted by class, TFDS shuffles."""
    records = [(1, val(3)), (4, val(1)), (2, val(2))]
    assert real_of(tmp_path, [[4], [2, 5], [1]], records) == [[1], [4], [2, 5]]
    with pytest.raises(DataError, match="gives for only 0 of 2 images"):
        real_of(tmp_path, [[1], [], [2]], records)
    sample = Sample(Images(Record(b"", n, val(9 - n)) for n in range(9)), 3)
    path = tmp_path / "nine.json"
    path.write_text(json.dumps([[9 - n] for n in range(1, 10)]))
    assert real_labels.read(path, sample) == [[int(i)] for i in sample.index]


def test_real_labels_of_a_folder_are_found_without_reading_it(tmp_path):
    paths = tuple(f"{c}/ILSVRC2012_val_{n:08}.JPEG" for c, n in (("a", 2), ("b", 1)))
    found = Listing(("a", "b"), (), paths, (1, 1), ())
    folder = Folder(tmp_path / "gone", "folder:gone", found)
    (tmp_path / "real.json").write_text("[[1, 0], [0]]")
    assert real_labels.read(tmp_path / "real.json", folder) == [[0], [1, 0]]


def test_real_labels_by_file_name_are_of_any_images(tmp_path):
    document = {"x.png": [7], "y.png": [], "z.png": [0]}
    assert real_of(tmp_path, document, [(3, "a/y.png"), (7, "b/x.png")]) == [[], [7]]


def test_real_labels_count_any_that_fits_and_skip_images_without():
    logits = np.eye(10)[[7, 3, 1, 9, 0]]
    shown = np.array([0, 1, 2, 3, 296])  # the others could not be read
    judge = judge_of({"logits": logits, "label": np.full(5, 7), "index": shown})
    judge.real = [[], [1, 3], [2], []] + [[0]] * 293
    assert judge.run(None)["classification/real_top1"] == pytest.approx(2 / 3)
    assert judge.protocol()["images_with_real_labels"] == 3
    shown[:] = 0
    assert "classification/real_top1" not in judge.run(None)


@pytest.mark.parametrize(
    ("document", "told"),
    [("[[1], [2", "cannot be read"), (7, "neither a list nor an object"),
     ([[0]], "no entry for 1 of 2 images .* ILSVRC2012_val_00000002"), ({"a": [1]}, "no entry f"),
     ([[0], [3, 10]], r"image 1 has \[3, 10\], not a list of classes from 0"),
     ([[-1], [0]], "image 0"), ([[True], [0]], "image 0"), ([4, [0]], "image 0 has 4")],
)  # fmt: skip
def test_real_labels_that_do_not_fit_are_told(tmp_path, document, told):
    with pytest.raises(DataError, match=told) as error:
        real_of(tmp_path, document, [(0, val(1)), (0, val(2))])
    assert error.value.exit_code == 3 and "real.json" in str(error.value)


def test_images_without_a_number_are_told_what_they_need(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[0]] * 297))
    with pytest.raises(DataError, match="digits:test.*need an object, file name -> labels"):
        judge_of(None, **{"eval.real_labels": str(path)})


def test_real_labels_that_are_not_there_are_told():
    with pytest.raises(DataError, match="cannot be read.*No such file"):
        real_labels.read(Path("nowhere.json"), Images())


def test_logits_that_are_not_finite_are_told():
    logits = np.zeros((4, 10))
    logits[2, 5] = np.nan
    out = {"logits": logits, "label": np.arange(4), "index": np.arange(4)}
    with pytest.raises(NumericsError, match="logits of the evaluation source .* is image 2"):
        judge_of(out).run(None)


def test_logits_that_are_not_a_number_are_never_right():
    logits = np.array([[np.nan, np.nan, np.nan], [1, np.nan, 0], [np.nan, 1, 2], [1, 0, 2]])
    assert classification.top_k(logits, np.zeros(4, int), 1) == 0
    assert classification.top_k(logits, np.zeros(4, int), 3) == 0.5


def test_ties_count_against_the_classifier_in_every_number():
    assert math.isclose(classification.top_k(np.zeros((4, 10)), np.arange(4), 5), 0.0)
