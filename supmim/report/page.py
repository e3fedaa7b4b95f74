"""report.html: headline numbers, pictures, results and how to repeat them, in one file.

It needs no script and loads nothing. Its links lead to the files that lie beside it.
"""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from supmim import config as config_lib
from supmim.config import Config
from supmim.errors import counted
from supmim.report import again, units
from supmim.report.style import STYLE
from supmim.runtime.streams import printable
from supmim.workdir.files import NOTES, RESULTS, write_text
from supmim.workdir.writer import read_metrics

HEADLINES = {  # result -> what it says, and the floors that it must beat
    "classification/top1": ("top-1 accuracy", ("floor/top1",)),
    "segmentation/miou": ("mean IoU", ("floor/segmentation_miou",)),
    "segmentation/pixel_accuracy": ("pixel accuracy", ("floor/segmentation_pixel_accuracy",)),
    "patch_knn/miou": ("mean IoU by nearest patches", ("floor/segmentation_miou",)),
    "tokenizer/psnr": ("PSNR of the reconstructions", ("floor/patch_vq_psnr",)),
    "tokenizer/ssim": ("SSIM of the reconstructions", ("floor/patch_vq_ssim",)),
    "tokenizer/code_usage": ("codes in use", ()),
    "tokenizer/class_information": (
        "class information in one id",
        ("floor/class_information",),
    ),
    "knn/recall_at_1": (
        "nearest neighbour right",
        (
            "floor/knn_pixels_cosine",
            "floor/knn_pixels_euclidean",
            "floor/random_encoder_recall_at_1",
        ),
    ),
    "landmarks/map_medium": ("mean average precision, medium setting", ()),
    "landmarks/map": ("mean average precision", ()),
    "reconstruction/token_accuracy": ("hidden tokens predicted", ("floor/token_accuracy",)),
    "reconstruction/pixels_explained": ("variance of hidden pixels explained", ()),
    "linear/top1": ("top-1 of a linear probe", ("floor/top1",)),
    "fewshot/10_shot": ("top-1 from 10 images a class", ("floor/top1",)),
    "retrieval/map": ("mean average precision of retrieval", ()),
    "logistic/top1": ("top-1 of logistic regression", ("floor/top1",)),
}
MOST_HEADLINES = 4

FLOORS = {  # floor -> what reaches it without training
    "floor/top1": "the most frequent class",
    "floor/token_accuracy": "the most frequent token",
    "floor/class_information": "labels in a random order",
    "floor/knn_pixels_cosine": "raw pixels",
    "floor/knn_pixels_euclidean": "raw pixels",
    "floor/random_encoder_recall_at_1": "an untrained encoder",
    "floor/segmentation_miou": "the most frequent class",
    "floor/segmentation_pixel_accuracy": "the most frequent class",
    "floor/patch_vq_psnr": "k-means codes of patches",
    "floor/patch_vq_ssim": "k-means codes of patches",
}

CAPTIONS = {  # pictures in their order: title and explanation
    "reconstructions.png": (
        "Reconstructions",
        "Evaluation images: hidden patches (blue) are filled in with what the "
        "decoder predicts. The best possible result is the tokenizer's reconstruction.",
    ),
    "decoded.png": (
        "Decoded images",
        "Evaluation images, and their reconstructions from k-means codes of patches "
        "and by the tokenizer, with the same number of tokens and codes.",
    ),
    "segmentation.png": (
        "Segmentation",
        "Evaluation images, the classes of their pixels, and the classes that the "
        "model predicts. Pixels that do not count are white.",
    ),
    "patch_knn.png": (
        "Segmentation by nearest patches",
        "Evaluation images, the classes of their pixels, and the classes of the training patches "
        "whose tokens are nearest. Pixels that do not count are white.",
    ),
    "neighbours.png": (
        "Nearest neighbours",
        "Evaluation images, and the training images whose embeddings are nearest. "
        "Up to half of the rows are queries whose first neighbour is wrong.",
    ),
    "confusion.png": (
        "Confusion matrix",
        "True classes by row and predicted classes by column: right predictions are blue and on "
        "the diagonal, wrong ones are orange.",
    ),
    "embedding_map.png": (
        "Map of the embeddings",
        "Evaluation images, each a point where its embedding lies; the most frequent classes have "
        "colours.",
    ),
    "patches.png": (
        "Patches",
        "Evaluation images, and the colours of their patches: similar where the "
        "encoder finds them similar, within an image and across images.",
    ),
}
CURVES = "Losses, accuracies and results over the steps."
OTHERS = {  # prefixes of results that no evaluator has
    "floor": "scores that need no training: of the most frequent class or token, of raw pixels, "
    "of an untrained encoder, or of k-means codes of patches",
    "unreadable": "images that could not be read, which are left out",
}
FILES = {
    "model.json": "what the outputs of the model mean, and what images it takes",
    "config.json": "every option of the run",
    RESULTS: "the numbers and digests of this page",
    "metrics.jsonl": "the metrics over the steps",
    "parameters.txt": "the parameters and their shapes",
    "tokenizer": "the tokenizer",
    "pictures": "the pictures of this page",
    "bad_records.jsonl": "the images that could not be read",
}
REPEAT = "Run this in the folder of the first command: paths in its options may be relative."
NOT_STORED = " The options of the evaluation are not stored: give them again."
MOST_NAMES = 100  # of classes, beyond which some are left to model.json
MOST_ROWS = 20  # results of single classes, beyond which they are folded
SMALLEST = 0.7  # of a picture's own width; with less room it scrolls, so that it can be read


