"""What can be trained, as far as it is known without the code that does it (and without JAX)."""

from dataclasses import dataclass

ALL = "all"  # every evaluator of the task


@dataclass(frozen=True)
class Facts:
    """What a config, the input and the screen need to know of a task.

    evaluators: those it can be asked for. has_labels: whether images must come with classes.
    has_masks: whether they come with a class for each pixel. may_join_classes: whether it can be
    evaluated on a source with other classes. progress: metrics on the progress line, with a short
    name and a format each.
    """

    evaluators: tuple[str, ...]
    progress: tuple[tuple[str, str, str], ...]
    has_labels: bool = True
    has_masks: bool = False
    may_join_classes: bool = False


FACTS = {
    "supmim": Facts(
        evaluators=(
            "classification",
            "knn",
            "retrieval",
            "fewshot",
            "linear",
            "logistic",
            "landmarks",
            "maps",
            "reconstruction",
        ),
        progress=(
            ("class_loss", "class", ".3f"),
            ("mim_loss", "mim", ".3f"),
            ("train_top1", "top1", ".0%"),
            ("token_accuracy", "tokens", ".0%"),
        ),
        may_join_classes=True,
    ),
    "tokenizer": Facts(
        evaluators=("tokenizer",),
        progress=(("reconstruction_loss", "loss", ".4f"), ("psnr", "psnr", ".2f")),
        has_labels=False,
    ),
    "segmentation": Facts(
        evaluators=("segmentation",),
        progress=(("pixel_loss", "loss", ".3f"), ("pixel_accuracy", "pixels", ".0%")),
        has_masks=True,
    ),
}
