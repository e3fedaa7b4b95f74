"""`digits:train`: the 1,797 handwritten digits, 8 x 8, that come with scikit-learn."""

from typing import Any

import numpy as np

from supmim.config import options
from supmim.data.sources import base

HOLDS_OUT = {"train": "test", "tune": "validation"}


def load(split: str, part: str, data: options.Data | None = None) -> base.InMemory:
    """Return a stratified split: train (1,500) or test (297), tune (1,200) or validation (300).

    The last two divide train. `train` holds out `test`, and `tune` holds out `validation`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    image = (bunch.images * 15).astype(np.uint8)[..., None]  # 0..16: exact, so are distances
    label = bunch.target

    def halves(index: np.ndarray, first: int, second: int) -> Any:
        return train_test_split(
            index, train_size=first, test_size=second, stratify=label[index], random_state=0
        )

    splits: dict[str, np.ndarray] = {}
    splits["train"], splits["test"] = halves(np.arange(len(label)), 1500, 297)
    splits["tune"], splits["validation"] = halves(splits["train"], 1200, 300)
    base.check_name(split, splits, "digits:{} is not a split of the digits")
    if part == base.HELD_OUT:
        if split not in HOLDS_OUT:
            raise base.NothingHeldOut(f"digits:{split} holds nothing out; set --config.data.eval")
        split = HOLDS_OUT[split]
    index = splits[split]
    return base.InMemory(f"digits:{split}", image[index], label[index], "0123456789")