def not_above_floors(results: dict[str, float]) -> list[str]:
    """Return the headline results that do not exceed their floors."""
    return [
        name
        for name, (_, floors) in HEADLINES.items()
        if name in results and any(results.get(floor, -1.0) >= results[name] for floor in floors)
    ]


def write(
    workdir: Path, results: dict[str, float], config: Config, notes: dict[str, Any], commands: str
) -> None:
    """Write workdir/report.html, in which every text is escaped and pictures are embedded.

    notes: what the results were measured on, as evaluators.Suite.notes returns it, and the
    checkpoint. commands: those that repeat the results, see again.py.
    """
    name, pictures = _escaped(workdir.absolute().name), workdir / "pictures"
    shown = "".join(_figure(pictures / file, *CAPTIONS[file]) for file in CAPTIONS)
    spent = goodput(read_metrics(workdir / "metrics.jsonl"))
    every_option = _escaped(config_lib.to_json(config))
    advice = REPEAT + (NOT_STORED if again.added(config, notes) else "")
    sections = {
        "Pictures": shown and f"<div class=pictures>{shown}</div>",
        "Curves": _figure(pictures / "curves.png", "", CURVES),
        "All results, and how they were measured": _results(results, notes["protocols"]),
        "Checkpoint, data and model": _table(facts(notes)),
        "Files beside this page": _files(workdir),
        "Repeat it": f"<p>{advice}</p><pre>{_escaped(commands)}</pre>",
        "Where the time since the last start went": _table(spent, number=True),
        "Config": f"<details><summary>every option</summary><pre>{every_option}</pre></details>",
    }
    body = "\n".join(f"<h2>{title}</h2>{text}" for title, text in sections.items() if text)
    write_text(
        workdir / "report.html",
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>supmim: {name}</title><style>{STYLE}</style>\n"
        f"<h1>{name}</h1><p class=dim>{_escaped(summary(config, notes))}</p>"
        f"{_headlines(results)}\n{body}</html>\n",
    )


def summary(config: Config, notes: dict[str, Any]) -> str:
    """Return a sentence on what was trained or loaded, and on the images."""
    found, data = notes["checkpoint"], notes.get("data", {})
    what = (
        f"Evaluation of the model {found['model']}"
        if "model" in found
        else f"A run of task {config.task}"
    )
    if "step" in found:
        steps, images = counted(found["step"], "step"), counted(config.step_images, "image")
        what += f" after {steps} of {images}"
    roles = {"train": "training images", "eval": "evaluation images"}
    images = [
        f"{data[split]['images']:,} {role} of {data[split]['name']}"
        for split, role in roles.items()
        if split in data
    ]
    return ", ".join([what, *images]) + "."


def facts(notes: dict[str, Any]) -> dict[str, str]:
    """Return the checkpoint, the data and the model as lines of text, by name."""
    about = {name: notes[name] for name in NOTES if name in notes and name != "protocols"}
    if names := about.get("model", {}).get("class_names"):
        more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
        about["model"] = about["model"] | {"class_names": [*names[:MOST_NAMES], *more]}
    lines = {}
    for name, values in about.items():
        groups = {key: value for key, value in values.items() if isinstance(value, dict)}
        if own := {k: value for k, value in values.items() if k not in groups and value != []}:
            lines[name] = _one_line(own)
        lines |= {f"{name}: {key}": _one_line(value) for key, value in groups.items()}
    return lines


