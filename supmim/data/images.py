"""A source seen through a view: records become uint8 squares of one size, or are told as bad.

Shapes: n records, S = data.image_size, C = data.channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from supmim.data import crop, decode
from supmim.data.sources import Record, Source, check_label

# The options of config.data that a training view depends on.
VIEW = (
    "image_size", "channels", "crop", "area_min", "area_max", "aspect_min", "aspect_max",
    "interpolation", "eval_view", "eval_resize",
)  # fmt: skip

BoxOf = Callable[[int, int, int, int], crop.Box]  # (height, width, epoch, index) -> box


class Bad(NamedTuple):
    """A record without a readable image."""

    index: int
    name: str
    why: str


class Images:
    """source: what is read. box_of: which part of each image is shown. exact: no fast decoding."""

    def __init__(self, source: Source, data: Any, box_of: BoxOf, exact: bool) -> None:
        self.source, self.box_of, self.exact = source, box_of, exact
        self.name, self.class_names = source.name, source.class_names
        self.size, self.channels = data.image_size, data.channels
        self.method, self.max_pixels = data.interpolation, data.max_pixels

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: Sequence[int]) -> dict[str, np.ndarray]:
        """`image` uint8 [n, S, S, C], black where unreadable, and `label` int32 [n]; epoch 0."""
        return self.take(index, np.zeros(len(index), int))[0]

    def take(
        self, index: Sequence[int], epoch: Sequence[int]
    ) -> tuple[dict[str, np.ndarray], dict[int, Bad]]:
        """What `read` gives, each record's view of its epoch; and row -> Bad for those it can't.

        DataError for a label that names no class, or damaged storage.
        """
        image = np.zeros((len(index), self.size, self.size, self.channels), np.uint8)
        label = np.zeros(len(index), np.int32)
        bad = {}
        records = self.source.__getitems__([int(i) for i in index])
        for row, (record, i, e) in enumerate(zip(records, index, epoch, strict=True)):
            label[row] = check_label(record, len(self.class_names))
            try:
                image[row] = self.view(record, int(e), int(i))
            except decode.BadImage as error:
                bad[row] = Bad(int(i), record.name, str(error))
        return {"image": image, "label": label}, bad

    def view(self, record: Record, epoch: int, index: int) -> np.ndarray:
        """uint8 [S, S, C]; BadImage if there is no whole image in the record."""
        if isinstance(record.image, np.ndarray):
            pixels = decode.to_channels(record.image, self.channels)
            box = self.box_of(*pixels.shape[:2], epoch, index)
            return crop.resize(pixels, box, self.size, self.method)
        if isinstance(record.image, OSError):
            raise decode.BadImage(record.image.strerror)
        header = decode.read_header(record.image, self.max_pixels)
        box = self.box_of(header.height, header.width, epoch, index)
        shrink = 0 if self.exact else min(box[2] - box[0], box[3] - box[1]) / self.size
        pixels = decode.decode(record.image, header, self.channels, shrink)
        box = crop.scaled(box, (header.height, header.width), pixels.shape[:2])
        return crop.resize(pixels, box, self.size, self.method)


def training(source: Source, data: Any) -> Images:
    """Random crops, keyed by (data.seed, epoch, index); without data.crop as in evaluation."""
    if data.crop == "none":
        return evaluation(source, data)
    area, aspect = (data.area_min, data.area_max), (data.aspect_min, data.aspect_max)
    return Images(source, data, crop.RandomCrop(data.seed, area, aspect), exact=False)


def evaluation(source: Source, data: Any) -> Images:
    """The central view that data.eval_view asks for, of exactly decoded pixels."""
    box_of = crop.CentralCrop(data.eval_view, data.eval_resize or data.image_size, data.image_size)
    return Images(source, data, box_of, exact=True)
