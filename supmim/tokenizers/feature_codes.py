"""Codes of features: ids say what a patch is a part of, not which pixels it has.

Spherical k-means of the patch features of a frozen encoder: a ViT or a small CNN. Shapes: B batch,
S image side, N tokens of an image, D features, K codes, F values of a patch.
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from supmim import config as config_lib
from supmim.config import options
from supmim.data.augment import views
from supmim.models import layers
from supmim.models.encoder import Encoder
from supmim.tokenizers import codes as codes_lib
from supmim.tokenizers import folder as folder_lib
from supmim.tokenizers import kmeans
from supmim.tokenizers.small_cnn import SmallCNN

KIND = "feature_codes"
BATCH = 64  # images whose features are computed at once


@struct.dataclass
class FeatureCodes:
    """A frozen encoder and unit codes of its centred features.

    params: {"network": the encoder's, "mean": [D], "codes": [K, D], "patches": [K, F]}; patches are
    the mean pixels of the patches of each code.
    """

    params: Any
    network: nn.Module = struct.field(pytree_node=False)
    patch_size: int = struct.field(pytree_node=False)
    channels: int = struct.field(pytree_node=False)

    def encode(self, image: jax.Array) -> jax.Array:
        codes_lib.check_range(image)
        found = features(self.network, self.params["network"], image)
        centred = found - jnp.broadcast_to(self.params["mean"], found.shape)
        return codes_lib.nearest(kmeans.unit(centred), self.params["codes"])

    def decode(self, ids: jax.Array) -> jax.Array:
        return layers.unpatchify(self.params["patches"][ids], self.patch_size, self.channels)

    def fingerprint(self) -> str:
        return folder_lib.fingerprint(KIND, self.sizes, self.dtype, self.params)

    def options(self) -> dict[str, Any]:
        return {
            "tokenizer.name": KIND,
            "data.channels": self.channels,
            "tokenizer.patch_size": self.patch_size,
            "tokenizer.codebook_size": len(self.params["codes"]),
        }

    def save(self, folder: Path, origin: str = "") -> None:
        folder_lib.write(folder, KIND, self.sizes, self.params, origin)

    @property
    def dtype(self) -> str:
        """The dtype in which the encoder computes."""
        network: Any = self.network
        return network.options.dtype if isinstance(network, Encoder) else network.dtype

    @property
    def sizes(self) -> dict[str, Any]:
        """Everything that determines the shapes of the parameters, as JSON values."""
        return {
            **network_sizes(self.network),
            "patch_size": self.patch_size,
            "channels": self.channels,
            "codebook_size": len(self.params["codes"]),
        }


def network_sizes(network: Any) -> dict[str, Any]:
    """Return an encoder as JSON values: {"vit": options} or {"cnn": fields}."""
    if isinstance(network, Encoder):
        return {"vit": config_lib.flatten(network.options) | {"dtype": "float32"}}
    return {"cnn": {"filters": network.filters}}


def network_of(sizes: dict[str, Any], dtype: str) -> nn.Module:
    """Return the encoder with a note's sizes; impossible sizes raise the encoder's own errors."""
    if "cnn" in sizes:
        filters, patch_size = sizes["cnn"]["filters"], sizes["patch_size"]
        if not (isinstance(filters, int) and 0 < filters <= options.MAX_WIDTH):
            raise ValueError(f"its network has {filters!r} filters")
        return SmallCNN(patch_size, filters, dtype)
    size = sizes["patch_size"] * max(1, sizes["vit"]["position_grid"])
    given = {f"encoder.{name}": value for name, value in sizes["vit"].items()}
    data = {"data.image_size": size, "data.channels": sizes["channels"], "mim_weight": 0.0}
    default = config_lib.flatten(options.Config())
    checked = config_lib.validate(default | given | data | {"encoder.dtype": dtype})
    return Encoder(checked.encoder, checked.grid)


def features(network: nn.Module, params: Any, image: jax.Array) -> jax.Array:
    """Return the features [B, N, D], float32, of images [B, S, S, C] in [0, 1]."""
    encoded: Any = network.apply({"params": params}, views.to_input(image))
    return encoded.latent.astype(jnp.float32)


def shapes(network: nn.Module, patch_size: int, channels: int, codebook_size: int) -> Any:
    """Return the shapes of the parameters."""
    image = jax.ShapeDtypeStruct((1, 2 * patch_size, 2 * patch_size, channels), jnp.float32)
    encoded: Any
    encoded, own = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    width = encoded.latent.shape[-1]
    each = {"mean": (width,), "codes": (codebook_size, width)}
    each["patches"] = (codebook_size, patch_size**2 * channels)
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in each.items()}
    return {"network": own["params"], **arrays}


def abstract(sizes: options.Tokenizer, channels: int, dtype: str) -> FeatureCodes:
    """Return a tokenizer with shapes in place of arrays. sizes: config.tokenizer.

    The network is that of the folder sizes.path or, without one, the small one that a run trains.
    """
    if not sizes.path:
        network = SmallCNN(sizes.patch_size, sizes.filters, dtype)
        whole = shapes(network, sizes.patch_size, channels, sizes.codebook_size)
        return FeatureCodes(whole, network, sizes.patch_size, channels)
    folder = Path(sizes.path)
    note = folder_lib.read_note(folder)["sizes"]
    with folder_lib.reading(folder):  # with its own sizes; `load` compares them with the config's
        network = network_of(note, dtype)
        whole = shapes(network, note["patch_size"], note["channels"], sizes.codebook_size)
    return FeatureCodes(whole, network, sizes.patch_size, channels)


def load(folder: Path, dtype: str = "float32") -> FeatureCodes:
    """Return a saved tokenizer; CheckpointError if it is damaged."""
    sizes, params = folder_lib.read(folder)
    with folder_lib.reading(folder):
        network = network_of(sizes, dtype)
        patch_size, channels = sizes["patch_size"], sizes["channels"]
        expected = shapes(network, patch_size, channels, sizes["codebook_size"])
        if jax.tree.map(np.shape, expected) != jax.tree.map(np.shape, params):
            raise ValueError("its sizes do not match the shapes of its weights")
        return FeatureCodes(jax.tree.map(jnp.asarray, params), network, patch_size, channels)


def fit(
    network: nn.Module,
    params: Any,
    image: np.ndarray,
    *,
    codebook_size: int,
    patch_size: int,
    steps: int,
    seed: int,
) -> FeatureCodes:
    """Fit codes to the features of float images [n, S, S, C] in [0, 1], deterministically.

    Features are centred by their mean first. ConfigError if there are fewer patches than codes.
    """
    grid = image.shape[1] // patch_size
    rng = np.random.default_rng(seed)
    count = min(kmeans.MOST_POINTS, len(image) * grid**2)
    chosen = np.sort(rng.choice(len(image) * grid**2, count, replace=False))
    compute = jax.jit(lambda params, image: features(network, params, image))
    found, pixels = [], []
    for start in range(0, len(image), BATCH):
        part = image[start : start + BATCH]
        low, high = np.searchsorted(chosen, [start * grid**2, (start + len(part)) * grid**2])
        rows = chosen[low:high] - start * grid**2
        padded = np.pad(part, [(0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)])
        feature = np.asarray(compute(params, padded))
        found.append(feature.reshape(-1, feature.shape[-1])[rows])
        patches = layers.patchify(part, patch_size)
        pixels.append(patches.reshape(-1, patches.shape[-1])[rows])
    points, patches = np.concatenate(found), jnp.asarray(np.concatenate(pixels))
    mean = points.mean(axis=0)
    points = np.asarray(kmeans.unit(points - mean))
    sizes = {"steps": steps, "seed": seed, "images": len(image)}
    codes = kmeans.fit(points, codebook_size, **sizes, spherical=True)
    nearest = functools.partial(codes_lib.nearest, codes=codes)
    ids = jax.lax.map(nearest, jnp.asarray(points), batch_size=kmeans.CHUNK)
    total = jax.ops.segment_sum(patches, ids, codebook_size)
    number = jnp.maximum(jax.ops.segment_sum(jnp.ones(len(ids)), ids, codebook_size), 1)
    every = {"network": params, "mean": jnp.asarray(mean), "codes": codes}
    every["patches"] = total / number[:, None]
    return FeatureCodes(every, network, patch_size, image.shape[-1])


def of_encoder(encoder: options.Encoder, grid: int, dtype: str) -> Encoder:
    """Return the network of a loaded model's encoder, for images of any size."""
    plain = options.changed(
        encoder,
        scan=False,
        remat="none",
        attention="xla",
        dropout=0.0,
        stochastic_depth=0.0,
        position_grid=encoder.position_grid or grid,
        dtype=dtype,
    )
    return Encoder(plain, grid)
