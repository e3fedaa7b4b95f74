"""`supmim tokenizer train`: train a tokenizer as any run trains, then write its folder."""

import dataclasses
from pathlib import Path
from typing import cast

import jax
from absl.flags import FlagValues

from supmim import assemble, optimizer, sharding, tokenizers
from supmim import config as config_lib
from supmim.commands import evaluate
from supmim.commands import train as train_command
from supmim.config import Config
from supmim.errors import ConfigError
from supmim.report import tokenizer as report
from supmim.runtime import hosts
from supmim.storage import paths
from supmim.tasks.tokenizer import NETWORK
from supmim.tokenizers import vqgan


def run(config: Config, flags: FlagValues) -> None:
    """Train, then write WORKDIR/tokenizer and print how to use it."""
    if config.task != "tokenizer":
        raise ConfigError(
            f"supmim tokenizer train takes a config of task=tokenizer, not {config.task}, e.g. "
            "--config=tokenizer_cifar10; supmim train takes a config of any task"
        )
    train_command.run(config, flags, "tokenizer train")
    workdir = paths.path(flags.workdir)
    config = config_lib.debug(config) if flags.debug else config
    tokenizer, out = load_trained(config, workdir), workdir / "tokenizer"
    if hosts.is_first():
        tokenizer.save(out, f"trained in {workdir.name}")
        report.print_folder(tokenizer, out, "written")


def load_trained(config: Config, workdir: Path) -> vqgan.VQGAN:
    """Return the tokenizer of the newest checkpoint, with averaged parameters if there are any."""
    mesh = assemble.mesh_of(config)
    with jax.set_mesh(mesh):
        state = evaluate.restore(evaluate.model_config(config, config), workdir, "", mesh).state
        everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
        found = optimizer.evaluated_params(state)
        params = everywhere({name: found[name] for name in NETWORK})
    tokenizer = cast(vqgan.VQGAN, tokenizers.abstract(config))  # the only kind that is trained
    return dataclasses.replace(tokenizer, params=jax.device_get(params))
