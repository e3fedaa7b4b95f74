"""Units and order of results, on the page, in the pictures and on the terminal."""

import re
from collections.abc import Iterable

FORMATS = {  # of results by the end of their names; other shares are percents
    "/loss": "{:.4f}",
    "psnr": "{:.2f} dB",
    "ssim": "{:.4f}",
    "perplexity": "{:.1f}",
    "classes_in_masks": "{:.0f}",
}
COUNTS = "unreadable/"  # prefix of numbers of images


def is_share(name: str) -> bool:
    """Return whether a result is a fraction; others have a unit, or count something."""
    return "/" in name and not name.startswith(COUNTS) and not kind(name).endswith(tuple(FORMATS))


def kind(name: str) -> str:
    """Return EVALUATOR/RESULT; results of single classes are EVALUATOR/RESULT/CLASS."""
    return "/".join(name.split("/")[:2])


def with_unit(name: str) -> str:
    """Return the name of a result with the unit of its numbers, if it has one, as in `x, %`."""
    unit = "%" if is_share(name) else "dB" if kind(name).endswith("psnr") else ""
    return f"{name}, {unit}" if unit else name


def formatted(results: dict[str, float]) -> dict[str, str]:
    """Return results as text with their units, in the order of `ordered`."""
    return {name: _formatted(name, results[name]) for name in ordered(results)}


def ordered(names: Iterable[str]) -> list[str]:
    """Return names with numbers in the order of their values, and floors last."""
    return sorted(names, key=lambda name: (name.startswith("floor/"), _natural(name), name))


def _natural(name: str) -> list[str | int]:
    parts = re.split(r"([0-9]{1,18})", name)  # texts and numbers in turn, so that they compare
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _formatted(name: str, value: float) -> str:
    for ending, form in FORMATS.items():
        if kind(name).endswith(ending):
            return form.format(value)
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:,.10g}"
