"""How far the JPEGs of a training view are from exactly decoded ones, and how much faster.

    python tools/scaled_decoding.py [PHOTO.jpg ...]

Without files it takes the two photographs of scikit-learn, 640 x 427 pixels. Of each it draws
random crops, resizes them to several sizes, and prints for each factor of scaled decoding: the
mean difference in levels of 255; the mean step between neighbouring pixels, as a share of that of
the exact crop, which is less if the crop is smoother; and the speed, as a multiple.
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import sklearn.datasets

from supmim.config import Config
from supmim.data import decode, images
from supmim.data.sources import base

SIZES, CROPS = (32, 48, 64, 96, 128, 160, 224), 200
PHOTOS = ("china.jpg", "flower.jpg")


def steps(crop: np.ndarray) -> float:
    """Return the mean absolute step between neighbouring pixels."""
    return sum(float(np.abs(np.diff(crop, axis=axis)).mean()) for axis in (0, 1))


def main() -> None:
    inside = Path(sklearn.datasets.__file__).parent / "images"
    files = [Path(name).read_bytes() for name in sys.argv[1:]]
    files = files or [(inside / name).read_bytes() for name in PHOTOS]
    found: dict[int, list[list[float]]] = {}
    nothing = base.InMemory("none", np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, int), ("a",))
    for size in SIZES:
        data = dataclasses.replace(Config().data, image_size=size, crop="inception")
        fast = images.training(nothing, data)
        exact = images.training(nothing, dataclasses.replace(data, exact_decoding=True))
        for number, file in enumerate(files):
            header, record = decode.read_header(file, 10**9), base.Record(file, 0, "photo")
            for index in range(CROPS):
                box = fast.box_of(header.height, header.width, number, index)
                shrink = min(box[2] - box[0], box[3] - box[1]) / size
                crops, seconds = [], []
                for view in (fast, exact):
                    start = time.process_time()
                    crops.append(view.crop(record, number, index)["image"].astype(int))
                    seconds.append(time.process_time() - start)
                difference = float(np.abs(crops[0] - crops[1]).mean())
                factor = max([f for f in decode.SIMD_FACTORS if f <= shrink], default=1)
                found.setdefault(factor, []).append(
                    [difference, steps(crops[0]), steps(crops[1]), *seconds]
                )
    print("factor  crops  levels: mean   95 %  steps  speed")
    for factor, rows in sorted(found.items()):
        difference, ours, theirs, quick, slow = np.array(rows).T
        print(
            f"{factor:6}{len(rows):7}{difference.mean():14.2f}{np.quantile(difference, 0.95):7.2f}"
            f"{ours.sum() / theirs.sum():7.2f}{slow.sum() / quick.sum():7.2f}"
        )


if __name__ == "__main__":
    main()
