"""`scenes:train`: the digits of scikit-learn strewn over a canvas, with the class of each pixel.

Real pixels, no download. A scene is a function of its index alone: 3 to 8 digits of 8 x 8 pixels on
32 x 32, none over another, at even places, so that patches of 2 pixels cut them as in `digits:`. A
pixel is its digit's if it has a quarter of the full ink, else it is background. Scenes of the
digits for training have none of those for evaluation.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from supmim.config import options
from supmim.data.sources import base, digits
from supmim.data.sources.base import MaskedRecord

SIDE = 32
FEWEST, MOST = 3, 8  # digits of a scene
PLACES, STEP = 64, 2  # tried for them; pixels from one to the next
INK = 60  # of 240
SEED = 0
LENGTHS = {"train": 3000, "test": 500, "tune": 2400, "validation": 500}
CLASSES = ("background", *"0123456789")


class Scenes(base.Masked):
    """So many scenes of some digits; class 0 is background, 1 is the digit 0."""

    class_names = CLASSES

    def __init__(self, name: str, of: base.InMemory, length: int) -> None:
        self.name, self.digits, self.length = name, of, length

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

    def __getitems__(self, index: Sequence[int]) -> list[MaskedRecord]:
        return [self[int(i)] for i in index]

    def fingerprint(self) -> dict[str, Any]:
        """Of the digits, and of how they are strewn."""
        how = repr((self.digits.fingerprint(), SIDE, FEWEST, MOST, PLACES, STEP, INK, SEED))
        digest = hashlib.sha256(how.encode()).hexdigest()
        return {"name": self.name, "length": len(self), "sha256": digest}


def free_places(rng: np.random.Generator, side: int) -> list[tuple[int, int]]:
    """Even corners (y, x) of squares that do not overlap, as many as were drawn or as fit."""
    expected = rng.integers(FEWEST, MOST, endpoint=True)
    kept: list[tuple[int, int]] = []
    halves = rng.integers((SIDE - side) // STEP, size=(PLACES, 2), endpoint=True)
    for y, x in (STEP * halves).tolist():
        free = all(abs(y - other[0]) >= side or abs(x - other[1]) >= side for other in kept)
        if free and len(kept) < expected:
            kept.append((y, x))
    return kept


def load(split: str, part: str, data: options.Data = None) -> Scenes:
    """The splits of `digits:`; what is held out, too."""
    base.known(split, LENGTHS, "scenes:{} is not a split of the scenes")
    if part == base.HELD_OUT and split not in digits.HOLDS_OUT:
        raise base.NothingHeldOut(f"scenes:{split} holds nothing out; set --config.data.eval")
    of = digits.load(split, part)
    found = of.name.partition(":")[2]
    return Scenes(f"scenes:{found}", of, LENGTHS[found])
