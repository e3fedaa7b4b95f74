"""model.json: what the outputs of a run's model mean, and what images it takes.

config.json says how the model is built and trained. This says what follows from it and from the
data, for users who have neither.
"""

import dataclasses
from pathlib import Path
from typing import Any

from supmim.config import Config
from supmim.data import images
from supmim.data.augment import views
from supmim.errors import CheckpointError
from supmim.workdir.files import read_object, read_origin, write_json

FILE = "model.json"
ADVICE = "restore it from a copy, or delete it to go on with classes whose numbers have no names"


@dataclasses.dataclass(frozen=True)
class About:
    """What the outputs of a model mean, and what images it takes.

    class_names: in the order of the logits; empty without classes. view, resize, size: the central
    crop, see data.crop.CentralCrop, resized by `interpolation`, antialiased, in uint8. mean, std:
    of each channel; a pixel in [0, 1] becomes (pixel - mean) / std. loss: options.Classifier.loss,
    which says how logits become probabilities.
    """

    class_names: tuple[str, ...]
    channels: int
    view: str
    resize: int
    size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss: str = "softmax"


def of(config: Config, class_names: tuple[str, ...]) -> About:
    """Return what the model of a config takes and what its outputs mean, given its classes."""
    data, encodes = config.data, config.task != "tokenizer"
    mean, std = (views.MEAN, views.STD) if encodes else (0.0, 1.0)
    return About(
        class_names=class_names if config.facts.has_labels else (),
        channels=data.channels,
        interpolation=data.interpolation,
        mean=(mean,) * data.channels,
        std=(std,) * data.channels,
        loss=config.classifier.loss,
        **vars(images.central_crop(data)),
    )


def write(workdir: Path, about: About) -> None:
    """Write the model.json of a workdir atomically."""
    write_json(workdir / FILE, vars(about))


def read(workdir: Path) -> About | None:
    """Return the model.json of a workdir; None if there is none.

    CheckpointError if it is damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        return None
    stored = read_object(path, ADVICE)
    values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    try:
        about = About(**values)
        "".join(about.class_names)  # TypeError unless all are names
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged ({error}): {ADVICE}") from error
    return about


def notes(workdir: Path) -> dict[str, Any]:
    """Return the notes on the model in results: `model`, and `init`, the origin of its encoder."""
    about, origin = read(workdir), read_origin(workdir)
    return origin if about is None else origin | {"model": vars(about)}
