"""Crops: a box in an image, resized once to a square.

A box is (left, top, right, bottom) in pixels of the whole image; fractions are allowed. The box of
a random crop is drawn from (data.seed, epoch, index) alone.
"""

import dataclasses
import math
import threading

import cykooz_resizer as cykooz
import numpy as np

Box = tuple[float, float, float, float]
FILTERS = {  # name -> filter and the radius of its support, in pixels of the smaller grid
    "bilinear": (cykooz.ResizeAlg.convolution(cykooz.FilterType.bilinear), 1),
    "bicubic": (cykooz.ResizeAlg.convolution(cykooz.FilterType.catmull_rom), 2),  # as Pillow's
}
PIXEL_TYPES = {1: cykooz.PixelType.U8, 3: cykooz.PixelType.U8x3}
ATTEMPTS = 10


class ThreadResizer(threading.local):
    """A resizer for each thread, since a resizer keeps buffers."""

    def __init__(self) -> None:
        self.resize = cykooz.Resizer().resize


RESIZER = ThreadResizer()


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random area and aspect ratio at a random place, as in torchvision's RandomResizedCrop.

    area: range of the share of the image, uniform. aspect: range of width / height, log-uniform.
    Sides are integers. If no attempt fits: the largest central box with an allowed aspect ratio.
    """

    seed: int
    area: tuple[float, float]
    aspect: tuple[float, float]

    def __call__(self, height: int, width: int, epoch: int, index: int) -> Box:
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, epoch, index]))
        low, high = map(math.log, self.aspect)
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(*self.area)
            aspect = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
                return float(left), float(top), float(left + w), float(top + h)
        w = min(width, max(1, round(height * self.aspect[1])))
        h = min(height, max(1, round(width / self.aspect[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return float(left), float(top), float(left + w), float(top + h)


def short_side_size(height: float, width: float, resize: int) -> tuple[int, int]:
    """Return (height, width) after a resize of the short side to `resize`.

    Rounds as torchvision's Resize does, which is the protocol of DINO's kNN.
    """
    scaled = int(resize * max(height, width) / min(height, width))
    return (resize, scaled) if height <= width else (scaled, resize)


def stretch_size(height: float, width: float, resize: int) -> tuple[int, int]:
    """Return (resize, resize), whatever the aspect ratio, as in big_vision's few-shot evaluator."""
    return resize, resize


EVAL_SIZES = {"short_side": short_side_size, "stretch": stretch_size}


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """The central square of side `size` after a resize to `resize` by EVAL_SIZES[view].

    Offsets round as in torchvision's CenterCrop. The fields are stored with results.
    """

    view: str
    resize: int
    size: int

    def __call__(self, height: float, width: float, epoch: int, index: int) -> Box:
        new_height, new_width = EVAL_SIZES[self.view](height, width, self.resize)
        left, top = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        right, bottom = left + self.size, top + self.size
        x, y = width / new_width, height / new_height
        return left * x, top * y, min(right * x, width), min(bottom * y, height)


def resize(pixels: np.ndarray, box: Box, size: int, method: str) -> np.ndarray:
    """Return the box of uint8 [H, W, 1 or 3] as [size, size, C]: see resize_to."""
    return resize_to(pixels, box, (size, size), method)


def resize_to(pixels: np.ndarray, box: Box, size: tuple[int, int], method: str) -> np.ndarray:
    """Return the box of uint8 [H, W, 1 or 3] as [*size, C].

    The resize is antialiased and equals Pillow's up to one level.
    """
    height, width, channels = pixels.shape
    if (height, width) == size and box == (0, 0, width, height):
        return pixels
    algorithm, radius = FILTERS[method]
    left, top, right, bottom = box
    x_margin = 1 + math.ceil(radius * max(1, (right - left) / size[1]))
    y_margin = 1 + math.ceil(radius * max(1, (bottom - top) / size[0]))
    x, y = max(0, math.floor(left) - x_margin), max(0, math.floor(top) - y_margin)
    region = pixels[y : math.ceil(bottom) + y_margin, x : math.ceil(right) + x_margin]
    kind = PIXEL_TYPES[channels]
    source = cykooz.ImageData(region.shape[1], region.shape[0], kind, region.tobytes())
    resized = cykooz.ImageData(size[1], size[0], kind)
    crop_box = cykooz.CropBox(left - x, top - y, right - left, bottom - top)
    RESIZER.resize(source, resized, cykooz.ResizeOptions(algorithm, crop_box=crop_box))
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(*size, channels)


def resize_ids(ids: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Return the box of ids [H, W] as [size, size]: the ids at the centres of the new pixels."""
    left, top, right, bottom = box
    middle = (np.arange(size) + 0.5) / size
    y, x = top + middle * (bottom - top), left + middle * (right - left)
    rows, columns = (v.astype(int).clip(0, n - 1) for v, n in zip((y, x), ids.shape, strict=True))
    return ids[np.ix_(rows, columns)]


def scaled(box: Box, factor: int, offset: tuple[float, float], new: tuple[int, int]) -> Box:
    """Return the box in an image of a new size (height, width), whose pixels are factor wide.

    offset: (y, x) of the old image's corner in the new one. Rounding never moves the box out of it.
    """
    y, x = offset
    left, top, right, bottom = (side / factor for side in box)
    return max(0, left + x), max(0, top + y), min(right + x, new[1]), min(bottom + y, new[0])
