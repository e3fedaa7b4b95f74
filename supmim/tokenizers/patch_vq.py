"""The simplest tokenizer: k-means codes of square image patches.

Shapes: K codes, F values of a patch, N tokens of an image.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from supmim.config import options
from supmim.models import layers
from supmim.tokenizers import codes as codes_lib
from supmim.tokenizers import folder as folder_lib
from supmim.tokenizers import kmeans
from supmim.workdir.files import read_json

# The files of an earlier format, which is still read.
OLD_CODES = "patch_vq.npz"
OLD_DIGEST = "patch_vq.json"
MOST_BYTES = 2**28  # of their arrays, unpacked


@struct.dataclass
class PatchVQ:
    """A tokenizer that maps each patch to the nearest of its codes, [K, F], in [0, 1]."""

    codes: jax.Array
    patch_size: int = struct.field(pytree_node=False)
    channels: int = struct.field(pytree_node=False)

    def encode(self, image: jax.Array) -> jax.Array:
        codes_lib.check_range(image)
        return codes_lib.nearest(layers.patchify(image, self.patch_size), self.codes)

    def decode(self, ids: jax.Array) -> jax.Array:
        return layers.unpatchify(self.codes[ids], self.patch_size, self.channels)

    def fingerprint(self) -> str:
        return sha256(np.asarray(self.codes).tobytes()).hexdigest()

    def options(self) -> dict[str, Any]:
        return {
            "tokenizer.name": "patch_vq",
            "data.channels": self.channels,
            "tokenizer.patch_size": self.patch_size,
            "tokenizer.codebook_size": len(self.codes),
        }

    def save(self, folder: Path, origin: str = "k-means of patches") -> None:
        sizes = {"patch_size": self.patch_size, "channels": self.channels}
        folder_lib.write(folder, "patch_vq", sizes, {"codes": self.codes}, origin)


def abstract(sizes: options.Tokenizer, channels: int, dtype: str) -> PatchVQ:
    """Return a tokenizer with shapes in place of arrays. dtype: not used, always float32."""
    shape = (sizes.codebook_size, sizes.patch_size**2 * channels)
    codes: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    return PatchVQ(codes, sizes.patch_size, channels)


def load(folder: Path, dtype: str = "float32") -> PatchVQ:
    """Return a saved tokenizer; CheckpointError if it is damaged. dtype: see abstract."""
    if is_old(folder):
        return load_old(folder)
    sizes, params = folder_lib.read(folder)
    with folder_lib.reading(folder):
        codes = jnp.asarray(params["codes"])
        return checked(PatchVQ(codes, sizes["patch_size"], sizes["channels"]))


def checked(found: PatchVQ) -> PatchVQ:
    """Return a tokenizer; ValueError if its codes are not of its sizes."""
    if found.codes.shape[1:] != (found.patch_size**2 * found.channels,):
        raise ValueError("its sizes do not match the shape of its codes")
    return found


def is_old(folder: Path) -> bool:
    """Return whether a folder holds codes in the old format only."""
    return (folder / OLD_CODES).is_file() and not (folder / folder_lib.NOTE).is_file()


def load_old(folder: Path) -> PatchVQ:
    """Return a tokenizer saved in the old format; CheckpointError if it is damaged."""
    path = folder / OLD_CODES
    try:
        digest = read_json(folder / OLD_DIGEST)["sha256"]
        if sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError("its SHA-256 differs from the one noted when it was written")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if sum(member.file_size for member in stored.zip.infolist()) > MOST_BYTES:
                raise ValueError(f"its arrays have more than {MOST_BYTES:,} bytes")
            sizes = int(stored["patch_size"]), int(stored["channels"])
            return checked(PatchVQ(jnp.asarray(stored["codes"]), *sizes))
    except Exception as error:  # zipfile and NumPy raise anything
        raise folder_lib.damaged(path, str(error)) from error


def fit(
    image: np.ndarray, *, codebook_size: int, patch_size: int, steps: int, seed: int
) -> PatchVQ:
    """Fit codes to the patches of float images [n, S, S, C] with k-means, deterministically.

    ConfigError if there are fewer distinct patches than codes.
    """
    patches = layers.patchify(image, patch_size)
    patches = patches.reshape(-1, patches.shape[-1])
    codes = kmeans.fit(patches, codebook_size, steps=steps, seed=seed, images=len(image))
    return PatchVQ(codes, patch_size, image.shape[-1])
