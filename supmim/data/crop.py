"""Which part of an image becomes a square view, and its resize: always one box, resized once.

A box is (left, top, right, bottom) in pixels of the whole image, fractions allowed. That of a
training view is drawn from (data.seed, epoch, index) alone.
"""

import dataclasses
import math
import threading

import numpy as np
from cykooz_resizer import (
    CropBox,
    FilterType,
    ImageData,
    PixelType,
    ResizeAlg,
    ResizeOptions,
    Resizer,
)

Box = tuple[float, float, float, float]
FILTERS = {  # each with the radius of its support, in pixels of the smaller grid
    "bilinear": (ResizeAlg.convolution(FilterType.bilinear), 1),
    "bicubic": (ResizeAlg.convolution(FilterType.catmull_rom), 2),  # Pillow's a = -0.5
}
PIXEL_TYPES = {1: PixelType.U8, 3: PixelType.U8x3}
ATTEMPTS = 10


class OwnResizer(threading.local):
    """One for each thread: it keeps buffers."""

    def __init__(self) -> None:
        self.resize = Resizer().resize


RESIZER = OwnResizer()


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random area and aspect, placed at random, as torchvision's RandomResizedCrop.

    area: lowest and highest share of the image, uniform; aspect: of width by height, log-uniform.
    Sides are integers. If ten tries don't fit: the largest central part with an allowed aspect.
    """

    seed: int
    area: tuple[float, float]
    aspect: tuple[float, float]

    def __call__(self, height: int, width: int, epoch: int, index: int) -> Box:
        """The box of one example of one epoch."""
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, epoch, index]))
        logs = tuple(map(math.log, self.aspect))
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(*self.area)
            aspect = math.exp(rng.uniform(*logs))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
                return float(left), float(top), float(left + w), float(top + h)
        w = min(width, max(1, round(height * self.aspect[1])))
        h = min(height, max(1, round(width / self.aspect[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return float(left), float(top), float(left + w), float(top + h)


def short_side_box(height: int, width: int, resize: int, size: int) -> Box:
    """What a central size x size crop shows after the short side was resized to `resize`.

    Sides and offsets round as torchvision's Resize and CenterCrop, the protocol of DINO's kNN.
    """
    return _crop_of_resized(height, width, *short_side_size(height, width, resize), size)


def stretch_box(height: int, width: int, resize: int, size: int) -> Box:
    """The same after a resize to a square that ignores the aspect: big_vision's few-shot view."""
    return _crop_of_resized(height, width, *stretch_size(height, width, resize), size)


def _crop_of_resized(height: int, width: int, new_height: int, new_width: int, size: int) -> Box:
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)


def short_side_size(height: int, width: int, resize: int) -> tuple[int, int]:
    """Height and width once the short side is `resize`."""
    scaled = int(resize * max(height, width) / min(height, width))
    return (resize, scaled) if height <= width else (scaled, resize)


def stretch_size(height: int, width: int, resize: int) -> tuple[int, int]:
    """Those of a square."""
    return resize, resize


EVAL_SIZES = {"short_side": short_side_size, "stretch": stretch_size}
EVAL_BOXES = {"short_side": short_side_box, "stretch": stretch_box}


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """The same part of every image: a view of EVAL_BOXES, its resize and the side that is left."""

    view: str
    resize: int
    size: int

    def __call__(self, height: int, width: int, epoch: int, index: int) -> Box:
        """The box of any example."""
        return EVAL_BOXES[self.view](height, width, self.resize, self.size)


def resize(pixels: np.ndarray, box: Box, size: int, method: str) -> np.ndarray:
    """The box of uint8 [H, W, 1 or 3] as [size, size, C], antialiased; Pillow's to a level."""
    return resize_to(pixels, box, (size, size), method)


def resize_to(pixels: np.ndarray, box: Box, size: tuple[int, int], method: str) -> np.ndarray:
    """The same as [*size, C], for any height and width."""
    height, width, channels = pixels.shape
    if (height, width) == size and box == (0, 0, width, height):
        return pixels
    algorithm, radius = FILTERS[method]
    left, top, right, bottom = box
    x_margin = 1 + math.ceil(radius * max(1, (right - left) / size[1]))
    y_margin = 1 + math.ceil(radius * max(1, (bottom - top) / size[0]))
    x, y = max(0, math.floor(left) - x_margin), max(0, math.floor(top) - y_margin)
    part = pixels[y : math.ceil(bottom) + y_margin, x : math.ceil(right) + x_margin]
    kind = PIXEL_TYPES[channels]
    source = ImageData(part.shape[1], part.shape[0], kind, part.tobytes())
    view = ImageData(size[1], size[0], kind)
    shown = CropBox(left - x, top - y, right - left, bottom - top)
    RESIZER.resize(source, view, ResizeOptions(algorithm, crop_box=shown))
    return np.frombuffer(view.get_buffer(), np.uint8).reshape(*size, channels)


def resize_ids(ids: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The box of ids [H, W] as [size, size]: those at the centres of the new pixels."""
    left, top, right, bottom = box
    middle = (np.arange(size) + 0.5) / size
    y, x = top + middle * (bottom - top), left + middle * (right - left)
    rows, columns = (v.astype(int).clip(0, n - 1) for v, n in zip((y, x), ids.shape, strict=True))
    return ids[np.ix_(rows, columns)]


def scaled(box: Box, size: tuple[int, int], new: tuple[int, int]) -> Box:
    """The box in an image of another (height, width); rounding does not let it stick out."""
    y, x = new[0] / size[0], new[1] / size[1]
    return box[0] * x, box[1] * y, min(box[2] * x, new[1]), min(box[3] * y, new[0])
