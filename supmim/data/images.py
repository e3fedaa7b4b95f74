"""A source of records as cropped images: uint8 squares, with unreadable records reported as bad.

Shapes: n records, S = data.image_size, T the tokenizer's size, C = data.channels.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from supmim.config import Config, options
from supmim.data import crop, decode, masks
from supmim.data.crop import Box
from supmim.data.sources.base import Masked, MaskedRecord, Record, Source, check_label, innermost
from supmim.runtime import faults
from supmim.target_ids.files import Cache

BoxOf = Callable[[int, int, int, int], Box]  # (height, width, epoch, index) -> box


class Bad(NamedTuple):
    """A record without a readable image."""

    index: int
    name: str
    why: str


class Second(NamedTuple):
    """A second size in pixels of each crop, returned as `tokenizer_image` if `made`; 0: none.

    Images are decoded for the larger size even if the second is not made, so that pixels do not
    depend on whether target ids are computed, read from a cache or not predicted.
    """

    size: int = 0
    made: bool = True


NO_SECOND = Second()


def second_of(config: Config) -> Second:
    """Return the second size of a run: none if its tokenizer sees images of the same size.

    A run without a tokenizer decodes for the configured size too, so that the arms of a comparison
    see the same pixels.
    """
    size = config.tokenizer_size
    made = config.has_tokenizer and not config.data.targets
    return Second(size if size != config.data.image_size else 0, made)


class Images:
    """The crops of a source.

    box_of: chooses the box of each crop. exact: decode JPEGs by exact kernels and at full size.
    """

    cache: Cache | None = None  # of target ids, returned with the images

    def __init__(
        self, source: Source, data: options.Data, box_of: BoxOf, exact: bool, second: Second
    ) -> None:
        self.source, self.box_of, self.exact = source, box_of, exact
        self.name, self.class_names = source.name, source.class_names
        self.sizes, self.channels = {"image": data.image_size}, data.channels
        if second.size and second.made:
            self.sizes["tokenizer_image"] = second.size
        self.largest = max(data.image_size, second.size)
        self.method, self.max_pixels = data.interpolation, data.max_pixels
        self.masked, self.ignore_label = isinstance(innermost(source), Masked), data.ignore_label

    def __len__(self) -> int:
        return len(self.source)

    def reading(self, cache: Cache | None) -> "Images":
        """Return the same images with target ids that are read from a cache."""
        other = copy.copy(self)
        other.cache = cache
        return other

    def read(self, index: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return crops of epoch 0: `image` uint8 [n, S, S, C], black if unreadable; `label` [n].

        With a second size also `tokenizer_image` [n, T, T, C]; with a cache `target_ids` [n, N];
        with masks `label_map` int16 [n, S, S], the class of each pixel or masks.IGNORED.
        """
        return self.take(index, np.zeros(len(index), int))[0]

    def read_valid(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of `read`, and `index` [n], without the rows of unreadable images."""
        arrays, bad = self.take(index, np.zeros_like(index))
        arrays["index"] = index
        return {name: np.delete(values, list(bad), axis=0) for name, values in arrays.items()}

    def take(
        self, index: Sequence[int] | np.ndarray, epoch: Sequence[int] | np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[int, Bad]]:
        """Return the arrays of `read`, each crop drawn for its epoch, and row -> Bad.

        DataError for a label that names no class, a mask that does not fit, or damaged storage.
        """
        batch: dict[str, np.ndarray] = {
            name: np.zeros((len(index), size, size, self.channels), np.uint8)
            for name, size in self.sizes.items()
        }
        if self.masked:
            shape = (len(index), self.sizes["image"], self.sizes["image"])
            batch["label_map"] = np.full(shape, masks.IGNORED, np.int16)
        label = np.zeros(len(index), np.int32)
        bad = {}
        faults.reached("record", index)
        records = self.source.__getitems__([int(i) for i in index])
        for row, (record, i, e) in enumerate(zip(records, index, epoch, strict=True)):
            label[row] = check_label(record, len(self.class_names))
            try:
                for name, pixels in self.crop(record, int(e), int(i)).items():
                    batch[name][row] = pixels
            except decode.BadImage as error:
                bad[row] = Bad(int(i), record.name, str(error))
        if self.cache is not None:
            readable = [row for row in range(len(index)) if row not in bad]
            ids = self.cache.read(np.asarray(epoch)[readable], np.asarray(index)[readable])
            batch["target_ids"] = np.zeros((len(index), ids.shape[1]), np.int32)
            batch["target_ids"][readable] = ids
        return {**batch, "label": label}, bad

    def crop(self, record: Record, epoch: int, index: int) -> dict[str, np.ndarray]:
        """Return one crop of a record at each size; BadImage if it has no complete image."""
        pixels, box = self.pixels_and_box(record, epoch, index)
        crops = {
            name: crop.resize(pixels, box, size, self.method) for name, size in self.sizes.items()
        }
        if self.masked:
            label_map = self.label_map(record, pixels)
            crops["label_map"] = crop.resize_ids(label_map, box, self.sizes["image"])
        return crops

    def pixels_and_box(self, record: Record, epoch: int, index: int) -> tuple[np.ndarray, Box]:
        """Return pixels uint8 [H, W, C], which may be shrunk, and the box of their crop."""
        if isinstance(record.image, np.ndarray):
            pixels = decode.to_channels(record.image, self.channels)
            height, width, _ = pixels.shape
            return pixels, self.box_of(height, width, epoch, index)
        if isinstance(record.image, OSError):
            raise decode.BadImage(record.image.strerror)
        header = decode.read_header(record.image, self.max_pixels)
        box = self.box_of(header.height, header.width, epoch, index)
        exact = self.exact or self.masked
        shrink = 0 if exact else min(box[2] - box[0], box[3] - box[1]) / self.largest
        pixels = decode.decode(record.image, header, self.channels, shrink)
        factor, offset = decode.scale(header, pixels.shape[:2])
        return pixels, crop.scaled(box, factor, offset, pixels.shape[:2])

    def label_map(self, record: Record, pixels: np.ndarray) -> np.ndarray:
        """Return int16 [H, W]; BadImage, or DataError if the mask does not fit pixels [H, W, C]."""
        ids = masks.read_ids(cast(MaskedRecord, record), self.max_pixels)
        masks.check_size(record.name, ids, pixels)
        return masks.to_classes(record.name, ids, len(self.class_names), self.ignore_label)

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray] | Bad:
        """Return pixels uint8 [H, W, C] and label map int16 [H, W] of an uncropped record."""
        record = self.source[index]
        try:
            pixels, _ = self.pixels_and_box(record, 0, index)
            return pixels, self.label_map(record, pixels)
        except decode.BadImage as error:
            return Bad(int(index), record.name, str(error))


def source_digest(source: Source) -> dict[str, Any]:
    """Return name, number of images and digest of a source, as results store them."""
    text = json.dumps(source.fingerprint(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"name": source.name, "images": len(source), "digest": digest}


def training(
    source: Source, data: options.Data, second: Second = NO_SECOND, cache: Cache | None = None
) -> Images:
    """Return random crops drawn from (data.seed, epoch, index); central ones if data.crop=none."""
    if data.crop == "none":
        return evaluation(source, data, second).reading(cache)
    area, aspect = (data.area_min, data.area_max), (data.aspect_min, data.aspect_max)
    box_of = crop.RandomCrop(data.seed, area, aspect)
    return Images(source, data, box_of, data.exact_decoding, second).reading(cache)


def evaluation(source: Source, data: options.Data, second: Second = NO_SECOND) -> Images:
    """Return the central crops that data.eval_view asks for, of exactly decoded pixels."""
    return Images(source, data, central_crop(data), True, second)


def central_crop(data: options.Data) -> crop.CentralCrop:
    return crop.CentralCrop(data.eval_view, data.eval_resize or data.image_size, data.image_size)
