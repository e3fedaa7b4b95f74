"""`supmim draw`: what a trained decoder fills in, and how the encoder groups patches, as pictures.

Shapes: n images, S side, C channels, N patches.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FlagValues

from supmim import config as config_lib
from supmim import tokenizers
from supmim.config import Config
from supmim.data import data_identity, images
from supmim.data.augment import views
from supmim.data.sources import given
from supmim.data.sources.base import Source, evenly
from supmim.errors import ConfigError, DataError, counted
from supmim.evaluators import maps
from supmim.interop import load
from supmim.masking import num_hidden
from supmim.model import Model
from supmim.report import decoded, patches, reconstructions
from supmim.runtime import devices
from supmim.runtime.streams import printable
from supmim.storage import paths
from supmim.target_ids import identity
from supmim.tasks.supmim import SupMIM
from supmim.workdir import files
from supmim.workdir.checkpoint import Checkpoints, evaluated, newest_sound

MOST = 8  # images of a picture
FILLED_IN, PATCHES = "filled_in.png", "patches.png"


def run(_: Config | None, flags: FlagValues) -> None:
    """Draw images evenly taken from the source into --out, and print which they are."""
    devices.check()
    workdir, out = paths.path(flags.model), Path(flags.out)
    model = load.load(workdir)
    ratios = parsed(flags.ratios, model.config)
    if ratios and not model.config.has_decoder:
        why = "it was trained without a decoder"
        if not (workdir / "checkpoints").is_dir():
            why = "only the workdir of a run holds one"
        raise ConfigError(
            f"{model.name} has no decoder to fill in patches: {why}. To draw the components of "
            "its patches alone, add --ratios="
        )
    source = given.find(flags.images, model.config.data)
    batch = read(model.config, source)
    files.make_folder(out, "--out")
    if ratios:
        decoded.draw(out / FILLED_IN, filled_in(model.config, workdir, batch, ratios))
        print(f"picture     {out / FILLED_IN}")
    patches.draw(out / PATCHES, image=batch["image"], colours=colours(model, batch["image"]))
    print(f"picture     {out / PATCHES}")


def parsed(text: str, config: Config) -> tuple[float, ...]:
    """Return the ratios of a text such as 0.25,0.5; ConfigError unless each hides some patches."""
    try:
        ratios = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--ratios={text} is not a list of numbers, e.g. 0.25,0.5") from error
    unit = config.mim.unit if config.mim.masking == "units" else 1
    for ratio in ratios:
        if not 0 < ratio < 1 or not 0 < num_hidden(config.grid**2, ratio, unit) < config.grid**2:
            patches = counted(config.grid**2, "patch")
            raise ConfigError(f"--ratios={text}: {ratio:g} would hide none or all of {patches}")
    return ratios


def read(config: Config, source: Source) -> dict[str, np.ndarray]:
    """Return `image` uint8 [n, S, S, C] and what else the task needs; print their names.

    DataError if no image can be read.
    """
    second = images.second_of(config)._replace(made=config.has_tokenizer)
    index = evenly(len(source), MOST).astype(np.int32)
    batch, bad = images.evaluation(source, config.data, second).take(index, np.zeros_like(index))
    for row, number in enumerate(index):
        told = f": {bad[row].why}, left out" if row in bad else ""
        print(printable(f"image       {source.name_of(int(number))}{told}"))
    kept = [row for row in range(len(index)) if row not in bad]
    if not kept:
        raise DataError(f"{source.name}: none of {counted(len(index), 'chosen image')} can be read")
    batch |= {"index": index, "epoch": np.zeros_like(index)}
    return {name: values[kept] for name, values in batch.items()}


def filled_in(
    config: Config, workdir: Path, batch: dict[str, Any], ratios: tuple[float, ...]
) -> dict[str, np.ndarray]:
    """Return rows of pictures, title -> [n, side, side, C] in [0, 1], of the newest checkpoint."""
    newest = newest_sound(workdir)
    params = evaluated(newest, ("encoder", "classifier", "decoder"))
    trained = Checkpoints(newest.parent, print).note(int(newest.name))["fingerprint"]
    frozen = tokenizer_of(config, workdir, trained)
    original = batch["image"] / np.float32(255)
    rows, last = {"original": original}, {}
    for ratio in ratios:
        task = SupMIM(hiding(config, ratio), frozen)
        out = jax.device_get(jax.jit(task.pictures)(params, frozen, batch))
        (title, filled), *last = ((k.replace("\n", " "), x) for k, x in out["pictures"].items())
        hidden = f"{100 * out['mask'].mean():.0f} % hidden"
        rows[hidden] = reconstructions.masked(original, out["mask"], config.encoder.patch_size)
        rows[f"{hidden}, {title}"] = filled
    return rows | dict(last)


def tokenizer_of(
    config: Config, workdir: Path, trained: dict[str, Any]
) -> tokenizers.Tokenizer | None:
    """Return the tokenizer of a run, None without one. trained: the fingerprint of a checkpoint.

    CheckpointError if it is gone or damaged, DataError if it is not the one of the training.
    """
    if not config.has_tokenizer:
        return None
    folder, config = workdir / "tokenizer", identity.with_tokenizer(config)
    found = tokenizers.stored(config, folder)
    data_identity.check({"tokenizer": trained["tokenizer"]}, {"tokenizer": found.fingerprint()})
    return found


def hiding(config: Config, ratio: float) -> Config:
    """Return the config of a run with another share of hidden patches, in evaluation."""
    mim: dict[str, Any] = {"mim.mask_ratio": ratio}
    if config.mim.masking == "variable":  # the drawn ratio, from a narrow range
        least = min(ratio, config.mim.mask_ratio)
        mim = {"mim.mask_ratio": least, "mim.ratio_mean": ratio, "mim.ratio_std": 1e-6}
    plain = {"encoder.attention": "xla", "encoder.remat": "none"}
    return config_lib.replaced(config, mim | plain)


def colours(model: Model, image: np.ndarray) -> np.ndarray:
    """Return the components of patches of images uint8 [n, S, S, C]: [n, grid, grid, 3]."""
    network_input = views.to_input(views.to_float(jnp.asarray(image)))
    tokens = np.asarray(jax.jit(model.apply)(model.params, network_input).patch_features)
    flat = tokens.reshape(len(tokens), -1, tokens.shape[-1])
    return maps.patch_colours(flat).reshape(*tokens.shape[:3], 3)
