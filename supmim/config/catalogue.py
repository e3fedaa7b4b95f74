"""The presets and sweeps that come with supmim, by name: `digits` is configs/digits.py."""

import ast
import difflib
from pathlib import Path

from supmim.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
# A wheel has the files inside the package, a clone beside it.
PLACES = (PACKAGE / "presets", PACKAGE.parent / "configs")
FOLDER = PLACES[0] if PLACES[0].is_dir() else PLACES[1]


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of all presets, or of all sweeps."""
    return sorted(path.stem for path in folder.glob("*.py"))


def resolved(spec: str, folder: Path = FOLDER) -> str:
    """Return `FILE.py[:arguments]` for a preset's name or path with arguments.

    What ends in .py or has a slash is a path. ConfigError, which lists the presets, if there is
    none.
    """
    name, colon, arguments = spec.partition(":")
    path = Path(name).expanduser()
    if not is_path(name):
        path = folder / f"{name}.py"
    if path.is_file():
        return f"{path}{colon}{arguments}"
    known = names(folder)
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    kind = "sweep" if folder.name == "sweeps" else "preset"
    missing = f"the file {name} does not exist" if is_path(name) else f"no {kind} is called {name}"
    raise ConfigError(f"{missing}. {hint}These come with supmim: {', '.join(known)}")


def is_path(name: str) -> bool:
    """Return whether a preset is given as a path, not by name."""
    return name.endswith(".py") or "/" in name


def summary(path: Path) -> str:
    """Return the first line of a file's docstring, without running it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
