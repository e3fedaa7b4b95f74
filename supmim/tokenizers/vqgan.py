"""MaskGIT's VQGAN (arXiv 2202.04200): a convolutional encoder, codes, and a decoder.

Modules carry the names that the public Flax implementation gives its parameters, so that an
import is a comparison. Shapes: B batch, S image side, C channels, h w latent grid, D size of a
code, K codes, N tokens of an image.
"""

import functools
import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct, traverse_util

from supmim.config import options
from supmim.tokenizers import codes as codes_lib
from supmim.tokenizers import folder as folder_lib

NORM_EPSILON = 1e-6
codebook_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")

# bfloat16 is what convolutions take and give. All between them is float32: norms, swish, shortcuts,
# averages. So are the convolutions at both ends of an encoder: bfloat16 would round bright 8-bit
# pixels by half a step, and latents where codes are near. On trained weights, 97.1 % of the ids
# are those of float32 where all is rounded, and 99.0 % so.
GroupNorm = functools.partial(
    nn.GroupNorm, num_groups=options.NORM_GROUPS, epsilon=NORM_EPSILON, dtype="float32"
)
# "high": by default TPUs would round the operands to bfloat16 again.
ExactConv = functools.partial(nn.Conv, dtype="float32", precision="high")


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    filters: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, F] -> [B, h, w, filters].

        Where the channels change, the shortcut's 1x1 convolution takes the block's own output, not
        its input, as in the public implementation: its weights work no other way.
        """
        conv = functools.partial(nn.Conv, self.filters, use_bias=False, dtype=self.dtype)
        norm = functools.partial(GroupNorm, num_groups=self.norm_groups)
        y = conv((3, 3))(nn.swish(norm()(x)))
        y = conv((3, 3))(nn.swish(norm()(y)))
        return y.astype("float32") + (x if x.shape[-1] == self.filters else conv((1, 1))(y))


class Encoder(nn.Module):
    """Image to latents; every level but the last halves the side by averaging."""

    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    embedding_dim: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, S, S, C] in [0, 1] -> [B, h, w, D], float32."""
        x = ExactConv(self.filters, (3, 3), use_bias=False)(image)
        for level, multiplier in enumerate(self.channel_multipliers):
            if level:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(self.num_res_blocks):
                x = ResBlock(self.filters * multiplier, self.norm_groups, self.dtype)(x)
        for _ in range(self.num_res_blocks):
            x = ResBlock(x.shape[-1], self.norm_groups, self.dtype)(x)
        x = nn.swish(GroupNorm(num_groups=self.norm_groups)(x))
        return ExactConv(self.embedding_dim, (1, 1))(x)


class Quantizer(nn.Module):
    """The codes."""

    codebook_size: int
    embedding_dim: int

    def setup(self) -> None:
        shape = (self.codebook_size, self.embedding_dim)
        self.codebook = self.param("codebook", codebook_init, shape)

    def quantize(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, D] -> [B, h, w], the nearest code of each, found in float32."""
        return codes_lib.nearest(latents, self.codebook)

    def codes(self, ids: jax.Array) -> jax.Array:
        """[...] -> [..., D], float32."""
        return jnp.asarray(self.codebook)[ids]


class Decoder(nn.Module):
    """Codes to image; every level but the last doubles the side by repetition and a convolution."""

    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    channels: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, D] -> [B, S, S, C], float32, not clipped."""
        widths = [self.filters * multiplier for multiplier in reversed(self.channel_multipliers)]
        x = nn.Conv(widths[0], (3, 3), dtype=self.dtype)(latents)
        for _ in range(self.num_res_blocks):
            x = ResBlock(widths[0], self.norm_groups, self.dtype)(x)
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                x = ResBlock(width, self.norm_groups, self.dtype)(x)
            if level < len(widths) - 1:
                x = nn.Conv(width, (3, 3), dtype=self.dtype)(double(x))
        x = nn.swish(GroupNorm(num_groups=self.norm_groups)(x))
        return nn.Conv(self.channels, (3, 3), dtype=self.dtype)(x).astype(jnp.float32)


