"""MaskGIT's VQGAN (arXiv 2202.04200): a convolutional encoder, codes, and a decoder.

Modules are named as the parameters of the public Flax implementation, so that an import compares
names. Shapes: B batch, S image side, C channels, h w latent grid, D size of a code, K codes,
N tokens of an image, F features.
"""

import functools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from supmim.config import options
from supmim.errors import counted
from supmim.tokenizers import codes as codes_lib
from supmim.tokenizers import folder as folder_lib

NORM_EPSILON = 1e-6
codebook_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")

# With dtype bfloat16, only convolutions compute in bfloat16. Everything between them is float32:
# norms, swish, shortcuts, averages. So are the first and last convolution of an encoder: bfloat16
# would round bright 8-bit pixels by half a step, and latents where codes are close together. With
# trained weights, 99.0 % of the ids equal those of float32; 97.1 % do if everything is bfloat16.
GroupNorm = functools.partial(
    nn.GroupNorm, num_groups=options.NORM_GROUPS, epsilon=NORM_EPSILON, dtype="float32"
)
# "high", because TPUs round the operands to bfloat16 by default.
ExactConv = functools.partial(nn.Conv, dtype="float32", precision="high")

LARGEST = 2**31  # bound of the sizes that a file may state
FEW_BLOCKS = 64  # so many are quickly traced


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions with a shortcut: [B, h, w, F] -> [B, h, w, filters].

    If the number of channels changes, the shortcut is a 1x1 convolution of the block's own output,
    not of its input, as the weights of the public implementation require.
    """

    filters: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, self.filters, use_bias=False, dtype=self.dtype)
        norm = functools.partial(GroupNorm, num_groups=self.norm_groups)
        y = conv((3, 3))(nn.swish(norm()(x)))
        y = conv((3, 3))(nn.swish(norm()(y)))
        return y.astype("float32") + (x if x.shape[-1] == self.filters else conv((1, 1))(y))


class Encoder(nn.Module):
    """Images [B, S, S, C] in [0, 1] -> latents [B, h, w, D], float32.

    Every level but the last halves the side by averaging.
    """

    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    embedding_dim: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
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
    """The codebook [K, D]."""

    codebook_size: int
    embedding_dim: int

    def setup(self) -> None:
        shape = (self.codebook_size, self.embedding_dim)
        self.codebook = self.param("codebook", codebook_init, shape)


class Decoder(nn.Module):
    """Codes [B, h, w, D] -> images [B, S, S, C], float32, not clipped.

    Every level but the last doubles the side by repetition and a convolution.
    """

    filters: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    channels: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        widths = [self.filters * multiplier for multiplier in reversed(self.channel_multipliers)]
        x = nn.Conv(widths[0], (3, 3), dtype=self.dtype)(latents)
        for _ in range(self.num_res_blocks):
            x = ResBlock(widths[0], self.norm_groups, self.dtype)(x)
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                x = ResBlock(width, self.norm_groups, self.dtype)(x)
            if level < len(widths) - 1:
                x = nn.Conv(width, (3, 3), dtype=self.dtype)(upsample(x))
        x = nn.swish(GroupNorm(num_groups=self.norm_groups)(x))
        return nn.Conv(self.channels, (3, 3), dtype=self.dtype)(x).astype(jnp.float32)


class Network(nn.Module):
    """Encoder, quantizer and decoder for images of any side that the stride divides."""

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
        """The side of the square that one id stands for, in pixels."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that determine the shapes of the parameters, as JSON values."""
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
        """Return reconstructions [B, S, S, C] of images [B, S, S, C]."""
        return self.decode(self.codes(self.quantize(self.latents(image))))

    def latents(self, image: jax.Array) -> jax.Array:
        """Return latents [B, h, w, D], float32, of images [B, S, S, C] in [0, 1]."""
        return self.encoder(image)

    def quantize(self, latents: jax.Array) -> jax.Array:
        """Return the ids [B, h, w] of the codes nearest to latents [B, h, w, D]."""
        return codes_lib.nearest(latents, self.quantizer.codebook)

    def codes(self, ids: jax.Array) -> jax.Array:
        """Return the codes [..., D], float32, of ids [...]."""
        return jnp.asarray(self.quantizer.codebook)[ids]

    def decode(self, latents: jax.Array) -> jax.Array:
        """Return images [B, S, S, C], not clipped to [0, 1], of codes [B, h, w, D]."""
        return self.decoder(latents)


