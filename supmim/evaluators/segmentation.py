"""Semantic segmentation: sliding windows over whole images, one confusion matrix, mean IoU.

An evaluation image is resized to data.eval_resize (its short side, or both sides to a square) and
cut into windows; its logits are upsampled to the size of its own mask before the most likely class
is taken. A class in neither masks nor predictions has no IoU; one in predictions only has IoU 0
and counts (as mmsegmentation averages). Accuracy averages over the classes in the masks.
"""

import collections
import concurrent.futures
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import sharding
from supmim.config import Config
from supmim.data import crop, masks
from supmim.data.images import Bad, Images
from supmim.data.sources.base import evenly
from supmim.errors import DataError, NumericsError, counted
from supmim.evaluators import classification
from supmim.evaluators.lib import windows
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import segmentation
from supmim.runtime import hosts

READERS = 4  # threads that decode whole images
READ_AHEAD = 8  # images


def pixel_confusion(truth: np.ndarray, answer: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix [C, C] (true, predicted) of two label maps, ignored left out."""
    counted = truth != masks.IGNORED
    label = truth[counted].astype(np.int64)
    return classification.confusion_matrix(answer[counted], label, num_classes)


def summarize_confusion(
    confusion: np.ndarray, class_names: tuple[str, ...], name: str = "segmentation"
) -> dict[str, float]:
    """Return the results from the counts of all pixels; floors predict the most frequent class.

    The IoU of a class is right / (truth or answer). name: what the results are called, NAME/miou.
    """
    right, truth = np.diag(confusion), confusion.sum(axis=1)
    either = confusion.sum(axis=0) + truth - right
    iou = np.where(either > 0, right / np.maximum(either, 1), np.nan)
    there = truth > 0
    most = float(truth.max() / truth.sum())
    each = {of: float(v) for of, v in zip(class_names, iou, strict=True) if np.isfinite(v)}
    return {
        f"{name}/miou": float(np.nanmean(iou)),
        f"{name}/pixel_accuracy": float(np.trace(confusion) / confusion.sum()),
        f"{name}/mean_accuracy": float((right[there] / truth[there]).mean()),
        f"{name}/classes_in_masks": float(there.sum()),
        "floor/segmentation_miou": most / float(there.sum()),
        "floor/segmentation_pixel_accuracy": most,
        **{f"{name}/iou/{of}": value for of, value in each.items()},
    }


class Image:
    """An image, its windows, and the scores of their classes as far as they are predicted."""

    def __init__(self, pixels: np.ndarray, truth: np.ndarray, grid: windows.Grid) -> None:
        self.pixels, self.truth, self.grid = pixels, truth, grid
        self.scores: list[np.ndarray] = []  # of each window [G, G, C]

    def answer(self) -> np.ndarray:
        """Return the predicted classes [H, W], at the size of the mask."""
        return windows.classes(self.grid, np.stack(self.scores), *self.truth.shape)


class Evaluator:
    """segmentation/miou, pixel_accuracy, mean_accuracy, and iou/NAME of each class.

    classes_in_masks counts the classes that the masks have; floors: see `summarize_confusion`.
    """

    name, scored = "segmentation", "the logits"

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.images = predictions, predictions.sources["eval"]
        self.class_names, self.channels = self.images.class_names, config.data.channels
        self.resize = config.data.eval_resize or config.data.image_size
        self.size_of = crop.EVAL_SIZES[config.data.eval_view]
        self.side, self.stride = config.window
        self.method, self.pictures = config.data.interpolation, config.eval.pictures
        mesh = predictions.mesh
        self.groups = sharding.batch_groups(predictions.batch_size, mesh)
        self.own = [jax.process_index() in group.processes for group in self.groups].index(True)
        self.rows = self.groups[self.own].rows
        self._predict = jax.jit(predictions.task.predict, out_shardings=sharding.replicated(mesh))
        self._drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def run(self, params: Any) -> dict[str, float]:
        """See the protocol. DataError if no image can be read, or no pixel of the masks counts.

        NumericsError for logits that are not finite.
        """
        own = range(self.own, len(self.images), len(self.groups))
        shown = set(evenly(len(own), self.pictures).tolist())
        num_classes, self._drawn, bad = len(self.class_names), [], []
        confusion = np.zeros((num_classes, num_classes), np.int64)
        for place, image in enumerate(self.predict_windows(params, self.read("eval", own, bad))):
            answer = image.answer()
            confusion += pixel_confusion(image.truth, answer, num_classes)
            if place in shown:
                self._drawn.append((image.pixels, image.truth, answer))
        texts = hosts.gather(json.dumps([confusion.tolist(), [image.index for image in bad]]))
        reports = self.one_per_group([json.loads(text) for text in texts])
        missing = sum(len(unreadable) for _, unreadable in reports)
        self.predictions.record_missing("eval", missing)
        confusion = np.sum([counts for counts, _ in reports], axis=0)
        check_counted(self.images, len(self.images), missing, confusion.sum())
        return summarize_confusion(confusion, self.class_names, self.name)

    def one_per_group(self, reports: list[list]) -> list[list]:
        """Return the report (counts, unreadable images) of one process of each group.

        Processes that hold the same rows see the same windows, which must be counted once.
        DataError if processes of a group could not read the same images.
        """
        for group in self.groups:
            unreadable = [reports[process][1] for process in group.processes]
            check_same_unreadable(self.images.name, unreadable)
        return [reports[group.processes[0]] for group in self.groups]

    def read(self, split: str, index: Iterable[int], bad: list[Bad]) -> Iterator[Image]:
        """Yield the readable images of a source in order, decoded ahead; add others to `bad`."""
        images = self.predictions.sources[split]
        with concurrent.futures.ThreadPoolExecutor(READERS) as executor:
            for found in map_ahead(executor, images.whole, index):
                if isinstance(found, Bad):
                    bad.append(found)
                    self.predictions.readers[split].note([found])
                    continue
                pixels, truth = found
                height, width = pixels.shape[:2]
                size = self.size_of(height, width, self.resize)
                pixels = crop.resize_to(pixels, (0, 0, width, height), size, self.method)
                yield Image(pixels, truth, windows.grid(*size, self.side, self.stride))

    def predict_windows(self, params: Any, images: Iterator[Image]) -> Iterator[Image]:
        """Yield the images in order, with the scores of all their windows.

        Hosts that hold the same rows of a batch see the same windows. All run as many batches, of
        one shape, as the hosts with the most windows.
        """
        cut = ((image, window) for image in images for window in image.grid.cut(image.pixels))
        while True:
            some = list(itertools.islice(cut, len(self.rows)))
            if not any(hosts.gather("some" if some else "")):
                return
            batch = np.zeros((len(self.rows), self.side, self.side, self.channels), np.uint8)
            for row, (_, window) in enumerate(some):
                batch[row] = window
            scores = self.scores(params, batch)
            self.check_finite(scores[: len(some)])
            for (image, _), own in zip(some, scores, strict=False):
                image.scores.append(own)
                if len(image.scores) == len(image.grid.rows) * len(image.grid.columns):
                    yield image

    def scores(self, params: Any, batch: np.ndarray) -> np.ndarray:
        """Return the logits [rows, G, G, C] of this group's rows of a batch of windows."""
        image = self.placed(batch)
        return jax.device_get(self._predict(params, {"image": image})["logits"])[self.rows]

    def placed(self, batch: np.ndarray) -> jax.Array:
        """Return the whole batch of which every group has its rows, on the devices."""
        size = self.predictions.batch_size

        def rows_of(index):
            return batch[np.searchsorted(self.rows, np.arange(size)[index[0]])]

        where = sharding.batch_sharding(self.predictions.mesh)
        return jax.make_array_from_callback((size, *batch.shape[1:]), where, rows_of)

    def check_finite(self, scores: np.ndarray) -> None:
        """Raise NumericsError unless all are finite: the argmax of NaN would be class 0."""
        bad = int((~np.isfinite(scores)).any(axis=(1, 2, 3)).sum())
        if bad:
            raise NumericsError(
                f"{self.images.name}: {self.scored} of {bad} of {counted(len(scores), 'window')} "
                "are not finite, so their pixels have no class. Look at the losses in "
                "metrics.jsonl, and evaluate an earlier checkpoint with --step=N"
            )

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "classes of pixels, logits upsampled to the masks' own size; classes that "
            "neither masks nor answers have do not count, those of answers alone have IoU 0",
            "feature": "the trained head's logits",
            "metric": "mean IoU of one confusion matrix",
            "window": self.side,
            "stride": self.stride,
            "resize": self.resize,
            "images": len(self.images),
            "classes": len(self.class_names),
        }

    def draw(self, folder: Path) -> None:
        segmentation.draw(folder / f"{self.name}.png", self._drawn, self.class_names)


def check_same_unreadable(source: str, unreadable: Sequence[Any]) -> None:
    """Raise DataError unless the same images of a source are unreadable to all processes."""
    if any(own != unreadable[0] for own in unreadable):
        raise DataError(
            f"{source}: not every process could read the same images, so their results would "
            "differ. Bring the same files to every host, then evaluate again"
        )


def check_counted(images: Images, asked: int, missing: int, counted_pixels: int) -> None:
    """Raise DataError if no image that was asked for can be read, or no pixel counts.

    counted_pixels: of their masks, or any number that is 0 only if no pixel counts.
    """
    if missing == asked:
        raise DataError(
            f"{images.name}: none of {counted(asked, 'image')} with its mask can be read"
        )
    if not counted_pixels:
        raise DataError(
            f"{images.name}: no pixel of its masks counts, because all have "
            f"config.data.ignore_label={images.ignore_label}"
        )


def map_ahead(
    executor: concurrent.futures.Executor, function: Callable[[int], Any], items: Iterable[int]
) -> Iterator[Any]:
    """Yield function(item) in order, while a few later items are already being computed."""
    begun = (executor.submit(function, item) for item in items)
    waiting = collections.deque(itertools.islice(begun, READ_AHEAD))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(itertools.islice(begun, 1))
