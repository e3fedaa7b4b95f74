"""`folder:PATH`: images in one folder per class, as they lie on disk.

PATH/CLASS/.../x.jpg, with the class named by the folder right below PATH; where no labels are
needed PATH/x.jpg will do. If PATH has a folder
train, that takes its place, and val, validation or test beside it is what is held out; without one
of these a fixed share of the files is, chosen by a hash of their names.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.config import options
from supmim.data.sources import base
from supmim.data.sources.base import Record
from supmim.errors import DataError

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm",
)  # fmt: skip
HELD_OUT_FOLDERS = ("val", "validation", "test")
NO_CLASS = ""  # of images that lie in no folder of a class


class Listing(NamedTuple):
    """What a folder holds: classes, with and without images; files with their sizes, sorted."""

    class_names: tuple[str, ...]
    empty: tuple[str, ...]
    paths: tuple[str, ...]  # relative, with /
    sizes: tuple[int, ...]  # bytes
    loops: tuple[str, ...]  # links that lead back up: not followed


class Folder:
    """Some of the files of a folder. Paths lie in one block: a million of them must travel."""

    def __init__(
        self, root: Path, name: str, class_names: Sequence[str], paths: Sequence[str],
        sizes: Sequence[int],
    ) -> None:  # fmt: skip
        self.root, self.name, self.class_names = str(root), name, tuple(class_names)
        encoded = [os.fsencode(path) for path in paths]
        self.block = b"".join(encoded)
        self.ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.sizes = np.array(sizes, np.int64)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.label = np.array([numbers[class_of(path)] for path in paths], np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, index: int) -> str:
        """Path of a file below the folder."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]])

    def __getitem__(self, index: int) -> Record:
        return record(os.path.join(self.root, self.path(index)), int(self.label[index]))

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return [self[i] for i in index]

    def fingerprint(self) -> dict[str, Any]:
        """Names and sizes of the files, not their place: a folder may be moved."""
        digest = hashlib.sha256(self.block + self.ends.tobytes() + self.sizes.tobytes())
        return {"name": "folder", "length": len(self), "sha256": digest.hexdigest()}


def class_of(path: str) -> str:
    """The class of a relative path."""
    head, slash, _ = path.partition("/")
    return head if slash else NO_CLASS


def record(path: str, label: int) -> Record:
    """A file as it is, or the error that came instead."""
    try:
        with open(path, "rb") as file:
            return Record(file.read(), label, path)
    except OSError as error:
        return Record(error, label, path)


def load(where: str, part: str, data: options.Data, labelled: bool = True) -> Folder:
    """DataError for what is no folder, has no images or, if labelled, has them in no classes."""
    root = Path(where).expanduser()
    if not root.is_dir():
        raise DataError(
            f"folder:{where}: there is no such folder; name yours: --config.data.train=folder:PATH"
        )
    trained, held_out = parts(root)
    if part == base.WHOLE:
        return whole(trained, labelled)
    if held_out is None:
        return share(trained, part, data.holdout, labelled)
    return whole(trained if part == base.KEPT else held_out, labelled)


def parts(root: Path) -> tuple[Path, Path | None]:
    """What is trained on, and what is held out if that has a folder of its own."""
    found = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    if "train" not in found:
        return root, None
    held_out = next((found[name] for name in HELD_OUT_FOLDERS if name in found), None)
    return found["train"], held_out


def whole(root: Path, labelled: bool) -> Folder:
    """All images of a folder."""
    found = listing(root, labelled)
    return Folder(root, f"folder:{root}", found.class_names, found.paths, found.sizes)


def share(root: Path, part: str, holdout: float, labelled: bool) -> Folder:
    """The images that are held out, or the others: by a hash of the path, the same on any host."""
    found = listing(root, labelled)
    taken = [is_held_out(path, holdout) == (part == base.HELD_OUT) for path in found.paths]
    if not any(taken):
        raise base.NothingHeldOut(
            f"{root} has {len(found.paths)} images, of which config.data.holdout={holdout:g} "
            f"leaves none {part}; set --config.data.eval=folder:PATH or another share"
        )
    kept = [(p, s) for p, s, t in zip(found.paths, found.sizes, taken, strict=True) if t]
    return Folder(root, f"folder:{root} ({part})", found.class_names, *zip(*kept, strict=True))


def is_held_out(path: str, holdout: float) -> bool:
    """Whether a relative path falls into the held-out share."""
    digest = hashlib.sha256(os.fsencode(path)).digest()
    return int.from_bytes(digest[:8], "big") < holdout * 2**64


def listing(root: Path, labelled: bool = True) -> Listing:
    """The images of a folder; DataError where they make no classes, unless they need none."""
    shown = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in shown if _kind(entry) == "folder")
    loops: list[str] = []
    above = frozenset({os.path.realpath(root)})
    of_class = {name: sorted(_files(str(root / name), name, above, loops)) for name in classes}
    full = [name for name in classes if of_class[name]]
    if not full and not labelled and (alone := files(root)):
        return Listing((NO_CLASS,), (), *zip(*alone, strict=True), tuple(loops))
    if not full:
        loose = sum(e.name.lower().endswith(ENDINGS) for e in shown)
        found = f"{loose} images without one" if loose else "nothing that ends like an image"
        raise DataError(
            f"{root} has no images in folders of classes ({found}); it takes {root}/CLASS/IMAGE.jpg"
        )
    paths, sizes = zip(*(item for name in full for item in of_class[name]), strict=True)
    empty = tuple(name for name in classes if not of_class[name])
    return Listing(tuple(full), empty, paths, sizes, tuple(loops))


def files(root: Path) -> list[tuple[str, int]]:
    """(relative path, size) of the images below a folder, sorted; links that lead up are cut."""
    found = sorted(_files(str(root), "", frozenset(), []))
    return [(path.removeprefix("/"), size) for path, size in found]


def _files(
    folder: str, relative: str, above: frozenset[str], loops: list[str]
) -> Iterator[tuple[str, int]]:
    """(relative path, size) of the images in a folder and below; hidden ones are left out."""
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
    """folder, file, broken (a link to nothing or in a circle) or other (a pipe, a device)."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "broken"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"
