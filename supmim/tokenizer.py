"""`supmim tokenizer`: a tokenizer folder, from published weights or by training."""

from pathlib import Path
from typing import Any

import jax

from supmim import config as config_lib
from supmim import evaluate, optimizer, sharding, tokenizers, train
from supmim.errors import ConfigError
from supmim.interop import maskgit
from supmim.runtime import hosts
from supmim.tasks.tokenizer import NETWORK
from supmim.tokenizers import folder as folder_lib
from supmim.tokenizers import vqgan

LISTED = 4  # tensors that are named of those left out


def train_one(config: Any, flags: Any) -> None:
    """`supmim train`, then WORKDIR/tokenizer and how to use it."""
    if config.task != "tokenizer":
        raise ConfigError(
            f"supmim tokenizer train takes a config of task=tokenizer, not {config.task}, e.g. "
            "--config=configs/tokenizer_cifar10.py; supmim train trains any"
        )
    train.run(config, flags, "tokenizer train")
    workdir = Path(flags.workdir)
    config = config_lib.debug(config) if flags.debug else config
    tokenizer, out = trained(config, workdir), workdir / "tokenizer"
    if hosts.is_first():
        tokenizer.save(out, f"trained in {workdir.name}")
        _tell(tokenizer, out, "written")


def trained(config: Any, workdir: Path) -> vqgan.VQGAN:
    """What the newest checkpoint of a run holds, averaged parameters where there are any."""
    mesh = train.mesh_of(config)
    with jax.set_mesh(mesh):
        state = evaluate.restored(evaluate.of_run(config, config), workdir, "", mesh).state
        everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
        found = optimizer.evaluated_params(state)
        params = everywhere({name: found[name] for name in NETWORK})
    return tokenizers.abstract(config).replace(params=jax.device_get(params))


def import_weights(_: Any, flags: Any) -> None:
    """Reads a public file, writes the tokenizer, says what it is and how to use it."""
    source, out = Path(flags["from"].value), Path(flags.out)
    imported = maskgit.read(source)
    tokenizer = imported.tokenizer
    try:
        written = write(tokenizer, out, f"{source.name}, {imported.layout}")
    except OSError as error:
        raise ConfigError(
            f"cannot write to --out={out}: {error.strerror}; choose another --out"
        ) from error
    print(f"read        {source}: {imported.layout}")
    if left := imported.left_out:
        named = ", ".join(left[:LISTED]) + (", ..." if len(left) > LISTED else "")
        print(f"left out    {len(left)} tensors that only its training needs: {named}")
    _tell(tokenizer, out, "written" if written else "unchanged")


def _tell(tokenizer: vqgan.VQGAN, out: Path, done: str) -> None:
    """What a folder holds now, and the flags that train with it."""
    for line in described(tokenizer):
        print(line)
    print(f"{done:<11} {out}")
    print(f"fingerprint {tokenizer.fingerprint()}")
    print("\nTrain with it:")
    for flag in flags_of(tokenizer, out):
        print(f"  {flag}")


def write(tokenizer: vqgan.VQGAN, out: Path, origin: str) -> bool:
    """Saves a tokenizer unless `out` holds the very same; ConfigError if it holds anything else."""
    if out.is_dir() and (out / folder_lib.NOTE).is_file():
        held = tokenizers.TOKENIZERS[tokenizers.kind_of(out)].load(out)
        if held.fingerprint() == tokenizer.fingerprint():
            return False
        raise ConfigError(f"--out={out} holds another tokenizer; choose another folder")
    parts = {folder_lib.WEIGHTS, folder_lib.WEIGHTS + ".part"}  # of an import that was killed
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= parts):
        raise ConfigError(f"--out={out} is no empty folder; choose a new one")
    tokenizer.save(out, origin)
    return True


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