def goodput(rows: list[dict[str, float]]) -> dict[str, str]:
    """Return shares of the time since the last start, by kind, from the lines of metrics.jsonl."""
    last = next((row for row in reversed(rows) if "goodput/step" in row), {})
    shares = {name: last[name] for name in last if name.startswith("goodput/")}
    largest_first = sorted(shares, key=shares.__getitem__, reverse=True)
    names = {name: name.removeprefix("goodput/").replace("_", " ") for name in largest_first}
    return {names[name]: f"{shares[name]:.1%}" for name in largest_first}


def _headlines(results: dict[str, float]) -> str:
    """Return the HTML of the first few HEADLINES that there are, with their highest floors."""
    text = units.formatted(results)
    tiles = []
    for name in [name for name in HEADLINES if name in results][:MOST_HEADLINES]:
        says, floors = HEADLINES[name]
        known = [floor for floor in floors if floor in results]
        best = max(known, key=results.__getitem__, default="")
        below = f"{text[best]} without training, by {FLOORS[best]}" if best else ""
        tiles.append(f"<div><b>{text[name]}</b>{says}<div class=dim>{below}</div></div>")
    return f"<div class=tiles>{''.join(tiles)}</div>" if tiles else ""


def _figure(path: Path, title: str, caption: str) -> str:
    """Return the HTML of a PNG with its caption; empty if there is none."""
    if not path.exists():
        return ""
    png = path.read_bytes()
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    data, smallest = base64.b64encode(png).decode(), int(SMALLEST * width)
    heading = f"<h3>{title}</h3>" if title else ""
    return (
        f"<figure style='flex: 1 1 {smallest}px; max-width: min(100%, {width}px)'>"
        f"<figcaption>{heading}{caption}</figcaption><div class=scroll tabindex=0>"
        f"<img alt='{path.name}' width={width} height={height} style='min-width: {smallest}px' "
        f"src='data:image/png;base64,{data}'></div></figure>\n"
    )


def _results(results: dict[str, float], protocols: dict[str, Any]) -> str:
    """Return the HTML of all results, each evaluator's with its protocol."""
    text = units.formatted(results)
    groups: dict[str, dict[str, str]] = {name: {} for name in protocols}
    for name in text:
        groups.setdefault(name.partition("/")[0], {})[name] = text[name]
    cards = []
    for evaluator, own in groups.items():
        of_classes = {name: own[name] for name in own if name != units.kind(name)}
        table = _table({n: own[n] for n in own if n not in of_classes}, number=True)
        more = _table(of_classes, number=True)
        if len(of_classes) > MOST_ROWS:
            title = f"<summary>{len(of_classes)} results of single classes</summary>"
            more = f"<details>{title}{more}</details>"
        protocol = protocols.get(evaluator, {"what": OTHERS.get(evaluator, "")})
        how = {name.replace("_", " "): _text(value) for name, value in protocol.items()}
        heading = f"<h3>{_escaped(evaluator)}</h3>"
        cards.append(
            f"<section>{heading}{table}{more}<div class=how>{_table(how)}</div></section>\n"
        )
    return f"<div class=cards>{''.join(cards)}</div>"


def _files(workdir: Path) -> str:
    """Return the HTML of links to the files of the run that exist; results.json is written last."""
    links = [
        f"<li><a href='{name}'>{name}</a>: {what}</li>"
        for name, what in FILES.items()
        if name == RESULTS or (workdir / name).exists()
    ]
    return f"<ul>{''.join(links)}</ul>"


def _table(cells: dict[str, str], number: bool = False) -> str:
    """Return the HTML of a table of names and texts; empty without rows."""
    kind = " class=number" if number else ""
    rows = "".join(
        f"<tr><th scope=row>{_escaped(name)}</th><td{kind}>{_escaped(text)}</td></tr>"
        for name, text in cells.items()
    )
    return f"<div class=scroll><table>{rows}</table></div>" if rows else ""


def _escaped(text: str) -> str:
    """Return text for HTML, with escapes in place of what is not printable."""
    return html.escape(printable(text, keep="\n\t"))


def _one_line(values: dict[str, Any]) -> str:
    """Return JSON on one line as `name: value; ...`."""
    return "; ".join(f"{name.replace('_', ' ')}: {_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
