"""report.html: results, pictures and config of a run in one file that needs no other."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from supmim.report import embedding_map
from supmim.workdir.files import NOTES, write_text
from supmim.workdir.writer import read_metrics

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr + tr td { border-top: 1px solid #e3e6ea; } img { max-width: 100%; }
pre { background: #f5f6f8; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""

CAPTIONS = {
    "curves.png": "Losses, accuracies and gradient norm over the steps.",
    "reconstructions.png": "Images that were not trained on: hidden patches (blue) are filled in "
    "with what the decoder predicts. A tokenizer's own reconstruction is the best it could do.",
    "decoded.png": "Images that were not trained on, what k-means codes of patches make of them, "
    "and what the tokenizer does, at the same number of tokens and codes.",
    "confusion.png": "True classes by row and what images of them are taken for: blue is right.",
    "segmentation.png": "Images that were not trained on, the classes of their pixels, and what "
    "the model says of them. Pixels that do not count are white.",
    "neighbours.png": "Images that were not trained on, and the training images whose embeddings "
    "are nearest. Up to half of the rows are queries whose first neighbour is wrong.",
    "embedding_map.png": "Images that were not trained on, each a point where its embedding lies; "
    f"the {embedding_map.COLOURED} most frequent classes have colours.",
    "patches.png": "Images that were not trained on, and the colours of their patches: alike where "
    "the encoder finds them alike, within an image and from one to another.",
}

UNQUOTED = str.maketrans("", "", '"{}[]')
UNITS = {  # of what ends so
    "/loss": "{:.4f}", "psnr": "{:.2f} dB", "ssim": "{:.4f}", "perplexity": "{:.1f}",
    "classes_in_masks": "{:.0f}",
}  # fmt: skip


def write(workdir: Path, results: dict[str, float], config: str, notes: dict[str, Any]) -> None:
    """Writes workdir/report.html; every text is escaped, pictures are embedded.

    notes: what the results are of, as evaluators.notes has it.
    """
    title, pictures = f"supmim: {workdir.name}", workdir / "pictures"
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=number>{text}</td></tr>"
        for name, text in formatted(results).items()
    )
    figures = "".join(
        f"<h2>{html.escape(caption)}</h2><img alt={html.escape(repr(name))} "
        f"src='data:image/png;base64,{base64.b64encode((pictures / name).read_bytes()).decode()}'>"
        for name, caption in CAPTIONS.items()
        if (pictures / name).exists()
    )
    spent = "".join(
        f"<tr><td>{name}</td><td class=number>{share:.1%}</td></tr>"
        for name, share in goodput(read_metrics(workdir / "metrics.jsonl")).items()
    )
    write_text(
        workdir / "report.html",
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<table><tr><th>result</th><th>value</th></tr>{rows}</table>"
        f"<h2>What the results are of</h2>{noted(notes)}"
        f"<h2>Where the time of the last start went</h2><table>{spent}</table>"
        f"{figures}<h2>Config</h2><pre>{html.escape(config)}</pre></html>\n",
    )


def noted(notes: dict[str, Any]) -> str:
    """A table of checkpoint, images, where the encoder is from, and every evaluator's protocol."""
    about = {name: notes[name] for name in NOTES if name in notes and name != "protocols"}
    kinds = about | notes["protocols"]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(said(facts))}</td></tr>"
        for name, facts in kinds.items()
    )
    return f"<table>{rows}</table>"


def said(facts: dict[str, Any]) -> str:
    """`name: value; ...` of JSON, on one line."""
    return "; ".join(
        f"{name.replace('_', ' ')}: "
        + (value if isinstance(value, str) else json.dumps(value).translate(UNQUOTED))
        for name, value in facts.items()
    )


def goodput(rows: list[dict[str, float]]) -> dict[str, float]:
    """Shares of the time since the last start, by kind, from the lines of metrics.jsonl."""
    told = [row for row in rows if "goodput/step" in row]
    last = told[-1] if told else {}
    return {name.removeprefix("goodput/").replace("_", " "): share
            for name, share in last.items() if name.startswith("goodput/")}  # fmt: skip


def is_share(name: str) -> bool:
    """Whether a result is a fraction; unreadable/... counts images, and some have a unit."""
    return "/" in name and not name.startswith("unreadable/") and not name.endswith(tuple(UNITS))


def formatted(results: dict[str, float]) -> dict[str, str]:
    """Results as people read them: fractions in percent, floors last, other numbers as they are."""
    ordered = sorted(results, key=lambda name: (name.startswith("floor/"), name))
    return {name: _formatted(name, results[name]) for name in ordered}


def _formatted(name: str, value: float) -> str:
    for ending, form in UNITS.items():
        if name.endswith(ending):
            return form.format(value)
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:g}"
