"""The encoder of another run, for a new one to begin with."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from supmim import config as config_lib
from supmim import sharding
from supmim.config import Config, options
from supmim.errors import CheckpointError, ConfigError
from supmim.models import layers
from supmim.runtime import hosts
from supmim.workdir.checkpoint import DIGESTS, Checkpoints, damage, load_some
from supmim.workdir.files import read_config


def find(config: Config) -> dict[str, Any]:
    """The newest checkpoint of config.init.workdir, with its digest, as init.json notes it.

    averaged: whether averaged parameters are taken. CheckpointError if there is none that can be
    used, ConfigError if its encoder is of another kind.
    """
    workdir = Path(config.init.workdir)
    if not (workdir / "config.json").is_file():
        raise CheckpointError(f"config.init.workdir={workdir} holds no run (no config.json)")
    stored = read_config(workdir)
    if stored.task == "tokenizer":
        raise CheckpointError(
            f"config.init.workdir={workdir} holds a tokenizer, which has no encoder to begin with; "
            "what uses it is config.tokenizer.path"
        )
    check_kind(stored, config)
    checkpoints = Checkpoints(workdir / "checkpoints", print)
    if not (steps := checkpoints.steps()):
        raise CheckpointError(
            f"config.init.workdir={workdir} has no checkpoint yet; train it with: supmim train "
            f"--workdir={workdir}"
        )
    if problem := damage(checkpoints.folder / str(steps[-1])):
        raise CheckpointError(
            f"the newest checkpoint of config.init.workdir={workdir}, step {steps[-1]}, is "
            f"damaged: {problem}. supmim evaluate --workdir={workdir} sets it aside"
        )
    return {
        "workdir": str(workdir),
        "step": steps[-1],
        "averaged": stored.optimizer.ema_decay > 0 and stored.optimizer.frozen != "encoder",
        "sha256": checkpoints.digest(steps[-1]),
    }


def check_kind(stored: Config, config: Config) -> None:
    """ConfigError, naming all of them, if options differ that change what parameters mean."""
    here, there = config_lib.flatten(config), config_lib.flatten(stored)
    differ = {
        path: (here[path], there[path])
        for path in options.that_change("parameters")
        if here[path] != there[path]
    }
    if differ:
        lines = "".join(f"\n  config.{name}: {theirs!r} there, {ours!r} here"
                        for name, (ours, theirs) in differ.items())  # fmt: skip
        flags = " ".join(f"--config.{name}={theirs}" for name, (_, theirs) in differ.items())
        raise ConfigError(
            f"config.init.workdir={config.init.workdir} holds another encoder:{lines}\n"
            f"Take its own: {flags}"
        )


def load(origin: dict[str, Any], params: Any, mesh: Mesh) -> dict[str, Any]:
    """{"encoder": what `find` found}, as the encoder of abstract `params` takes it; says so."""
    stored, expected = read(origin, mesh), params["encoder"]
    names = stored.keys() & expected.keys()
    where = {name: jax.tree.map(lambda leaf: leaf.sharding, expected[name]) for name in names}
    fit = jax.jit(functools.partial(fitted, expected=expected), out_shardings=where)
    if hosts.is_first():
        averaged = ", averaged parameters" if origin["averaged"] else ""
        kind = f"encoder     of {origin['workdir']}, step {origin['step']:,}{averaged}"
        print("; ".join([kind, *changes(stored, expected)]))
    return {"encoder": fit(stored)}


def read(origin: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The encoder's parameters as they are stored, on the mesh.

    CheckpointError if they are gone since `find`: a run that still trains deletes its older steps.
    """
    prefix = r"^.*/average/encoder/" if origin["averaged"] else "^params/encoder/"

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding | None:
        if not re.match(prefix, name):
            return None
        return NamedSharding(mesh, sharding.partition_spec(name, shape, mesh))

    path = Path(origin["workdir"]).absolute() / "checkpoints" / str(origin["step"])
    try:
        leaves = load_some(path, place)
    except Exception as error:  # Orbax raises what the missing file makes of its reader
        if (path / DIGESTS).is_file():
            raise
        raise CheckpointError(
            f"checkpoint {path} is no longer there: the run that wrote it goes on and keeps "
            "its newest alone. Start again, which takes the newest, or let that run end before"
        ) from error
    named = {re.sub(prefix, "", name): leaf for name, leaf in leaves.items()}
    return nested(named)


def fitted(stored: Any, expected: Any) -> Any:
    """Blocks stacked or not, positions of the grid, and nothing that is not wanted."""
    params = layers.unstack_blocks(stored)
    if "stack" in expected["blocks"]:
        params = layers.stack_blocks(params)
    if "positions" in expected:
        grid = grid_of(expected)
        params["positions"] = layers.resample_positions(params["positions"], grid)
    return {name: group for name, group in params.items() if name in expected}


def changes(stored: Any, expected: Any) -> list[str]:
    """What of the stored parameters is not taken as it is."""
    told = []
    if "positions" in expected and (old := grid_of(stored)) != (new := grid_of(expected)):
        told.append(f"positions resampled from {old} x {old} to {new} x {new}")
    told += [f"its {name} is left out" for name in stored.keys() - expected.keys()]
    return told + [f"a new {name}" for name in expected.keys() - stored.keys()]


def grid_of(encoder: Any) -> int:
    """Side of the grid that learned positions are of."""
    return round(encoder["positions"].shape[0] ** 0.5)


def nested(named: dict[str, Any]) -> dict[str, Any]:
    """`blocks/block_0/...` -> leaf, as a tree."""
    return traverse_util.unflatten_dict(named, sep="/")
