"""The model card of an exported folder, made from config and results alone."""

import datetime
from pathlib import Path

import jax

from supmim import __version__
from supmim.data.sources.base import printable
from supmim.errors import counted
from supmim.model import Model

SHOWN_CLASSES = 20
SHOWN = ("classification", "knn", "linear", "segmentation", "retrieval")
NO_SHARES = ("loss", "classes_in_masks")
LINKS = (("://", "&#58;//"), ("www.", "www&#46;"))  # Markdown turns even bare ones into links


def write(model: Model, results: dict[str, float], weights: str, usage: str) -> str:
    """Return README.md. weights: what identifies them; usage: lines of code that use the folder."""
    config, sizes = model.config, model.config.encoder
    rows = [
        f"| {name} | {100 * x:.2f} % |" for name, x in sorted(results.items()) if is_share(name)
    ]
    names = ", ".join(escaped(name) for name in model.class_names[:SHOWN_CLASSES])
    more = len(model.class_names) - SHOWN_CLASSES
    classes = f"{len(model.class_names)}: {names}{f' and {more} more' if more > 0 else ''}"
    how = "labels and masked image modelling" if config.has_decoder else "labels"
    length = (config.total_steps, "step") if config.total_steps else (config.total_epochs, "epoch")
    trained = f"Trained with {how} on {escaped(config.data.train)}, {counted(*length)}"
    if config.init.model:
        trained += f", from the encoder of {escaped(Path(config.init.model).name)}"
    side, channels = config.data.image_size, counted(config.data.channels, "channel")
    origin = "Imported, not trained by supmim" if model.imported else trained
    answers = "independent (sigmoid)" if config.classifier.loss == "sigmoid" else "softmax"
    return "\n".join(
        [
            "---",
            *([f"license: {licence_of(model)}"] if licence_of(model) else []),
            "library_name: timm",
            "tags: [supmim, image-feature-extraction]",
            "---",
            f"# ViT of {sizes.width} x {sizes.depth}, patches of "
            f"{counted(sizes.patch_size, 'pixel')}",
            "",
            f"{origin}; written by supmim {__version__} with JAX {jax.__version__} on "
            f"{datetime.date.today()} from {escaped(Path(model.name).name)}. The decoder is left "
            "out.",
            "",
            "    " + usage.replace("\n", "\n    "),
            "",
            "| | |",
            "|---|---|",
            f"| parameters | {model.num_parameters:,} |",
            f"| image | {side} x {side}, {channels}, (image / 255 - 0.5) / 0.5 |",
            f"| resize | {view(model)} |",
            f"| embedding | {counted(sizes.width, 'value')}, pooling `{sizes.pool}` |",
            f"| classes | {classes if model.class_names else 'none, an encoder alone'} |",
            *([f"| probabilities | {answers} |"] if model.class_names else []),
            f"| weights | {weights} |",
            "",
            "At other image sizes timm resamples positions bicubically and supmim bilinearly, so "
            "their outputs are equal at this size alone.",
            *(["", "| result | |", "|---|---|", *rows] if rows else []),
            "",
        ]
    )


def licence_of(model: Model) -> str:
    """Return the licence of a model; empty if its weights are, or began as, somebody else's."""
    return "" if model.imported or model.config.init.model else "apache-2.0"


def view(model: Model) -> str:
    """Return how an image becomes a square, in words."""
    data = model.config.data
    side = data.eval_resize or data.image_size
    how = f"to {side} x {side}" if data.eval_view == "stretch" else f"short side to {side}"
    return f"{how}, {data.interpolation}, then the central {data.image_size} x {data.image_size}"


def is_share(name: str) -> bool:
    """Return whether a result is a share of images that a reader of a card wants to see."""
    group, _, rest = name.partition("/")
    return group in SHOWN and "/" not in rest and rest not in NO_SHARES  # no single classes


def escaped(text: str) -> str:
    """Return a name that Markdown and HTML show as it is, on one line."""
    text = "".join(f"&#{ord(c)};" if c in "&<>|`*_[]\\@" else c for c in printable(text))
    for plain, spelled in LINKS:
        text = text.replace(plain, spelled)
    return text
