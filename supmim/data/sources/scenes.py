"""`scenes:train`: scikit-learn's digits scattered over a canvas, with the class of each pixel.

These are real pixels without a download. A scene depends on its index alone: 3 to 8 digits of 8 x 8
pixels on 32 x 32, without overlap, at even coordinates, so that patches of 2 pixels divide them as
in `digits:`. A pixel with a quarter of the full ink belongs to its digit, any other is background.
Scenes for training and for evaluation have no digit in common.
"""

import hashlib
from typing import Any

import numpy as np

from supmim.config import options
from supmim.data.sources import base, digits
from supmim.data.sources.base import MaskedRecord

SIDE = 32
FEWEST, MOST = 3, 8  # digits per scene
PLACES, STEP = 64, 2  # number of places that are tried; pixels between neighbouring places
INK = 60  # of 240
SEED = 0
LENGTHS = {"train": 3000, "test": 500, "tune": 2400, "validation": 500}
CLASSES = ("background", *"0123456789")


class Scenes(base.Masked):
    """`length` scenes of some digits; class 0 is background, class 1 the digit 0."""

    def __init__(self, name: str, digits: base.InMemory, length: int) -> None:
        self.name, self.class_names = name, CLASSES
        self.digits, self.length = digits, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> MaskedRecord:
        rng = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 0, 0, index]))
        places = free_places(rng, self.digits.image.shape[1])
        chosen = rng.integers(len(self.digits), size=len(places))
        image = np.zeros((SIDE, SIDE, 1), np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for (y, x), one in zip(places, chosen, strict=True):
            digit = self.digits.image[one]
            here = slice(y, y + len(digit)), slice(x, x + len(digit))
            image[here] = digit
            mask[here] = (digit[..., 0] >= INK) * (self.digits.label[one] + 1)
        return MaskedRecord(image, 0, f"{self.name}, scene {index}", mask)

    def fingerprint(self) -> dict[str, Any]:
        how = repr((self.digits.fingerprint(), SIDE, FEWEST, MOST, PLACES, STEP, INK, SEED))
        digest = hashlib.sha256(how.encode()).hexdigest()
        return {"name": self.name, "length": len(self), "sha256": digest}


def free_places(rng: np.random.Generator, side: int) -> list[tuple[int, int]]:
    """Draw even corners (y, x) of squares that do not overlap, FEWEST to MOST if they fit."""
    expected = rng.integers(FEWEST, MOST, endpoint=True)
    kept: list[tuple[int, int]] = []
    halves = rng.integers((SIDE - side) // STEP, size=(PLACES, 2), endpoint=True)
    for y, x in (STEP * halves).tolist():
        free = all(abs(y - other[0]) >= side or abs(x - other[1]) >= side for other in kept)
        if free and len(kept) < expected:
            kept.append((y, x))
    return kept


def load(split: str, part: str, data: options.Data | None = None) -> Scenes:
    """Return scenes with the splits of `digits:`, also for what is held out."""
    base.check_name(split, LENGTHS, "scenes:{} is not a split of the scenes")
    if part == base.HELD_OUT and split not in digits.HOLDS_OUT:
        raise base.NothingHeldOut(f"scenes:{split} holds nothing out; set --config.data.eval")
    found = digits.load(split, part)
    name = found.name.partition(":")[2]
    return Scenes(f"scenes:{name}", found, LENGTHS[name])
