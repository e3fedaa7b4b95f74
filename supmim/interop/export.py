"""Write a model for other programs: a timm folder, big_vision's npz, or StableHLO.

Each is a folder with the encoder and its head alone, the names of the classes, the preprocessing
and a card. It is read back and compared before it counts as written.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors.numpy import save_file

from supmim.errors import CheckpointError, ConfigError
from supmim.interop import big_vision, card, load, timm
from supmim.interop.vit import Params
from supmim.model import Model
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.workdir import files
from supmim.workdir import model as model_json

TOLERANCE = 1e-4  # of embeddings and logits read back, as a share of the largest
NUM_TRIED = 4
STABLEHLO = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


class Written(NamedTuple):
    """An exported folder. difference: the largest of embeddings and logits, relative."""

    folder: Path
    sha256: str
    difference: float
    usage: str


def export(model: Model, to: str, out: Path, results: dict[str, float]) -> Written:
    """Write a folder that does not exist yet; results: for the card.

    ConfigError for what the format cannot store; CheckpointError if what was written, read back,
    computes something else. Then no folder is left.
    """
    if to not in WRITERS:
        raise ConfigError(f"--to={to} is not one of {', '.join(WRITERS)}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out={out} is not an empty folder; name a new one")
    exact, out = model.in_float32(), paths.absolute(out)
    with _part_of(out) as part:
        weights = WRITERS[to](exact, part)
        difference = compared(exact, read_back(to, part))
        digest = hashlib.sha256((part / weights).read_bytes()).hexdigest()
        in_card = USAGE[to].format(out=out.name)  # it may be moved, or given to others
        usage = in_card if on_bucket(out) else USAGE[to].format(out=out)
        text = card.write(model, results, f"{weights}: SHA-256 {digest}", in_card)
        (part / "README.md").write_text(text, encoding="utf-8")
        if on_bucket(out):
            paths.upload(part, out)
        elif out.exists():  # it may be a mount, or the folder you are in
            for file in sorted(part.iterdir()):
                shutil.move(file, out)
        else:
            os.replace(part, out)
    return Written(out, digest, difference, usage)


@contextlib.contextmanager
def _part_of(out: Path) -> Iterator[Path]:
    """Yield an empty local folder for the files that go to `out`; it is deleted at the end."""
    if on_bucket(out):
        part = Path(tempfile.mkdtemp(prefix="supmim-")) / out.name
    else:
        part = out.with_name(out.name + ".part")
    paths.delete(part)
    try:
        files.make_folder(part, "--out")
        yield part
    finally:
        paths.delete(part.parent if on_bucket(out) else part)


def params_of(model: Model) -> Params:
    """Return what is exported: the encoder and its head, with positions, in float32."""
    params = jax.device_get(model.params)
    params["encoder"]["positions"] = np.asarray(model.positions(), np.float32)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}


def write_timm(model: Model, folder: Path) -> str:
    """Write config.json and model.safetensors; ConfigError for a representation layer."""
    if model.config.classifier.rep_size and model.class_names:
        raise ConfigError(
            "timm has no place for the layer before the head (config.classifier.rep_size="
            f"{model.config.classifier.rep_size}); use --to=big_vision or --to=stablehlo"
        )
    tensors = timm.tensors_of(params_of(model), model.config.encoder.patch_size)
    save_file(tensors, folder / timm.WEIGHTS, metadata={"format": "pt"})
    config = timm.config_of(model.config, model.class_names, card.licence_of(model))
    (folder / timm.CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return timm.WEIGHTS


def write_big_vision(model: Model, folder: Path) -> str:
    """Write model.npz, and model.json with what an npz cannot store."""
    if model.config.encoder.gelu != "tanh":
        raise ConfigError("big_vision's ViT has the GELU by tanh, not the exact one; use --to=timm")
    tensors = big_vision.tensors_of(params_of(model), model.config.encoder.patch_size)
    np.savez(folder / big_vision.WEIGHTS, **cast(dict[str, Any], tensors))
    model_json.write(folder, model_json.of(model.config, model.class_names))
    return big_vision.WEIGHTS


def write_stablehlo(model: Model, folder: Path) -> str:
    """Write a program for any number of preprocessed images, with its parameters inside."""
    data, (n,) = model.config.data, jax_export.symbolic_shape("n")
    shape = (n, data.image_size, data.image_size, data.channels)
    params = jax.device_get(model.params)
    program = jax.jit(lambda image: tuple(x for x in model.apply(params, image) if x is not None))
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax_export.export(program, platforms=PLATFORMS)(image)
    (folder / STABLEHLO).write_bytes(exported.serialize())
    model_json.write(folder, model_json.of(model.config, model.class_names))
    return STABLEHLO


def read_stablehlo(folder: Path) -> Callable[[Any], Any]:
    """Return the program of a folder: images -> embedding, patch features and any logits."""
    return jax_export.deserialize(bytearray((folder / STABLEHLO).read_bytes())).call


def compared(model: Model, other: Callable[[Any], Any]) -> float:
    """Return the largest difference of embeddings and logits, as a share of the largest value.

    CheckpointError if it exceeds TOLERANCE.
    """
    data = model.config.data
    shape = (NUM_TRIED, data.image_size, data.image_size, data.channels)
    image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    ours = [x for x in jax.jit(model.apply)(model.params, image) if x is not None]
    theirs = [x for x in other(image) if x is not None]
    pairs = [tuple(map(np.asarray, pair)) for pair in zip(ours, theirs, strict=True)]
    tiny = np.finfo(np.float32).tiny  # a head that was never trained returns 0
    shares = [np.abs(a - b).max() / max(np.abs(a).max(), tiny) for a, b in pairs]
    worst = float(np.max(shares))  # NaN if any is
    if not worst <= TOLERANCE:
        raise CheckpointError(f"the exported model computes something else: off by {worst:.2g}")
    return worst


WRITERS = {"timm": write_timm, "big_vision": write_big_vision, "stablehlo": write_stablehlo}
USAGE = {
    "timm": """\
import timm  # transformers: AutoModelForImageClassification.from_pretrained("{out}")
model = timm.create_model("local-dir:{out}", pretrained=True).eval()
logits = model(images)  # float32 [n, C, S, S]; timm.data.create_transform makes them""",
    "big_vision": """\
import supmim
model = supmim.load("{out}")
embeddings = model.embed(["image.jpg"])  # big_vision reads {out}/model.npz itself""",
    "stablehlo": """\
from jax import export
program = export.deserialize(bytearray(open("{out}/model.stablehlo", "rb").read()))
outputs = program.call(images)  # float32 [n, S, S, C]: embedding, patch features, logits""",
}


def read_back(to: str, folder: Path) -> Callable[[Any], Any]:
    """Return what a written folder computes: preprocessed images -> the outputs of Model.apply."""
    if to == "stablehlo":
        return read_stablehlo(folder)
    model = load.load(folder)
    return functools.partial(jax.jit(model.apply), model.params)
