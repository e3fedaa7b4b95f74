"""A raw batch, as readers return it and devices receive it, before augmentation.

It imports no jax, for reader processes. Shapes: B batch, S = data.image_size, T the tokenizer's
size, C channels, N patches.
"""

from typing import Any, NotRequired, TypedDict

import numpy as np

from supmim.config import Config


class Raw(TypedDict):
    """One batch, as NumPy arrays on a host or as JAX arrays on the devices.

    image: uint8 [B, S, S, C], cropped and resized. label: [B]. index: [B], number of the record.
    epoch: [B]. valid: [B], 1 for a real example and 0 for padding or an unreadable image.
    tokenizer_image: uint8 [B, T, T, C], the same crop at the tokenizer's own size. target_ids:
    [B, N], read from a cache or computed by `Task.tokenize`. label_map: [B, S, S], the class of
    each pixel or masks.IGNORED.
    """

    image: Any
    label: Any
    index: Any
    epoch: Any
    valid: Any
    tokenizer_image: NotRequired[Any]
    target_ids: NotRequired[Any]
    label_map: NotRequired[Any]


def field_shapes(config: Config, tokenizer_size: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape (without the batch axis) and type of each field of a training batch.

    tokenizer_size: side of `tokenizer_image`; 0 if there is none.
    """
    size, channels = config.data.image_size, config.data.channels
    fields: dict[str, tuple[tuple[int, ...], type]] = {
        "image": ((size, size, channels), np.uint8),
        "label": ((), np.int32),
        "index": ((), np.int32),
        "epoch": ((), np.int32),
        "valid": ((), np.float32),
    }
    if tokenizer_size:
        fields["tokenizer_image"] = ((tokenizer_size, tokenizer_size, channels), np.uint8)
    if config.facts.has_masks:
        fields["label_map"] = ((size, size), np.int16)
    if config.has_tokenizer and config.data.targets:
        fields["target_ids"] = ((config.grid**2,), np.int32)
    return fields