class Network(nn.Module):
    """Encoder, quantizer and decoder; fully convolutional, so any side that the stride divides."""

    filters: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    embedding_dim: int = 256
    codebook_size: int = 1024
    channels: int = 3
    norm_groups: int = options.NORM_GROUPS
    dtype: str = "float32"

    kind = "vqgan"

    def setup(self) -> None:
        sizes = (self.filters, self.channel_multipliers, self.num_res_blocks)
        self.encoder = Encoder(*sizes, self.embedding_dim, self.norm_groups, self.dtype)
        self.quantizer = Quantizer(self.codebook_size, self.embedding_dim)
        self.decoder = Decoder(*sizes, self.channels, self.norm_groups, self.dtype)

    @property
    def stride(self) -> int:
        """Pixels, along a side, that one id stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def sizes(self) -> dict[str, Any]:
        """What fixes the shapes of the parameters, as JSON has it."""
        return {
            "filters": self.filters,
            "channel_multipliers": list(self.channel_multipliers),
            "num_res_blocks": self.num_res_blocks,
            "embedding_dim": self.embedding_dim,
            "codebook_size": self.codebook_size,
            "channels": self.channels,
            "norm_groups": self.norm_groups,
        }

    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, S, S, C] -> its reconstruction [B, S, S, C]."""
        return self.decode(self.codes(self.quantize(self.latents(image))))

    def latents(self, image: jax.Array) -> jax.Array:
        """[B, S, S, C] in [0, 1] -> [B, h, w, D], float32."""
        return self.encoder(image)

    def quantize(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, D] -> ids [B, h, w]."""
        return self.quantizer.quantize(latents)

    def codes(self, ids: jax.Array) -> jax.Array:
        """[...] -> [..., D]."""
        return self.quantizer.codes(ids)

    def decode(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, D] -> [B, S, S, C], about [0, 1] but not clipped."""
        return self.decoder(latents)


def double(x: jax.Array) -> jax.Array:
    """[B, h, w, F] -> [B, 2h, 2w, F], every pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


@struct.dataclass
class VQGAN:
    """A frozen network. params: {"encoder", "quantizer": {"codebook"}, "decoder"}, float32."""

    params: Any
    network: Network = struct.field(pytree_node=False)

    def encode(self, image: jax.Array) -> jax.Array:
        """[B, S, S, C] -> ids [B, N], rows first. DataError for values outside [0, 1]."""
        codes_lib.check_range(image)
        ids = self.apply("quantize", self.apply("latents", image))
        return ids.reshape(len(image), -1)

    def decode(self, ids: jax.Array) -> jax.Array:
        """[B, N] -> [B, S, S, C], clipped to [0, 1]."""
        side = math.isqrt(ids.shape[1])
        latents = self.apply("codes", ids.reshape(len(ids), side, side))
        return self.apply("decode", latents).clip(0, 1)

    def apply(self, method: str, x: jax.Array) -> jax.Array:
        """One of the network's methods."""
        return self.network.apply({"params": self.params}, x, method=method)

    def fingerprint(self) -> str:
        """SHA-256 of kind, sizes, compute dtype and parameters."""
        network, digest = self.network, sha256()
        digest.update(json.dumps([network.kind, network.sizes, network.dtype]).encode())
        for name, leaf in sorted(traverse_util.flatten_dict(self.params, sep="/").items()):
            digest.update(name.encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def save(self, folder: Path, origin: str = "") -> None:
        """Writes the folder; origin says where the weights came from."""
        folder_lib.write(folder, self.network.kind, self.network.sizes, self.params, origin)

    def options(self) -> dict[str, Any]:
        """The options of a config that this tokenizer fixes."""
        sizes = self.network.sizes
        return {
            "tokenizer.name": self.network.kind,
            "data.channels": sizes.pop("channels"),
            "tokenizer.patch_size": self.network.stride,
            "tokenizer.channel_multipliers": ",".join(map(str, sizes.pop("channel_multipliers"))),
            **{f"tokenizer.{name}": value for name, value in sizes.items()},
        }


def shapes(network: Network) -> Any:
    """The parameters of a network as shapes."""
    side = network.stride
    image = jax.ShapeDtypeStruct((1, side, side, network.channels), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def abstract(
    sizes: Any, channels: int, dtype: str = "float32", network: type[Network] = Network
) -> VQGAN:
    """A tokenizer of shapes only. sizes: config.tokenizer."""
    made = network(
        filters=sizes.filters,
        channel_multipliers=options.multipliers(sizes.channel_multipliers),
        num_res_blocks=sizes.num_res_blocks,
        embedding_dim=sizes.embedding_dim,
        codebook_size=sizes.codebook_size,
        channels=channels,
        norm_groups=sizes.norm_groups,
        dtype=dtype,
    )
    return VQGAN(shapes(made), made)


def load(folder: Path, dtype: str = "float32", network: type[Network] = Network) -> VQGAN:
    """Reads a saved tokenizer; CheckpointError if it is not what was written."""
    sizes, params = folder_lib.read(folder)
    try:
        multipliers = tuple(sizes["channel_multipliers"])
        made = network(**sizes | {"channel_multipliers": multipliers}, dtype=dtype)
        expected = jax.tree.map(np.shape, shapes(made))
        if expected != jax.tree.map(np.shape, params):
            raise ValueError("its sizes are not those of its weights")
    except (KeyError, TypeError, ValueError) as error:
        raise folder_lib.damaged(folder / folder_lib.NOTE, repr(error)) from error
    return VQGAN(jax.tree.map(jnp.asarray, params), made)
