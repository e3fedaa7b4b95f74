"""report.html: results, pictures and config of a run in one self-contained file."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from supmim.report import embedding_map
from supmim.runtime.streams import printable
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
    "with what the decoder predicts. The best possible result is the tokenizer's reconstruction.",
    "decoded.png": "Images that were not trained on, and their reconstructions from k-means codes "
    "of patches and by the tokenizer, with the same number of tokens and codes.",
    "confusion.png": "True classes by row and predicted classes by column: blue is right.",
    "segmentation.png": "Images that were not trained on, the classes of their pixels, and the "
    "classes that the model predicts. Pixels that do not count are white.",
    "neighbours.png": "Images that were not trained on, and the training images whose embeddings "
    "are nearest. Up to half of the rows are queries whose first neighbour is wrong.",
    "embedding_map.png": "Images that were not trained on, each a point where its embedding lies; "
    f"the {embedding_map.COLOURED} most frequent classes have colours.",
    "patches.png": "Images that were not trained on, and the colours of their patches: similar "
    "where the encoder finds them similar, within an image and across images.",
}

MOST_NAMES = 100  # of classes, beyond which some are left to model.json
UNITS = {  # formats of results by the end of their names
    "/loss": "{:.4f}",
    "psnr": "{:.2f} dB",
    "ssim": "{:.4f}",
    "perplexity": "{:.1f}",
    "classes_in_masks": "{:.0f}",
}


def write(workdir: Path, results: dict[str, float], config: str, notes: dict[str, Any]) -> None:
    """Write workdir/report.html, in which every text is escaped and pictures are embedded.

    notes: what the results were measured on, as evaluators.Suite.notes returns it.
    """
    title, pictures = f"supmim: {workdir.name}", workdir / "pictures"
    figures = "".join(
        f"<h2>{_escaped(caption)}</h2><img alt={_escaped(repr(name))} "
        f"src='data:image/png;base64,{base64.b64encode((pictures / name).read_bytes()).decode()}'>"
        for name, caption in CAPTIONS.items()
        if (pictures / name).exists()
    )
    about = {name: notes[name] for name in NOTES if name in notes and name != "protocols"}
    if names := about.get("model", {}).get("class_names"):
        more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
        about["model"] = about["model"] | {"class_names": [*names[:MOST_NAMES], *more]}
    facts = {name: _one_line(values) for name, values in (about | notes["protocols"]).items()}
    spent = {k: f"{v:.1%}" for k, v in goodput(read_metrics(workdir / "metrics.jsonl")).items()}
    write_text(
        workdir / "report.html",
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_escaped(title)}</title>"
        f"<style>{STYLE}</style><h1>{_escaped(title)}</h1><table>"
        f"<tr><th>result</th><th>value</th></tr>{_rows(formatted(results), ' class=number')}"
        f"</table><h2>How the results were measured</h2><table>{_rows(facts)}</table>"
        f"<h2>Where the time since the last start went</h2>"
        f"<table>{_rows(spent, ' class=number')}</table>"
        f"{figures}<h2>Config</h2><pre>{_escaped(config)}</pre></html>\n",
    )


def _escaped(text: str) -> str:
    """Return text for HTML, with escapes in place of what is not printable."""
    return html.escape(printable(text, keep="\n\t"))


def _rows(cells: dict[str, str], kind: str = "") -> str:
    """Return the HTML of a table's rows, name and text; kind: an attribute of the texts' cells."""
    return "".join(
        f"<tr><td>{_escaped(name)}</td><td{kind}>{_escaped(text)}</td></tr>"
        for name, text in cells.items()
    )


def _one_line(facts: dict[str, Any]) -> str:
    """Return JSON on one line as `name: value; ...`."""
    return "; ".join(f"{name.replace('_', ' ')}: {_text(value)}" for name, value in facts.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def goodput(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return shares of the time since the last start, by kind, from the lines of metrics.jsonl."""
    last = next((row for row in reversed(rows) if "goodput/step" in row), {})
    names = [name for name in last if name.startswith("goodput/")]
    return {name.removeprefix("goodput/").replace("_", " "): last[name] for name in names}


def is_share(name: str) -> bool:
    """Return whether a result is a fraction; unreadable/... counts images, and some have a unit."""
    return "/" in name and not name.startswith("unreadable/") and not name.endswith(tuple(UNITS))


def formatted(results: dict[str, float]) -> dict[str, str]:
    """Return results as text, floors last: fractions in percent, other numbers as they are."""
    ordered = sorted(results, key=lambda name: (name.startswith("floor/"), name))
    return {name: _formatted(name, results[name]) for name in ordered}


def _formatted(name: str, value: float) -> str:
    for ending, form in UNITS.items():
        if name.endswith(ending):
            return form.format(value)
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:g}"
