"""Tokenizers that a run fits on its own images before its first step."""

from typing import Any

from supmim import config as config_lib
from supmim.config import Config, options
from supmim.data.images import Images
from supmim.runtime.progress import doing
from supmim.tokenizers import Tokenizer, feature_codes, inputs, patch_vq, small_cnn


def fit(config: Config, images: Images, network: tuple[Any, Any] | None = None) -> Tokenizer:
    """Return config.tokenizer.name, patch_vq or feature_codes, fitted on training images.

    It is fitted on MIM views of the first epoch, since it will encode such views. network: an
    encoder and its parameters, whose features get codes; a small one is trained if there is none.
    """
    tokenizer = config.tokenizer
    sizes: dict[str, Any] = {
        "codebook_size": tokenizer.codebook_size,
        "patch_size": tokenizer.patch_size,
        "steps": tokenizer.fit_steps,
        "seed": config.data.seed,
    }
    if tokenizer.name == feature_codes.KIND:
        network = network or small_cnn.train(config, images).frozen(config.tokenizer_dtype)
    with doing("fitting the tokenizer (k-means)"):
        views = inputs.first_views(config, images)
        if network is not None:
            return feature_codes.fit(*network, views, **sizes)
        return patch_vq.fit(views, **sizes)


def made_from(config: Config, images: Images) -> dict[str, Any]:
    """Return JSON of all that the codes of `fit` depend on."""
    data = config_lib.flatten(config.data, "data.")
    shown = options.identity(data, "crop", "geometry") | {"data.seed": config.data.seed}
    found = {
        "tokenizer": config_lib.flatten(config.tokenizer),
        "data": {path.removeprefix("data."): value for path, value in shown.items()},
        "source": images.source.fingerprint(),
    }
    if config.tokenizer.name == feature_codes.KIND:  # its network learns classes
        found["training"] = {
            **options.identity(data, "colours", "class view"),
            "batch_size": config.batch_size,
            "label_smoothing": config.classifier.label_smoothing,
        }
    return found