def upsample(x: jax.Array) -> jax.Array:
    """Repeat every pixel four times: [B, h, w, F] -> [B, 2h, 2w, F]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


@struct.dataclass
class VQGAN:
    """A tokenizer: a frozen network and its float32 parameters."""

    params: Any
    network: Network = struct.field(pytree_node=False)

    def encode(self, image: jax.Array) -> jax.Array:
        codes_lib.check_range(image)
        ids = self.apply("quantize", self.apply("latents", image))
        return ids.reshape(len(image), -1)

    def decode(self, ids: jax.Array) -> jax.Array:
        side = math.isqrt(ids.shape[1])
        latents = self.apply("codes", ids.reshape(len(ids), side, side))
        return self.apply("decode", latents).clip(0, 1)

    def apply(self, method: str, x: jax.Array) -> Any:
        """Run one of the network's methods."""
        return self.network.apply({"params": self.params}, x, method=method)

    def fingerprint(self) -> str:
        network = self.network
        return folder_lib.fingerprint(network.kind, network.sizes, network.dtype, self.params)

    def save(self, folder: Path, origin: str = "") -> None:
        folder_lib.write(folder, self.network.kind, self.network.sizes, self.params, origin)

    def options(self) -> dict[str, Any]:
        sizes = self.network.sizes
        return {
            "tokenizer.name": self.network.kind,
            "data.channels": sizes.pop("channels"),
            "tokenizer.patch_size": self.network.stride,
            "tokenizer.channel_multipliers": ",".join(map(str, sizes.pop("channel_multipliers"))),
            **{f"tokenizer.{name}": value for name, value in sizes.items()},
        }


def shapes(network: Network) -> Any:
    """Return the shapes of a network's parameters."""
    side = network.stride
    image = jax.ShapeDtypeStruct((1, side, side, network.channels), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def stored_shapes(network: Network, arrays: int) -> Any:
    """Return the shapes of the parameters of a network whose sizes come from a file.

    arrays: their number in the file. ValueError, without much work, for impossible sizes, such as
    those of a network that needs more arrays.
    """
    multipliers, blocks = network.channel_multipliers, network.num_res_blocks
    numbers = [*multipliers, *(n for n in network.sizes.values() if n != list(multipliers))]
    if not all(isinstance(n, int) and 0 < n < LARGEST for n in numbers):
        raise ValueError(f"its sizes are not whole numbers from 1 to {LARGEST - 1:,}")
    if len(multipliers) * blocks > max(arrays, FEW_BLOCKS):
        levels = counted(len(multipliers), "level")
        raise ValueError(
            f"{levels} of {counted(blocks, 'block')} need more than {counted(arrays, 'array')}"
        )
    if odd := [m for m in multipliers if network.filters * m % network.norm_groups]:
        raise ValueError(
            f"a level of {network.filters} x {odd[0]} channels does not divide into "
            f"{counted(network.norm_groups, 'group')}"
        )
    return shapes(network)


def abstract(
    sizes: options.Tokenizer, channels: int, dtype: str, network: type[Network] = Network
) -> VQGAN:
    """Return a tokenizer with shapes in place of arrays. sizes: config.tokenizer."""
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
    """Return a saved tokenizer; CheckpointError if it is damaged."""
    sizes, params = folder_lib.read(folder)
    with folder_lib.reading(folder):
        multipliers = tuple(sizes["channel_multipliers"])
        fields: dict[str, Any] = sizes | {"channel_multipliers": multipliers, "dtype": dtype}
        made = network(**fields)
        expected = jax.tree.map(np.shape, stored_shapes(made, len(jax.tree.leaves(params))))
        if expected != jax.tree.map(np.shape, params):
            raise ValueError("its sizes do not match the shapes of its weights")
    return VQGAN(jax.tree.map(jnp.asarray, params), made)
