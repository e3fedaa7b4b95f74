"""The LPIPS distance (arXiv 1801.03924) on features of VGG16, with weights that the user provides.

No weights are bundled. Shapes: B batch, S image side, C channels, F features.
"""

from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from supmim.errors import CheckpointError

# torchvision's vgg16: number of each convolution in `features` and its width, stage by stage. Each
# stage but the first begins with 2 x 2 max pooling; the outputs of the stages are compared.
STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as VGG16 was trained
Features = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the convolutions, as torchvision stores them."""
    expected, inputs = {}, 3
    for number, width in (conv for stage in STAGES for conv in stage):
        expected[f"features.{number}.weight"] = (width, inputs, 3, 3)
        expected[f"features.{number}.bias"] = (width,)
        inputs = width
    return expected


def linear_shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of LPIPS's learned feature weights, which a file may lack."""
    return {f"lin{i}.model.1.weight": (1, stage[-1][1], 1, 1) for i, stage in enumerate(STAGES)}


def zeros() -> Features:
    """Return zero weights of the right shapes, to trace and compile."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}


def load(path: Path, digest: str) -> Features:
    """Read the weights; CheckpointError if the file has another SHA-256 or other tensors."""
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the perceptual weights {path} cannot be read: {error.strerror}; set "
            "--config.tokenizer.perceptual_weights=FILE, or --config.tokenizer.perceptual_weight=0"
        ) from error
    if (found := sha256(stored).hexdigest()) != digest.lower():
        raise CheckpointError(
            f"the perceptual weights {path} are not those of the config:\n"
            f"  SHA-256 of the file: {found}\n"
            f"  config.tokenizer.perceptual_sha256: {digest or 'empty'}\n"
            f"If this is the right file, set --config.tokenizer.perceptual_sha256={found}"
        )
    try:
        weights = load_safetensors(stored)
    except SafetensorError as error:
        raise CheckpointError(
            f"the perceptual weights {path} are not a safetensors file: {error}"
        ) from error
    return checked(weights, path)


def checked(weights: dict[str, np.ndarray], path: Path) -> Features:
    """Return the needed tensors as float32; CheckpointError lists those that do not fit."""
    expected = shapes()
    if any(name.startswith("lin") for name in weights):
        expected |= linear_shapes()
    rows = [
        f"  {name:<24}{'missing' if name not in weights else weights[name].shape!s:<20}{shape}"
        for name, shape in expected.items()
        if name not in weights or weights[name].shape != shape
    ]
    if rows:
        table = "\n".join([f"  {'tensor':<24}{'found':<20}expected", *rows])
        raise CheckpointError(
            f"the perceptual weights {path} are not torchvision's VGG16:\n{table}"
        )
    return {name: weights[name].astype(np.float32) for name in expected}


def distance(weights: Features, image: jax.Array, decoded: jax.Array) -> jax.Array:
    """Return the perceptual distance of images in [0, 1]: [B, S, S, C] twice -> [B].

    Squared differences of unit feature vectors are weighted by the learned weights if there are
    any, summed over features, averaged over positions and summed over stages.
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
    """Scale the feature vectors of [B, h, w, F] to length 1."""
    return x / (jnp.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-20) + 1e-10)


def features(weights: Features, image: jax.Array) -> list[jax.Array]:
    """Return the output [B, h, w, F] of each stage for images [B, S, S, C] in [0, 1]; C: 1 or 3."""
    x = jnp.broadcast_to(image, (*image.shape[:3], 3))
    x = (x - np.reshape(MEAN, (1, 1, 1, 3))) / np.reshape(STD, (1, 1, 1, 3))
    ends = []
    for number, stage in enumerate(STAGES):
        if number:
            size = (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, size, "VALID")
        for conv, _ in stage:
            kernel = jnp.asarray(weights[f"features.{conv}.weight"].transpose(2, 3, 1, 0))
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
            x = jax.nn.relu(x + weights[f"features.{conv}.bias"].reshape(1, 1, 1, -1))
        ends.append(x)
    return ends
