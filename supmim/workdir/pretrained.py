"""The encoder of another run, from which a new run starts."""

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
    """Return the newest checkpoint of config.init.workdir in the form of init.json.

    `averaged` in it says whether averaged parameters are used. CheckpointError if there is no
    usable checkpoint, ConfigError if its encoder is of another kind.
    """
    workdir = Path(config.init.workdir)
    if not (workdir / "config.json").is_file():
        raise CheckpointError(f"config.init.workdir={workdir} holds no run (it has no config.json)")
    stored = read_config(workdir)
    if stored.task == "tokenizer":
        raise CheckpointError(
            f"config.init.workdir={workdir} holds a tokenizer, which has no encoder to start from; "
            "to use the tokenizer, set config.tokenizer.path"
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
            f"damaged: {problem}. To set it aside: supmim evaluate --workdir={workdir}"
        )
    return {
        "workdir": str(workdir),
        "step": steps[-1],
        "averaged": stored.optimizer.ema_decay > 0 and stored.optimizer.frozen != "encoder",
        "sha256": checkpoints.digest(steps[-1]),
    }


def check_kind(stored: Config, config: Config) -> None:
    """Raise ConfigError, which lists them, if options that change the parameters differ."""
    here, there = config_lib.flatten(config), config_lib.flatten(stored)
    differ = [path for path in options.that_change("parameters") if here[path] != there[path]]
    if differ:
        lines = "".join(
            f"\n  config.{path}: {there[path]!r} there, {here[path]!r} here" for path in differ
        )
        flags = " ".join(f"--config.{path}={there[path]}" for path in differ)
        raise ConfigError(
            f"config.init.workdir={config.init.workdir} holds another kind of encoder:{lines}\n"
            f"To use the options of that run: {flags}"
        )


def load(origin: dict[str, Any], params: Any, mesh: Mesh) -> dict[str, Any]:
    """Return {"encoder": parameters} of another run, fitted to abstract `params`; print a line.

    origin: the return value of `find`.
    """
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
    """Return the encoder's parameters as they are stored, on the mesh.

    CheckpointError if they are gone since `find`: a run that still trains deletes older steps.
    """
    prefix = r"^.*/average/encoder/" if origin["averaged"] else "^params/encoder/"

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding | None:
        if not re.match(prefix, name):
            return None
        return NamedSharding(mesh, sharding.partition_spec(name, shape, mesh))

    path = Path(origin["workdir"]).absolute() / "checkpoints" / str(origin["step"])
    try:
        leaves = load_some(path, place)
    except Exception as error:  # the type that Orbax raises depends on which file is missing
        if (path / DIGESTS).is_file():
            raise
        raise CheckpointError(
            f"checkpoint {path} is no longer there: the run that wrote it is still training and "
            "keeps only its newest. Start again to use the newest, or wait until that run ends"
        ) from error
    named = {re.sub(prefix, "", name): leaf for name, leaf in leaves.items()}
    return traverse_util.unflatten_dict(named, sep="/")


def evaluated(path: Path, groups: tuple[str, ...]) -> dict[str, Any]:
    """Return groups of the parameters of a verified checkpoint, on one device.

    Averaged parameters take the place of the others where there are any.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    pattern = re.compile(rf"(params|.*/average)/((?:{'|'.join(groups)})/.*)")
    leaves = load_some(path, lambda name, _: device if pattern.fullmatch(name) else None)
    named = {}
    for name in sorted(leaves, reverse=True):  # params/..., then opt_state/.../average/...
        named[pattern.sub(r"\2", name)] = leaves[name]
    return traverse_util.unflatten_dict(named, sep="/")


def fitted(stored: Any, expected: Any) -> Any:
    """Return stored parameters in the layout and with the grid and the groups of `expected`."""
    params = layers.unstack_blocks(stored)
    if "stack" in expected["blocks"]:
        params = layers.stack_blocks(params)
    if "positions" in expected:
        params["positions"] = layers.resample_positions(params["positions"], grid_of(expected))
    return {name: group for name, group in params.items() if name in expected}


def changes(stored: Any, expected: Any) -> list[str]:
    """Return phrases for the parameters that are not used as they are stored."""
    phrases = []
    if "positions" in expected and (old := grid_of(stored)) != (new := grid_of(expected)):
        phrases.append(f"positions resampled from {old} x {old} to {new} x {new}")
    phrases += [f"its {name} is left out" for name in stored.keys() - expected.keys()]
    return phrases + [f"a new {name}" for name in expected.keys() - stored.keys()]


def grid_of(encoder_params: Any) -> int:
    """Return the side of the grid of learned positions, in patches."""
    return round(encoder_params["positions"].shape[0] ** 0.5)
