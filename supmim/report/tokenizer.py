"""Description of a tokenizer folder, with the flags that train with it."""

from pathlib import Path

import jax

from supmim.errors import counted
from supmim.tokenizers import Tokenizer, vqgan
from supmim.tokenizers.feature_codes import FeatureCodes


def print_folder(tokenizer: Tokenizer, out: Path, done: str) -> None:
    """Print kind, sizes and parameters of a tokenizer, its folder and the flags that use it.

    done: what happened to the folder, such as "written".
    """
    print("\n".join(lines(tokenizer)))
    print(f"{done:<11} {out}")
    print(f"fingerprint {tokenizer.fingerprint()}")
    print("\nTrain with it:")
    for name, value in (tokenizer.options() | {"tokenizer.path": out}).items():
        print(f"  --config.{name}={value}")


def lines(tokenizer: Tokenizer) -> list[str]:
    """Return what a tokenizer is, how many codes of which size it has, and its parameters."""
    fixed = tokenizer.options()
    kind, channels = fixed["tokenizer.name"], counted(fixed["data.channels"], "channel")
    what, of, parts = f"{kind}: {channels} in", "pixels", {}
    if isinstance(tokenizer, vqgan.VQGAN):
        network, parts = tokenizer.network, dict(tokenizer.params)
        levels = " ".join(map(str, network.channel_multipliers))
        what += (
            f", {counted(network.filters, 'filter')} x {levels}, "
            f"{counted(network.num_res_blocks, 'block')} a level"
        )
        of = counted(network.embedding_dim, "value")
    elif isinstance(tokenizer, FeatureCodes):
        of = counted(len(tokenizer.params["mean"]), "feature")
        parts = {"network": tokenizer.params["network"]}
    side = fixed["tokenizer.patch_size"]
    size = fixed["tokenizer.codebook_size"]
    codes = f"{size} codes of {of}, each for {side} x {side} pixels"
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()
    }
    listed = [f"tokenizer   {what}", f"codes       {codes}"]
    if counts:
        listed.append(f"parameters  {sum(counts.values()) / 1e6:.2f} million")
        listed += [f"            {name} {count / 1e6:.2f}" for name, count in counts.items()]
    return listed
