"""Description of a tokenizer folder, with the flags that train with it."""

from pathlib import Path

import jax

from supmim.errors import counted
from supmim.tokenizers import vqgan


def print_folder(tokenizer: vqgan.VQGAN, out: Path, done: str) -> None:
    """Print kind, sizes and parameters of a tokenizer, its folder and the flags that use it.

    done: what happened to the folder, such as "written".
    """
    network, params = tokenizer.network, tokenizer.params
    levels = " ".join(map(str, network.channel_multipliers))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    print(
        f"tokenizer   {network.kind}: {counted(network.channels, 'channel')} in, "
        f"{counted(network.filters, 'filter')} x {levels}, "
        f"{counted(network.num_res_blocks, 'block')} a level\n"
        f"codes       {network.codebook_size} of {counted(network.embedding_dim, 'value')}, one "
        f"for {network.stride} x {network.stride} pixels\n"
        f"parameters  {sum(counts.values()) / 1e6:.2f} million"
    )
    for name, count in counts.items():
        print(f"            {name} {count / 1e6:.2f}")
    print(f"{done:<11} {out}")
    print(f"fingerprint {tokenizer.fingerprint()}")
    print("\nTrain with it:")
    for name, value in (tokenizer.options() | {"tokenizer.path": out}).items():
        print(f"  --config.{name}={value}")
