"""`supmim.load`: a model from a workdir, an exported or timm folder, or big_vision's npz."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from supmim import config as config_lib
from supmim import sharding
from supmim.config import Config, options
from supmim.errors import CheckpointError, ConfigError, counted
from supmim.interop import arrays, big_vision, timm, vit
from supmim.model import Model
from supmim.models import layers
from supmim.models.classifier import Classifier
from supmim.models.encoder import Encoder
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.workdir import model as model_json
from supmim.workdir.checkpoint import evaluated, newest_sound
from supmim.workdir.files import read_config, read_json

TAKES = (
    "give a workdir of supmim train, a folder of supmim export or of timm (config.json and "
    "model.safetensors), or big_vision's .npz"
)


def load(path: str | os.PathLike) -> Model:
    """Return the model of a workdir (newest checkpoint), of a timm folder, or of a big_vision npz.

    CheckpointError if there is none, if it is damaged, or if supmim does not have its network.
    """
    place = paths.path(path)
    if is_workdir(place):
        return from_workdir(place)
    if on_bucket(place):
        return from_bucket(place)
    if place.is_dir() and (place / timm.WEIGHTS).is_file():
        return from_timm(place)
    if place.is_dir() and (place / big_vision.WEIGHTS).is_file():
        return from_big_vision(place / big_vision.WEIGHTS)
    if place.is_file():
        return from_big_vision(place)
    if pickled := pickles(place):
        arrays.read(pickled[0])  # its error says how to convert it
    found = "holds no model" if place.exists() else "does not exist"
    raise CheckpointError(f"{place} {found}: {TAKES}")


def from_bucket(place: Path) -> Model:
    """Return the model of a file or folder in a bucket, which is copied first."""
    with paths.local_copy(place) as copy:
        try:
            model = load(copy)
        except CheckpointError as error:
            raise error.at(place) from error
    model.name = str(place)
    return model


@functools.lru_cache(maxsize=1)  # once for the config, once for the evaluation
def published(path: str | os.PathLike) -> Model:
    """Return the model of a path that is no workdir; ConfigError if it is one."""
    if is_workdir(paths.path(path)):
        raise ConfigError(f"{path} is the workdir of a run; evaluate it with --workdir={path}")
    return load(path)


def is_workdir(place: Path) -> bool:
    """Return whether a run of supmim began in the folder.

    A folder without checkpoints does not count if it has weights, or pretrained_cfg in its config.
    """
    config = place / "config.json"
    if not config.is_file() or (place / "checkpoints").is_dir():
        return config.is_file()
    weights = (place / timm.WEIGHTS).is_file() or pickles(place)
    return not weights and not timm.describes(config)


def pickles(folder: Path) -> list[Path]:
    """Return the files of a folder that are named like pickles."""
    return [path for end in arrays.PICKLE_SUFFIXES for path in sorted(folder.glob(f"*{end}"))]


def from_workdir(workdir: Path) -> Model:
    """Return the model of the newest checkpoint; averaged parameters where there are any.

    CheckpointError if there is none, or the run trains no encoder.
    """
    config = read_config(workdir)
    if config.task == "tokenizer":
        raise CheckpointError(f"{workdir} holds a tokenizer, which has no encoder")
    params = evaluated(newest_sound(workdir), ("encoder", "classifier"))
    if not config.classifies:  # it is as it began
        params.pop("classifier", None)
    about = model_json.read(workdir)
    num_classes = config.classifier.num_classes
    class_names = about.class_names if about else tuple(map(str, range(num_classes)))
    if "classifier" in params and len(class_names) != num_classes:
        raise CheckpointError(
            f"{workdir / model_json.FILE} names {counted(len(class_names), 'class')}, but the "
            f"model has {num_classes}: {model_json.ADVICE}"
        )
    params["encoder"].pop("mask_token", None)  # stands for hidden patches, in training only
    return Model(config, layers.unstack_blocks(params), class_names, str(workdir))


def from_timm(folder: Path) -> Model:
    """Return the model of config.json and model.safetensors."""
    path = folder / timm.CONFIG
    try:
        stored = read_json(path)
        tensors = arrays.read(folder / timm.WEIGHTS)
        config = checked(timm.options_of(tensors, stored))
        mean, std = timm.mean_and_std(stored, config.data.channels)
        tensors = timm.plain(tensors, config)
        names = timm.class_names_of(stored)
    except CheckpointError as error:
        raise error.at(folder) from error
    except Exception as error:  # what is raised depends on the damage
        raise CheckpointError(f"{path} is not the config.json of a timm model: {error}") from error
    loaded = vit.imported(tensors, timm.LAYOUT, shapes(config), folder)
    params = vit.for_our_pixels(whole(loaded, folder), config.data.channels, mean, std)
    return made(config, params, names, str(folder), loaded.ignored)


def from_big_vision(path: Path) -> Model:
    """Return the model of an npz; its classes are numbers unless model.json names them."""
    tensors = arrays.read(path)
    about = model_json.read(path.parent) if path.name == big_vision.WEIGHTS else None
    try:
        tensors = big_vision.plain(tensors)
        config = checked(big_vision.options_of(tensors))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; {TAKES}") from error
    except Exception as error:  # what is raised depends on the damage
        raise CheckpointError(f"{path} holds no ViT of big_vision: {error}") from error
    if about is not None:
        try:
            config = checked(as_told(config, about))
        except CheckpointError as error:
            raise CheckpointError(f"{path.parent / model_json.FILE}: {error}") from error
    loaded = vit.imported(tensors, big_vision.LAYOUT, shapes(config), path)
    names = about.class_names if about else ()
    return made(config, whole(loaded, path), names, str(path), loaded.ignored)


def checked(config: Config) -> Config:
    """Return the config of a file from elsewhere; CheckpointError if it breaks our limits."""
    try:
        return config_lib.validate(config_lib.flatten(config))
    except ConfigError as error:
        raise CheckpointError(f"supmim has no such network: {error}") from error


def as_told(config: Config, about: model_json.About) -> Config:
    """Return the config of an npz with the view and the loss of a model.json."""
    data = options.changed(
        config.data,
        image_size=about.size,
        eval_resize=about.resize,
        eval_view=about.view,
        interpolation=about.interpolation,
    )
    classifier = options.changed(config.classifier, loss=about.loss)
    return dataclasses.replace(config, data=data, classifier=classifier)


def whole(loaded: vit.Loaded, path: Path) -> vit.Params:
    """Return the parameters; CheckpointError if a part of head or pooling is missing."""
    if loaded.missing:
        raise CheckpointError(f"{path} lacks a part of its head or pooling: {loaded.missing[0]}")
    return loaded.params


def made(
    config: Config,
    params: vit.Params,
    class_names: tuple[str, ...],
    name: str,
    ignored: Sequence[str] = (),
) -> Model:
    """Return the model of flat parameters from elsewhere; without names, classes are numbers."""
    num_classes = config.classifier.num_classes
    if len(class_names) != num_classes:
        class_names = tuple(map(str, range(num_classes)))
    tree = flax.traverse_util.unflatten_dict(params, sep="/")
    return Model(config, tree, class_names, name, imported=True, ignored=ignored)


def shapes(config: Config) -> vit.Shapes:
    """Return the shapes of the parameters of a config's encoder and classifier, by flat name."""
    data, head = config.data, config.classifier
    side = data.image_size
    image = jax.ShapeDtypeStruct((1, side, side, data.channels), jnp.float32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    encoder = Encoder(config.encoder, config.grid)
    tree: dict[str, Any] = {"encoder": jax.eval_shape(encoder.init, rng, image)["params"]}
    if head.num_classes:
        classifier = Classifier(head.num_classes, rep_size=head.rep_size)
        embedding = jax.ShapeDtypeStruct((1, config.encoder.width), jnp.float32)
        tree["classifier"] = jax.eval_shape(classifier.init, rng, embedding)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(path): leaf.shape for path, leaf in leaves}
