"""scikit-learn's bundled 1,797 handwritten digits, 8 x 8: real data without a download."""

import numpy as np

from supmim.config import options
from supmim.data.sources import base

HOLDS_OUT = {"train": "test", "tune": "validation"}


def load(split: str, part: str, data: options.Data = None) -> base.InMemory:
    """train (1,500) and test (297), stratified; for tuning, train again as tune (1,200) and
    validation (300). What train holds out is test, what tune holds out is validation.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    image = (bunch.images * 15).astype(np.uint8)[..., None]  # 0..16: exact, so are distances
    label = bunch.target

    def halves(index, first, second):
        return train_test_split(
            index, train_size=first, test_size=second, stratify=label[index], random_state=0
        )

    splits = dict(zip(("train", "test"), halves(np.arange(len(label)), 1500, 297), strict=True))
    splits |= dict(zip(("tune", "validation"), halves(splits["train"], 1200, 300), strict=True))
    base.known(split, splits, "digits:{} is not a split of the digits")
    if part == base.HELD_OUT and split not in HOLDS_OUT:
        raise base.NothingHeldOut(f"digits:{split} holds nothing out; set --config.data.eval")
    if part == base.HELD_OUT:
        split = HOLDS_OUT[split]
    index = splits[split]
    return base.InMemory(f"digits:{split}", image[index], label[index], "0123456789")
