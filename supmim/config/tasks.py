"""Facts about what can be trained, known without the code that trains it, and without JAX."""

from dataclasses import dataclass

ALL = "all"  # every evaluator of the task
SETTINGS = ("easy", "medium", "hard")  # of the revisited Oxford and Paris
USE_CLASSIFIER = ("classification", "corruptions")  # evaluators that need a trained one
SEGMENTATION_RESULTS = ("miou", "pixel_accuracy", "mean_accuracy", "iou/NAME")
# The results of each evaluator for which higher is better. NAME stands for a class. Some results
# need something that the data may lack.
RESULTS = {
    "classification": ("top1", "top5", "real_top1"),
    "corruptions": ("noise", "blur", "contrast", "pixelation", "top1"),
    "knn": (
        *("recall_at_1", "leave_one_out_recall_at_1", "all_labels_recall_at_1"),
        *(f"dino_k{k}" for k in (10, 20, 100, 200)),
    ),
    "retrieval": (
        *(f"train_recall_at_{k}" for k in (1, 5, 10)),
        *(f"recall_at_{k}" for k in (1, 10, 100, 1000)),
        *("map", "map_at_r", "mmp_at_5"),
    ),
    "fewshot": ("1_shot", "5_shot", "10_shot", "25_shot"),
    "linear": ("top1",),
    "logistic": ("top1",),
    "landmarks": (
        *(f"map_{setting}" for setting in SETTINGS),
        *(f"mp_at_{k}_{setting}" for setting in SETTINGS for k in (1, 5, 10)),
        *("map", "map_at_100"),
    ),
    "maps": (),
    "reconstruction": ("token_accuracy", "pixels_explained"),
    "tokenizer": ("psnr", "ssim", "code_usage", "code_perplexity", "class_information"),
    "segmentation": SEGMENTATION_RESULTS,
    "patch_knn": SEGMENTATION_RESULTS,
}

# What each evaluator measures, and the options that only it, or it and few others, read.
EVALUATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "classification": (
        "top-1, top-5, loss and calibration error of the classifier",
        ("eval.real_labels",),
    ),
    "corruptions": ("top-1 under noise, blur, low contrast and large pixels", ()),
    "knn": (
        "the class of the nearest training image; DINO's weighted vote",
        ("eval.similarity_mib", "eval.pictures", "eval.all_labels"),
    ),
    "retrieval": (
        "R@k in the training images; R@k, mAP, mAP@R, mMP@5 among the others",
        ("eval.similarity_mib",),
    ),
    "fewshot": ("ridge regression on 1, 5, 10, 25 training images of each class", ()),
    "linear": ("DINOv2's grid of linear heads on frozen features", ()),
    "logistic": ("logistic regression on frozen features", ()),
    "landmarks": (
        "retrieval in a gallery with positives and junk",
        ("eval.landmarks", "eval.similarity_mib"),
    ),
    "maps": (
        "pictures: embeddings by class, patches by their components",
        ("eval.pictures", "eval.similarity_mib"),
    ),
    "reconstruction": (
        "how well hidden patches are predicted, with pictures of them",
        ("eval.pictures",),
    ),
    "tokenizer": (
        "tokenizer: PSNR, SSIM, codes in use, class information in the codes",
        ("eval.pictures",),
    ),
    "segmentation": ("segmentation: IoU of each class, with pictures", ("eval.pictures",)),
    "patch_knn": (
        "segmentation: IoU by the nearest training patches, without the head",
        ("eval.pictures", "eval.similarity_mib"),
    ),
}


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
            "corruptions",
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
        evaluators=("segmentation", "patch_knn"),
        progress=(("pixel_loss", "loss", ".3f"), ("pixel_accuracy", "pixels", ".0%")),
        has_masks=True,
    ),
}
