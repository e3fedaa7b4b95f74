"""What a tokenizer folder holds, and the flags that train with it."""

from pathlib import Path

import jax

from supmim import tokenizers
from supmim.tokenizers import vqgan


def print_folder(tokenizer: vqgan.VQGAN, out: Path, done: str) -> None:
    """What a folder holds now, and the flags that train with it."""
    for line in described(tokenizer):
        print(line)
    print(f"{done:<11} {out}")
    print(f"fingerprint {tokenizer.fingerprint()}")
    print("\nTrain with it:")
    for flag in flags_of(tokenizer, out):
        print(f"  {flag}")


def described(tokenizer: vqgan.VQGAN) -> list[str]:
    """Kind, sizes and numbers of parameters, a line each."""
    network, params = tokenizer.network, tokenizer.params
    levels = " ".join(map(str, network.channel_multipliers))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    return [
        f"tokenizer   {network.kind}: {network.channels} channels in, {network.filters} filters x "
        f"{levels}, {network.num_res_blocks} blocks a level",
        f"codes       {network.codebook_size} of {network.embedding_dim} values, one for "
        f"{network.stride} x {network.stride} pixels",
        f"parameters  {sum(counts.values()) / 1e6:.2f} million",
        *(f"            {name} {count / 1e6:.2f}" for name, count in counts.items()),
    ]


def flags_of(tokenizer: tokenizers.Tokenizer, folder: Path) -> list[str]:
    """Flags that train with a tokenizer, from any preset: its folder, and all that it fixes."""
    options = tokenizer.options() | {"tokenizer.path": folder}
    return [f"--config.{name}={value}" for name, value in options.items()]
