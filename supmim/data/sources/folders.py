"""`folder:PATH`: image files in one folder per class.

Images are PATH/CLASS/.../x.jpg or, where no labels are needed, PATH/x.jpg. A folder PATH/train
takes the place of PATH, and val, validation or test beside it is held out. Without one of these, a
fixed share of the files is held out, chosen by a hash of their names.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.config import options
from supmim.data.sources import base
from supmim.data.sources.base import Record, Source
from supmim.errors import DataError

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm",
)  # fmt: skip
HELD_OUT_FOLDERS = ("val", "validation", "test")
NO_CLASS = ""  # class of images that are in no folder of a class


class Listing(NamedTuple):
    """The contents of a folder: classes with and without images; files and sizes, sorted."""

    class_names: tuple[str, ...]
    empty: tuple[str, ...]
    paths: tuple[str, ...]  # relative, with /
    sizes: tuple[int, ...]  # bytes
    loops: tuple[str, ...]  # links to a folder above, which are not followed


class Folder(Source):
    """Files of a folder. Their paths are one block of bytes, which readers receive quickly."""

    def __init__(self, root: Path, name: str, found: Listing) -> None:
        self.root, self.name, self.class_names = str(root), name, found.class_names
        encoded = [os.fsencode(path) for path in found.paths]
        self.block = b"".join(encoded)
        self.ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.sizes = np.array(found.sizes, np.int64)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        classes = (path.split("/")[0] if "/" in path else NO_CLASS for path in found.paths)
        self.label = np.array([numbers[name] for name in classes], np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, index: int) -> str:
        """Return the path of a file relative to the folder."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]])

    def __getitem__(self, index: int) -> Record:
        return record(os.path.join(self.root, self.path(index)), int(self.label[index]))

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.block + self.ends.tobytes() + self.sizes.tobytes())
        return {"name": "folder", "length": len(self), "sha256": digest.hexdigest()}


def record(path: str, label: int) -> Record:
    """Read a file; an OSError takes the place of its bytes."""
    try:
        with open(path, "rb") as file:
            return Record(file.read(), label, path)
    except OSError as error:
        return Record(error, label, path)


def load(where: str, part: str, data: options.Data, labelled: bool = True) -> Folder:
    """Return one part of a folder; DataError without images or, if labelled, without classes."""
    root = Path(where).expanduser()
    if not root.is_dir():
        raise DataError(
            f"folder:{where}: there is no such folder; set --config.data.train=folder:PATH"
        )
    trained, held_out = parts(root)
    if part != base.WHOLE and held_out is None:
        return share(trained, part, data.holdout, labelled)
    chosen = held_out if held_out and part == base.HELD_OUT else trained
    return Folder(chosen, f"folder:{chosen}", listing(chosen, labelled))


def parts(root: Path) -> tuple[Path, Path | None]:
    """Return the folder for training, and that of the held-out images if there is one."""
    found = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    if "train" not in found:
        return root, None
    held_out = next((found[name] for name in HELD_OUT_FOLDERS if name in found), None)
    return found["train"], held_out


def share(root: Path, part: str, holdout: float, labelled: bool) -> Folder:
    """Return the images that are held out, or the others, by a hash of their relative paths."""
    found = listing(root, labelled)
    files = zip(found.paths, found.sizes, strict=True)
    kept = [file for file in files if is_held_out(file[0], holdout) == (part == base.HELD_OUT)]
    if not kept:
        raise base.NothingHeldOut(
            f"{root} has {len(found.paths)} images, of which config.data.holdout={holdout:g} "
            f"leaves none {part}; set --config.data.eval=folder:PATH or another share"
        )
    paths, sizes = zip(*kept, strict=True)
    return Folder(root, f"folder:{root} ({part})", found._replace(paths=paths, sizes=sizes))


def is_held_out(path: str, holdout: float) -> bool:
    """Return whether a relative path falls into the held-out share."""
    digest = hashlib.sha256(os.fsencode(path)).digest()
    return int.from_bytes(digest[:8], "big") < holdout * 2**64


def listing(root: Path, labelled: bool = True) -> Listing:
    """Return the images of a folder; DataError if they have no classes but need them."""
    shown = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in shown if _kind(entry) == "folder")
    loops: list[str] = []
    above = frozenset({os.path.realpath(root)})
    of_class = {name: sorted(_files(str(root / name), name, above, loops)) for name in classes}
    full = [name for name in classes if of_class[name]]
    if not full and not labelled and (alone := files(root)):
        paths, sizes = zip(*alone, strict=True)
        return Listing((NO_CLASS,), (), paths, sizes, tuple(loops))
    if not full:
        loose = sum(e.name.lower().endswith(ENDINGS) for e in shown)
        found = f"{loose} images without one" if loose else "nothing that ends like an image"
        raise DataError(
            f"{root} has no images in folders of classes ({found}); it needs {root}/CLASS/IMAGE.jpg"
        )
    paths, sizes = zip(*(item for name in full for item in of_class[name]), strict=True)
    empty = tuple(name for name in classes if not of_class[name])
    return Listing(tuple(full), empty, paths, sizes, tuple(loops))


def files(root: Path) -> list[tuple[str, int]]:
    """Return (relative path, size) of the images below a folder, sorted."""
    found = sorted(_files(str(root), "", frozenset(), []))
    return [(path.removeprefix("/"), size) for path, size in found]


def _files(
    folder: str, relative: str, above: frozenset[str], loops: list[str]
) -> Iterator[tuple[str, int]]:
    """Yield (relative path, size) of the images in a folder and below, except hidden ones."""
    here = os.path.realpath(folder)
    if here in above:
        loops.append(relative)
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        path, kind = f"{relative}/{entry.name}", _kind(entry)
        if kind == "folder":
            yield from _files(entry.path, path, above | {here}, loops)
        elif kind in ("file", "broken") and entry.name.lower().endswith(ENDINGS):
            yield path, entry.stat().st_size if kind == "file" else -1


def _kind(entry: os.DirEntry) -> str:
    """Return folder, file, broken (a dangling or circular link) or other (a pipe, a device)."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "broken"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"
