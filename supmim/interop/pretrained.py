"""The encoder of another run, or of a published model, from which a new run starts."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from supmim import config as config_lib
from supmim import sharding
from supmim.config import Config, options
from supmim.errors import CheckpointError, ConfigError, counted
from supmim.interop.load import is_workdir
from supmim.interop.load import load as load_model
from supmim.models import layers
from supmim.runtime import hosts
from supmim.runtime.streams import printable
from supmim.storage import paths
from supmim.workdir.checkpoint import Checkpoints, evaluated, groups_of, newest_sound
from supmim.workdir.digests import DIGESTS
from supmim.workdir.files import read_config

MOST_NAMES = 5  # of a row


def find(config: Config) -> dict[str, Any]:
    """Return what config.init.model holds in the form of init.json.

    For a workdir it describes the newest checkpoint; `averaged` says whether averaged parameters
    are used. CheckpointError if there is no usable model, ConfigError for another kind of encoder.
    """
    workdir = paths.path(config.init.model)
    if not is_workdir(workdir):
        model = load_model(workdir)
        check_kind(model.config, config)
        print(fixed_positions(model.config, config), end="")
        return {"model": str(workdir), "sha256": model.sha256}
    stored = read_config(workdir)
    if stored.task == "tokenizer":
        raise CheckpointError(
            f"config.init.model={workdir} holds a tokenizer, which has no encoder to start from; "
            "to use the tokenizer, set config.tokenizer.path"
        )
    check_kind(stored, config)
    print(fixed_positions(stored, config), end="")
    newest = newest_sound(workdir, "config.init.model=")
    step = int(newest.name)
    return {
        "workdir": str(workdir),
        "step": step,
        "averaged": stored.optimizer.ema_decay > 0 and stored.optimizer.frozen != "encoder",
        "sha256": Checkpoints(newest.parent, print).digest(step),
    }


def check_kind(stored: Config, config: Config) -> None:
    """Raise ConfigError, which lists them, if options that change the parameters differ."""
    here, there = config_lib.flatten(config), config_lib.flatten(stored)
    for values in (here, there):  # the initial value of LayerScale changes no shape
        values["encoder.layer_scale"] = bool(values["encoder.layer_scale"])
    differ = [path for path in options.that_change("parameters") if here[path] != there[path]]
    if differ:
        lines = "".join(
            f"\n  config.{path}: {there[path]!r} there, {here[path]!r} here" for path in differ
        )
        given = config_lib.flatten(stored)
        flags = " ".join(f"--config.{path}={given[path]}" for path in differ)
        raise ConfigError(
            f"config.init.model={config.init.model} holds another kind of encoder:{lines}\n"
            f"To use its options: {flags}"
        )


def fixed_positions(stored: Config, config: Config) -> str:
    """Return a warning if the run's sin-cos positions are of another grid than the encoder's."""
    old, new = (one.encoder.position_grid or one.grid for one in (stored, config))
    if config.encoder.positions != "sincos2d" or old == new:
        return ""
    return (
        f"warning     the encoder was trained with sin-cos positions of {old} x {old} patches;\n"
        f"            here they are those of {new} x {new}. To resample the encoder's:\n"
        f"            --config.encoder.position_grid={old}\n"
    )


def load(origin: dict[str, Any], params: Any, mesh: Mesh) -> dict[str, Any]:
    """Return {"encoder": parameters} of another run, fitted to abstract `params`; print a table.

    origin: the return value of `find`.
    """
    stored, ignored = read(origin, mesh)
    expected = params["encoder"]
    names = stored.keys() & expected.keys()
    where = {name: jax.tree.map(lambda leaf: leaf.sharding, expected[name]) for name in names}
    fit = jax.jit(functools.partial(fitted, expected=expected), out_shardings=where)
    if hosts.is_first():
        print(printable(table(origin, stored, expected, ignored), keep="\n"))
    return {"encoder": fit(stored)}


def read(origin: dict[str, Any], mesh: Mesh) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the encoder's parameters as stored, on the mesh, and the names of other contents.

    CheckpointError if they are gone or changed since `find`: a run that still trains deletes older
    steps.
    """
    if "model" in origin:
        model = load_model(origin["model"])
        if model.sha256 != origin["sha256"]:
            raise CheckpointError(f"{origin['model']} was changed while the run started")
        params = jax.device_get(model.params["encoder"])
        placement = sharding.state_sharding({"encoder": params}, mesh)["encoder"]
        others = [name for name in model.params if name != "encoder"]
        return jax.device_put(params, placement), (*others, *model.ignored)

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, sharding.partition_spec(name, shape, mesh))

    path = paths.absolute(paths.path(origin["workdir"])) / "checkpoints" / str(origin["step"])
    try:
        others = tuple(group for group in groups_of(path) if group != "encoder")
        return evaluated(path, ("encoder",), place)["encoder"], others
    except Exception as error:  # the type that Orbax raises depends on which file is missing
        if (path / DIGESTS).is_file():
            raise
        raise CheckpointError(
            f"checkpoint {path} is no longer there: the run that wrote it is still training and "
            "keeps only its newest. Start again to use the newest, or wait until that run ends"
        ) from error


def fitted(stored: Any, expected: Any) -> Any:
    """Return stored parameters in the layout and with the grid and the groups of `expected`."""
    params = layers.unstack_blocks(stored)
    if "stack" in expected["blocks"]:
        params = layers.stack_blocks(params)
    if "positions" in expected:
        params["positions"] = layers.resample_positions(params["positions"], grid_of(expected))
    return {name: group for name, group in params.items() if name in expected}


def table(origin: dict[str, Any], stored: Any, expected: Any, ignored: Sequence[str]) -> str:
    """Return what became of each part of another encoder and of the new one, as lines.

    ignored: names of what its file holds besides the encoder.
    """
    title = f"encoder     of {origin.get('model') or origin['workdir']}"
    if "step" in origin:
        averaged = ", averaged parameters" if origin["averaged"] else ""
        title += f", step {origin['step']:,}{averaged}"
    taken = {name: stored[name] for name in stored.keys() & expected.keys()}
    resampled = ""
    if "positions" in expected and (old := grid_of(stored)) != (new := grid_of(expected)):
        resampled = f"positions, from {old} x {old} to {new} x {new}"
    leaves = jax.tree.leaves(taken)
    rows = {
        "loaded": counted(len(leaves), "array")
        + f", {sum(leaf.size for leaf in leaves):,} numbers",
        "resampled": resampled,
        "new": listed(expected.keys() - stored.keys()),
        "ignored": listed([*(stored.keys() - expected.keys()), *ignored]),
    }
    return "\n".join([title, *(f"  {name:<10}{what}" for name, what in rows.items() if what)])


def listed(names: Collection[str]) -> str:
    """Return some names, in order, and how many others there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(sorted(names)[:MOST_NAMES]) + more


def grid_of(encoder_params: Any) -> int:
    """Return the side of the grid of learned positions, in patches."""
    return round(encoder_params["positions"].shape[0] ** 0.5)
