"""Distance of VGG16's features in the form of LPIPS (arXiv 1801.03924), from weights of the user.

Nothing is bundled. Shapes: B batch, S image side, C channels, F features.
"""

from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from supmim.errors import CheckpointError

# torchvision's vgg16: number of each convolution in `features` and its width, stage by stage; each
# stage but the first begins with a maximum over 2 x 2 pixels, and the end of each is compared.
STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its images were seen
Features = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the convolutions, as torchvision stores them."""
    found, before = {}, 3
    for number, width in (conv for stage in STAGES for conv in stage):
        found[f"features.{number}.weight"] = (width, before, 3, 3)
        found[f"features.{number}.bias"] = (width,)
        before = width
    return found


def linear_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of LPIPS's learned weights of features, which may all be left out."""
    return {f"lin{i}.model.1.weight": (1, stage[-1][1], 1, 1) for i, stage in enumerate(STAGES)}


def zeros() -> Features:
    """Weights of the right shapes, to trace and compile with."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}


def load(path: Path, digest: str) -> Features:
    """Reads safetensors. CheckpointError if it is another file, or lacks what is needed."""
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the perceptual weights {path} cannot be read: {error.strerror}; set "
            "--config.tokenizer.perceptual_weights=FILE, or perceptual_weight=0"
        ) from error
    if (found := sha256(stored).hexdigest()) != digest.lower():
        raise CheckpointError(
            f"the perceptual weights {path} are not those of the config:\n"
            f"  SHA-256 of the file: {found}\n"
            f"  config.tokenizer.perceptual_sha256: {digest or 'empty'}\n"
            "Set the digest if the file is the one you mean"
        )
    try:
        weights = load_safetensors(stored)
    except SafetensorError as error:
        raise CheckpointError(
            f"the perceptual weights {path} are no safetensors: {error}"
        ) from error
    return checked(weights, path)


def checked(weights: dict[str, np.ndarray], path: Path) -> Features:
    """The tensors that are used, float32; CheckpointError with a table of those that do not fit."""
    expected = shapes()
    if any(name.startswith("lin") for name in weights):
        expected |= linear_shapes()
    rows = [
        f"  {name:<24}{'missing' if name not in weights else weights[name].shape!s:<20}{shape}"
        for name, shape in expected.items()
        if name not in weights or weights[name].shape != shape
    ]
    if rows:
        head = f"  {'tensor':<24}{'found':<20}expected"
        raise CheckpointError(
            f"the perceptual weights {path} are not torchvision's VGG16:\n"
            + "\n".join([head, *rows])
        )
    return {name: weights[name].astype(np.float32) for name in expected}


def distance(weights: Features, image: jax.Array, decoded: jax.Array) -> jax.Array:
    """[B, S, S, C] in [0, 1] twice -> [B].

    Squared differences of unit feature vectors, summed over features, with the learned weights
    where there are any, and averaged over places; the sum over stages.
    """
    both = zip(features(weights, image), features(weights, decoded), strict=True)
    total = jnp.zeros(len(image))
    for stage, (a, b) in enumerate(both):
        difference = (unit(a) - unit(b)) ** 2
        linear = weights.get(f"lin{stage}.model.1.weight")
        if linear is not None:
            difference = difference * linear.reshape(1, 1, 1, -1)
        total = total + difference.sum(axis=-1).mean(axis=(1, 2))
    return total


def unit(x: jax.Array) -> jax.Array:
    """[B, h, w, F] -> vectors of length 1."""
    return x / (jnp.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-20) + 1e-10)


def features(weights: Features, image: jax.Array) -> list[jax.Array]:
    """[B, S, S, C] in [0, 1] -> the end of each stage, [B, h, w, F]; grey counts as RGB."""
    x = jnp.broadcast_to(image, (*image.shape[:3], 3))
    x = (x - np.reshape(MEAN, (1, 1, 1, 3))) / np.reshape(STD, (1, 1, 1, 3))
    ends = []
    for number, stage in enumerate(STAGES):
        if number:
            size = (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, size, "VALID")
        for conv, _ in stage:
            x = jax.lax.conv_general_dilated(
                x, weights[f"features.{conv}.weight"].transpose(2, 3, 1, 0), (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = jax.nn.relu(x + weights[f"features.{conv}.bias"].reshape(1, 1, 1, -1))
        ends.append(x)
    return ends
