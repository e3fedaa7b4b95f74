"""A source seen through a view: records become uint8 squares, or are told as bad.

Shapes: n records, S = data.image_size, T the tokenizer's size, C = data.channels.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from supmim.config import Config, options
from supmim.data import crop, decode, masks
from supmim.data.sources.base import Masked, MaskedRecord, Record, Source, check_label, innermost
from supmim.target_ids.files import Cache

BoxOf = Callable[[int, int, int, int], crop.Box]  # (height, width, epoch, index) -> box


class Bad(NamedTuple):
    """A record without a readable image."""

    index: int
    name: str
    why: str


class Second(NamedTuple):
    """The same part of each image at another side in pixels, as `tokenizer_image`; 0: none.

    What is decoded is enough for the larger size even where it is not made: whether target ids are
    computed, read or not predicted must not change a pixel.
    """

    size: int = 0
    made: bool = True


NO_SECOND = Second()


def second_of(config: Config) -> Second:
    """What a run has beside the encoder's images: nothing if its tokenizer sees the same.

    A run without a tokenizer decodes for the size that is set all the same: arms that are compared
    see the same pixels.
    """
    size = config.tokenizer_size
    made = config.has_tokenizer and not config.data.targets
    return Second(size if size != config.data.image_size else 0, made)


class Images:
    """source: what is read. box_of: which part of each image is shown. exact: no fast decoding.
    targets: where the ids of each view are read.
    """

    def __init__(
        self, source: Source, data: options.Data, box_of: BoxOf, exact: bool, second: Second,
        targets: Cache | None,
    ) -> None:  # fmt: skip
        self.source, self.box_of, self.exact, self.targets = source, box_of, exact, targets
        self.name, self.class_names = source.name, source.class_names
        self.sizes, self.channels = {"image": data.image_size}, data.channels
        if second.size and second.made:
            self.sizes["tokenizer_image"] = second.size
        self.largest = max(data.image_size, second.size)
        self.method, self.max_pixels = data.interpolation, data.max_pixels
        self.masked, self.ignore_label = isinstance(innermost(source), Masked), data.ignore_label

    def __len__(self) -> int:
        return len(self.source)

    def reading(self, targets: Cache | None) -> "Images":
        """Return the same images with target ids that are read from a cache."""
        other = copy.copy(self)
        other.targets = targets
        return other

    def read(self, index: Sequence[int]) -> dict[str, np.ndarray]:
        """`image` uint8 [n, S, S, C], black where unreadable, and `label` int32 [n]; epoch 0.

        With a second size also `tokenizer_image` [n, T, T, C]; with targets `target_ids` [n, N];
        with masks `label_map` int16 [n, S, S], the class of each pixel or masks.IGNORED.
        """
        return self.take(index, np.zeros(len(index), int))[0]

    def take(
        self, index: Sequence[int], epoch: Sequence[int]
    ) -> tuple[dict[str, np.ndarray], dict[int, Bad]]:
        """What `read` gives, each record's view of its epoch; and row -> Bad for those it can't.

        DataError for a label that names no class, a mask that does not fit, or damaged storage.
        """
        views = {
            name: np.zeros((len(index), size, size, self.channels), np.uint8)
            for name, size in self.sizes.items()
        }
        if self.masked:
            shape = (len(index), self.sizes["image"], self.sizes["image"])
            views["label_map"] = np.full(shape, masks.IGNORED, np.int16)
        label = np.zeros(len(index), np.int32)
        bad = {}
        records = self.source.__getitems__([int(i) for i in index])
        for row, (record, i, e) in enumerate(zip(records, index, epoch, strict=True)):
            label[row] = check_label(record, len(self.class_names))
            try:
                for name, pixels in self.view(record, int(e), int(i)).items():
                    views[name][row] = pixels
            except decode.BadImage as error:
                bad[row] = Bad(int(i), record.name, str(error))
        if self.targets is not None:
            seen = [row for row in range(len(index)) if row not in bad]
            ids = self.targets.read(np.asarray(epoch)[seen], np.asarray(index)[seen])
            views["target_ids"] = np.zeros((len(index), ids.shape[1]), np.int32)
            views["target_ids"][seen] = ids
        return {**views, "label": label}, bad

    def view(self, record: Record, epoch: int, index: int) -> dict[str, np.ndarray]:
        """One part of a record at each size; BadImage if there is no whole image in the record."""
        pixels, box = self.part(record, epoch, index)
        views = {
            name: crop.resize(pixels, box, size, self.method) for name, size in self.sizes.items()
        }
        if self.masked:
            label_map = self.label_map(record, pixels)
            views["label_map"] = crop.resize_ids(label_map, box, self.sizes["image"])
        return views

    def label_map(self, record: MaskedRecord, pixels: np.ndarray) -> np.ndarray:
        """int16 [H, W] of pixels [H, W, C]; BadImage, or DataError if the mask does not fit."""
        ids = masks.read(record, self.max_pixels)
        masks.check_size(record.name, ids, pixels)
        return masks.to_classes(record.name, ids, len(self.class_names), self.ignore_label)

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray] | Bad:
        """Decoded pixels uint8 [H, W, C] and label map int16 [H, W] of a record with a mask."""
        record = self.source[index]
        try:
            pixels, _ = self.part(record, 0, index)
            return pixels, self.label_map(record, pixels)
        except decode.BadImage as error:
            return Bad(index, record.name, str(error))

    def part(self, record: Record, epoch: int, index: int) -> tuple[np.ndarray, crop.Box]:
        """Decoded pixels uint8 [H, W, C], perhaps shrunk, and which of them are shown."""
        if isinstance(record.image, np.ndarray):
            pixels = decode.to_channels(record.image, self.channels)
            return pixels, self.box_of(*pixels.shape[:2], epoch, index)
        if isinstance(record.image, OSError):
            raise decode.BadImage(record.image.strerror)
        header = decode.read_header(record.image, self.max_pixels)
        box = self.box_of(header.height, header.width, epoch, index)
        shrink = (
            0 if self.exact or self.masked else min(box[2] - box[0], box[3] - box[1]) / self.largest
        )
        pixels = decode.decode(record.image, header, self.channels, shrink)
        return pixels, crop.scaled(box, (header.height, header.width), pixels.shape[:2])


def told(source: Source) -> dict[str, Any]:
    """Name, number of images and digest of a source, for notes."""
    text = json.dumps(source.fingerprint(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"name": source.name, "images": len(source), "digest": digest}


def training(
    source: Source, data: options.Data, second: Second = NO_SECOND, targets: Cache | None = None
) -> Images:
    """Random crops, keyed by (data.seed, epoch, index); without data.crop as in evaluation."""
    if data.crop == "none":
        return evaluation(source, data, second, targets)
    area, aspect = (data.area_min, data.area_max), (data.aspect_min, data.aspect_max)
    return Images(source, data, crop.RandomCrop(data.seed, area, aspect), False, second, targets)


def evaluation(
    source: Source, data: options.Data, second: Second = NO_SECOND, targets: Cache | None = None
) -> Images:
    """The central view that data.eval_view asks for, of exactly decoded pixels."""
    box_of = crop.CentralCrop(data.eval_view, data.eval_resize or data.image_size, data.image_size)
    return Images(source, data, box_of, True, second, targets)
