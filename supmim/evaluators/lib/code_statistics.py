"""Statistics of ids of image tokens, by which to choose a target before training.

Shapes: n images, N tokens of an image, K codes.
"""

import numpy as np
from sklearn.metrics import mutual_info_score


def of(ids: np.ndarray, label: np.ndarray, codebook_size: int) -> dict[str, float]:
    """Return tokenizer/code_usage, code_perplexity, class_information and the latter's floor.

    ids: [n, N]; label: [n], all equal if images have no classes.
    """
    found = code_usage(ids, codebook_size) | class_information(ids, label)
    prefix = "tokenizer/"
    return {n if n.startswith("floor/") else prefix + n: value for n, value in found.items()}


def code_usage(ids: np.ndarray, codebook_size: int) -> dict[str, float]:
    """Return the share of the codes used by ids [n, N], and exp(entropy) of their frequencies."""
    count = np.bincount(ids.ravel(), minlength=codebook_size)
    share = count[count > 0] / count.sum()
    return {
        "code_usage": float((count > 0).mean()),
        "code_perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }


def class_information(ids: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return the mutual information of an id and its image's class, over the entropy of classes.

    0: an id says nothing of the class. 1: it determines the class. For phones of speech this is
    HuBERT's PNMI (arXiv 2106.07447). The floor is the same for shuffled labels: with few images,
    many codes agree by chance. Empty for images of a single class. ids: [n, N]; label: [n].
    """
    classes = np.repeat(label, ids.shape[1])
    entropy = mutual_info_score(classes, classes)
    if not entropy:
        return {}
    shuffled = np.repeat(np.random.default_rng(0).permutation(label), ids.shape[1])
    return {
        "class_information": float(mutual_info_score(classes, ids.ravel()) / entropy),
        "floor/class_information": float(mutual_info_score(shuffled, ids.ravel()) / entropy),
    }
