"""Semantic segmentation: sliding windows over whole images, one confusion matrix, mean IoU.

An evaluation image is resized to data.eval_resize (its short side, or all to a square), seen in
windows, and its logits are upsampled to its own mask's size before the most likely class is taken.
A class that neither the masks nor the answers have has no IoU; one that only the answers have has
IoU 0 and counts (as mmsegmentation averages). Accuracy averages over the classes of the masks.
"""

import collections
import concurrent.futures
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import sharding
from supmim.config import Config
from supmim.data import crop, masks
from supmim.data.images import Bad
from supmim.data.sources.base import evenly
from supmim.errors import DataError, NumericsError
from supmim.evaluators.lib import windows
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import segmentation
from supmim.runtime import hosts

READERS = 4  # threads that decode whole images
READ_AHEAD = 8  # images


def confusion_of(truth: np.ndarray, answer: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [C, C] of (truth, answer) over the pixels that count, of two label maps."""
    counted = truth != masks.IGNORED
    pairs = truth[counted].astype(np.int64) * num_classes + answer[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_of(confusion: np.ndarray) -> np.ndarray:
    """[C]: right / (truth or answer); NaN for a class that neither has."""
    right = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return np.where(either > 0, right / np.maximum(either, 1), np.nan)


def summary(confusion: np.ndarray, class_names: tuple[str, ...]) -> dict[str, float]:
    """Results from the counts of all pixels; floors always answer the most frequent class."""
    iou, truth = iou_of(confusion), confusion.sum(axis=1)
    there = truth > 0
    most = float(truth.max() / truth.sum())
    each = {name: float(v) for name, v in zip(class_names, iou, strict=True) if np.isfinite(v)}
    return {
        "segmentation/miou": float(np.nanmean(iou)),
        "segmentation/pixel_accuracy": float(np.trace(confusion) / confusion.sum()),
        "segmentation/mean_accuracy": float((np.diag(confusion)[there] / truth[there]).mean()),
        "segmentation/classes_in_masks": float(there.sum()),
        "floor/segmentation_miou": most / float(there.sum()),
        "floor/segmentation_pixel_accuracy": most,
        **{f"segmentation/iou/{name}": value for name, value in each.items()},
    }


class Image:
    """One evaluation image on its way: its windows, and their logits as they come."""

    def __init__(self, pixels: np.ndarray, truth: np.ndarray, grid: windows.Grid) -> None:
        self.pixels, self.truth, self.grid = pixels, truth, grid
        self.logits: list[np.ndarray] = []

    @property
    def complete(self) -> bool:
        """Whether all windows have been answered."""
        return len(self.logits) == len(self.grid.rows) * len(self.grid.columns)

    def answer(self) -> np.ndarray:
        """[H, W] classes, of the mask's size."""
        return windows.classes(self.grid, np.stack(self.logits), *self.truth.shape)


class Evaluator:
    """segmentation/miou, pixel_accuracy, mean_accuracy, and iou/NAME of each class.

    classes_in_masks counts the classes that the masks have; floors: see `summary`.
    """

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
        """See Evaluator protocol. DataError if no image can be read, or no pixel counts.

        NumericsError for logits that are not finite.
        """
        own = range(self.own, len(self.images), len(self.groups))
        shown = set(evenly(len(own), self.pictures).tolist())
        num_classes, self._drawn, bad = len(self.class_names), [], []
        confusion = np.zeros((num_classes, num_classes), np.int64)
        for place, image in enumerate(self.answered(params, self.opened(own, bad))):
            answer = image.answer()
            confusion += confusion_of(image.truth, answer, num_classes)
            if place in shown:
                self._drawn.append((image.pixels, image.truth, answer))
        told = hosts.gather(json.dumps([confusion.tolist(), [image.index for image in bad]]))
        found = self.of_groups([json.loads(text) for text in told])
        self.predictions.lacks("eval", sum(len(lacking) for _, lacking in found))
        confusion = np.sum([counts for counts, _ in found], axis=0)
        if not confusion.sum():
            raise DataError(
                f"{self.images.name}: no pixel of its masks counts; config.data.ignore_label="
                f"{self.images.ignore_label} leaves none"
            )
        return summary(confusion, self.class_names)

    def of_groups(self, told: list[list]) -> list[list]:
        """What each group found, once; DataError if its processes could not read the same images.

        Processes that hold the same rows see the same windows: each would count them.
        """
        for group in self.groups:
            if any(told[process][1] != told[group.processes[0]][1] for process in group.processes):
                raise DataError(
                    f"{self.images.name}: not every process could read the same images, so the "
                    "windows of some are wrong; bring the same files to every host, then evaluate "
                    "again"
                )
        return [told[group.processes[0]] for group in self.groups]

    def opened(self, index: Iterable[int], bad: list[Bad]) -> Iterator[Image]:
        """The readable ones of these images, in order, decoded ahead; others are noted in `bad`."""
        with concurrent.futures.ThreadPoolExecutor(READERS) as executor:
            for found in ahead(executor, self.images.whole, index):
                if isinstance(found, Bad):
                    bad.append(found)
                    self.predictions.readers["eval"].note([found])
                else:
                    yield self.prepared(*found)

    def prepared(self, pixels: np.ndarray, truth: np.ndarray) -> Image:
        """An image as it is shown, with its windows."""
        height, width = pixels.shape[:2]
        size = self.size_of(height, width, self.resize)
        pixels = crop.resize_to(pixels, (0, 0, width, height), size, self.method)
        return Image(pixels, truth, windows.grid(*size, self.side, self.stride))

    def answered(self, params: Any, images: Iterator[Image]) -> Iterator[Image]:
        """The same with the logits of all windows, in order.

        Hosts that hold the same rows of a batch see the same windows. All run as many batches, of
        one shape, as those with the most windows.
        """
        cut = ((image, window) for image in images for window in image.grid.cut(image.pixels))
        while any(hosts.gather("some" if (some := self.taken(cut)) else "")):
            batch = np.zeros((len(self.rows), self.side, self.side, self.channels), np.uint8)
            for row, (_, window) in enumerate(some):
                batch[row] = window
            logits = self.logits(params, batch)
            self.check_finite(logits[: len(some)])
            for (image, _), own in zip(some, logits, strict=False):
                image.logits.append(own)
                if image.complete:
                    yield image

    def taken(self, cut: Iterator[tuple[Image, np.ndarray]]) -> list[tuple[Image, np.ndarray]]:
        """The windows of this group's rows of the next batch."""
        return list(itertools.islice(cut, len(self.rows)))

    def logits(self, params: Any, batch: np.ndarray) -> np.ndarray:
        """The group's rows of a batch of windows -> their logits [rows, G, G, C]."""
        size = self.predictions.batch_size
        placed = jax.make_array_from_callback(
            (size, *batch.shape[1:]),
            sharding.batch_sharding(self.predictions.mesh),
            lambda of: batch[np.searchsorted(self.rows, np.arange(size)[of[0]])],
        )
        return jax.device_get(self._predict(params, {"image": placed})["logits"])[self.rows]

    def check_finite(self, logits: np.ndarray) -> None:
        """NumericsError unless all are: the largest of NaN is class 0, and floors have scores."""
        bad = int((~np.isfinite(logits)).any(axis=(1, 2, 3)).sum())
        if bad:
            raise NumericsError(
                f"{self.images.name}: the logits of {bad} of {len(logits)} windows are not finite, "
                "so their pixels have no class. Look at the losses in metrics.jsonl, and evaluate "
                "an earlier checkpoint with --step=N"
            )

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "classes of pixels, logits upsampled to the masks' own size; classes that "
            "neither masks nor answers have do not count, those of answers alone have IoU 0",
            "feature": "the trained head's logits", "metric": "mean IoU of one confusion matrix",
            "window": self.side, "stride": self.stride, "resize": self.resize,
            "images": len(self.images), "classes": len(self.class_names),
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """segmentation.png of evenly taken images."""
        segmentation.draw(folder / "segmentation.png", self._drawn, self.class_names)


def ahead(
    executor: concurrent.futures.Executor, read: Callable[[int], Any], index: Iterable[int]
) -> Iterator[Any]:
    """read(i) of each, in order, a few ahead of what was asked for."""
    begun = (executor.submit(read, i) for i in index)
    waiting = collections.deque(itertools.islice(begun, READ_AHEAD))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(itertools.islice(begun, 1))
