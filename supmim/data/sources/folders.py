"""`folder:PATH`: image files in one folder per class.

Images are PATH/CLASS/.../x.jpg or, where no labels are needed, PATH/x.jpg. If all folders
of PATH are parts (see `parts`), PATH/train takes its place, and PATH/val or the like is held out.
Without a part to hold out, a share of each class is held out.
"""

import hashlib
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.config import options
from supmim.data.sources import base
from supmim.data.sources.base import Record, Source
from supmim.errors import DataError, counted
from supmim.storage.schemes import on_bucket

ENDINGS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm",
))  # fmt: skip
TRAINED, HELD_OUT = ("train", "training"), ("val", "valid", "validation", "test", "testing")
NO_CLASS = ""  # class of images that are in no folder of a class


class Parts(NamedTuple):
    """The folder for training, that of the held-out images if there is one, and unused ones."""

    trained: Path
    held_out: Path | None
    unused: tuple[str, ...] = ()

    def of(self, part: str) -> Path:
        """Return the folder of one part of a source."""
        evaluated = part in (base.HELD_OUT, base.EVALUATED)
        return self.held_out if self.held_out and evaluated else self.trained


class Skipped(NamedTuple):
    """The entries that a walk left out: links to a folder above; number of files per ending."""

    loops: list[str]
    endings: Counter[str]


class Listing(NamedTuple):
    """The contents of a folder: classes with and without images; files and sizes, sorted."""

    class_names: tuple[str, ...]
    empty: tuple[str, ...]
    paths: tuple[str, ...]  # relative, with /
    sizes: tuple[int, ...]  # bytes
    skipped: Skipped


class Files(Source):
    """Files, without classes. Their paths are one block of bytes, which readers receive quickly.

    paths: below `root`, which may be empty. sizes: bytes of each.
    """

    class_names: tuple[str, ...] = (NO_CLASS,)

    def __init__(self, root: str, name: str, paths: Sequence[str], sizes: Sequence[int]) -> None:
        self.root, self.name = root, name
        ended = os.fsencode("\0".join([*paths, ""]))
        self.block = ended.replace(b"\0", b"")
        ends = np.flatnonzero(np.frombuffer(ended, np.uint8) == 0)
        self.ends = ends - np.arange(len(ends))
        self.sizes = np.array(sizes, np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, index: int) -> str:
        """Return the path of a file relative to the folder."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]])

    def name_of(self, index: int) -> str:
        return os.path.join(self.root, self.path(index))

    def __getitem__(self, index: int) -> Record:
        return record(self.name_of(index), 0)

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.block + self.ends.tobytes() + self.sizes.tobytes())
        return {"name": "folder", "length": len(self), "sha256": digest.hexdigest()}

    def identities(self) -> np.ndarray:
        ends = [0, *self.ends.tolist()]
        paths = (self.block[start:end] for start, end in itertools.pairwise(ends))
        both = zip(paths, self.sizes.tolist(), strict=True)
        return np.fromiter(map(hash, both), np.int64, len(self))


class Folder(Files):
    """Files of a folder; each belongs to the class that the first folder of its path names."""

    def __init__(self, root: Path, name: str, found: Listing) -> None:
        super().__init__(str(root), name, found.paths, found.sizes)
        self.class_names, self.empty, self.skipped = found.class_names, found.empty, found.skipped
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.label = np.array([numbers[_class_of(path)] for path in found.paths], np.int32)

    def __getitem__(self, index: int) -> Record:
        return record(self.name_of(index), int(self.label[index]))

    def labels(self) -> np.ndarray:
        return self.label


def without_images(source: Source) -> list[str]:
    """Return the printable names of the classes of which a folder's part has no image."""
    folder = base.innermost(source)
    if not isinstance(folder, Folder):
        return []
    found = set(folder.label.tolist())
    return [base.printable(name) for i, name in enumerate(folder.class_names) if i not in found]


def record(path: str, label: int) -> Record:
    """Read a file; an OSError takes the place of its bytes."""
    try:
        with open(path, "rb") as file:
            return Record(file.read(), label, path)
    except OSError as error:
        return Record(error, label, path)


def load(where: str, part: str, data: options.Data, labelled: bool = True) -> Folder:
    """Return one part of a folder; DataError without images or, if labelled, without classes."""
    if part in (base.KEPT, base.HELD_OUT):
        return load_both(where, data, labelled)[part == base.HELD_OUT]
    return whole(existing_parts(where).of(part), labelled)


def load_both(where: str, data: options.Data, labelled: bool = True) -> tuple[Folder, Folder]:
    """Return the images to train on and those held out; without such parts in one walk."""
    found = existing_parts(where)
    if found.held_out is None:
        return shares(found.trained, data.holdout, labelled)
    return whole(found.trained, labelled), whole(found.held_out, labelled)


def existing_parts(where: str) -> Parts:
    """Return `class_parts` of a folder; DataError if there is none."""
    if on_bucket(where):
        raise base.unpacked(f"folder:{where}")
    root = base.expanded(where)
    if not root.is_dir():
        raise DataError(
            f"folder:{where}: there is no such folder; set --config.data.train=folder:PATH"
        )
    return class_parts(root)


def whole(root: Path, labelled: bool) -> Folder:
    return Folder(root, f"folder:{root}", listing(root, labelled))


def parts(root: Path) -> Parts:
    """Return the folders that are named like parts, in upper or lower case; else `root` itself.

    Of several for one part, the first in TRAINED or HELD_OUT is taken.
    """
    order = {name: number for number, name in enumerate(TRAINED + HELD_OUT)}
    named = [path for path in root.iterdir() if path.name.lower() in order and path.is_dir()]
    named.sort(key=lambda path: (order[path.name.lower()], path.name))
    trained = [path for path in named if path.name.lower() in TRAINED]
    held_out = [path for path in named if path not in trained]
    if not trained:
        return Parts(root, None, tuple(path.name for path in named))
    unused = tuple(path.name for path in trained[1:] + held_out[1:])
    return Parts(trained[0], held_out[0] if held_out else None, unused)


def class_parts(root: Path) -> Parts:
    """Return the parts of a folder of classes; a class may be named like a part.

    A folder is a part only if no folder with another kind of name has images. DataError if there
    are such folders beside both parts, or no part for training.
    """
    found = parts(root)
    if found.trained == root and not found.unused:
        return found
    others = [
        entry.name
        for entry in _shown(root)
        if entry.name.lower() not in TRAINED + HELD_OUT
        and _kind(entry) == "folder"
        and any(_images(entry.path, "", frozenset(), Skipped([], Counter())))
    ]
    if others and found.held_out:
        train, held_out = found.trained.name, found.held_out.name
        raise DataError(
            f"{root} has folders named like parts, {train} and {held_out}, but also others with "
            f"images: {', '.join(map(base.printable, sorted(others)[:5]))}. To use the parts, set "
            f"--config.data.train=folder:{found.trained} --config.data.eval=folder:"
            f"{found.held_out}; if all are classes, rename {train}"
        )
    if others:
        return Parts(root, None)
    if found.trained == root:
        raise DataError(
            f"{root} has the parts {', '.join(found.unused)}, but none for training; to use one of "
            f"them, write folder:{root}/{found.unused[0]}"
        )
    return found


def unused(spec: str) -> tuple[str, ...]:
    """Return the folders of a source KIND:PATH that are named like parts but not read."""
    kind, _, where = spec.partition(":")
    root = base.expanded(where)
    find = {"folder": class_parts, "records": parts, "pairs": parts}.get(kind)
    return find(root).unused if find and root.is_dir() else ()


def shares(root: Path, holdout: float, labelled: bool) -> tuple[Folder, Folder]:
    """Return the images to train on, with what their walk left out, and those held out."""
    found = listing(root, labelled)
    classes = itertools.groupby(found.paths, _class_of)
    chosen = held_out((list(paths) for _, paths in classes), holdout)
    is_held_out = np.fromiter((path in chosen for path in found.paths), bool, len(found.paths))
    parts = []
    for part, own in ((base.KEPT, ~is_held_out), (base.HELD_OUT, is_held_out)):
        if not own.any():
            raise base.NothingHeldOut(
                f"{root} has {counted(len(found.paths), 'image')}, of which "
                f"config.data.holdout={holdout:g} leaves none {part}; set "
                "--config.data.eval=folder:PATH or another share"
            )
        paths, sizes = (tuple(itertools.compress(of, own)) for of in (found.paths, found.sizes))
        own_listing = found._replace(paths=paths, sizes=sizes)
        parts.append(Folder(root, f"folder:{root} ({part})", own_listing))
        found = found._replace(empty=(), skipped=Skipped([], Counter()))
    return parts[0], parts[1]


def held_out(classes: Iterable[Sequence[str]], holdout: float) -> set[str]:
    """Return the names that are held out: a share of each class, rounded, but never all of it.

    They are those with the smallest hashes, so that a new name moves at most one other.
    """
    chosen: set[str] = set()
    for names in classes:
        count = min(int(holdout * len(names) + 0.5), len(names) - 1)
        encoded = os.fsencode("\0".join(names)).split(b"\0")
        hashes = [hashlib.sha256(name).digest() for name in encoded]
        name_of = dict(zip(hashes, names, strict=True))
        chosen.update(name_of[smallest] for smallest in sorted(hashes)[:count])
    return chosen


def _class_of(path: str) -> str:
    return path.split("/", 1)[0] if "/" in path else NO_CLASS


def listing(root: Path, labelled: bool = True) -> Listing:
    """Return the images of a folder; DataError if they have no classes but need them."""
    shown = _shown(root)
    classes = sorted(entry.name for entry in shown if _kind(entry) == "folder")
    base.check_class_names(str(root), classes)
    skipped = Skipped([], Counter())
    above = frozenset({os.path.realpath(root)})
    of_class = {
        name: _sorted(_images(str(root / name), f"{name}/", above, skipped)) for name in classes
    }
    full = [name for name in classes if of_class[name]]
    if not full and not labelled and (alone := files(root, skipped)):
        paths, sizes = zip(*alone, strict=True)
        return Listing((NO_CLASS,), (), paths, sizes, skipped)
    loose = sum(os.path.splitext(entry.name)[1].lower() in ENDINGS for entry in shown)
    if not full:
        found = "nothing that ends like an image"
        if loose:
            found = f"{counted(loose, 'image')} without one"
        if skipped.endings:
            found += ", but " + ", ".join(f"{n:,} {x}" for x, n in skipped.endings.most_common(5))
        raise DataError(
            f"{root} has no images in folders of classes ({found}); it needs {root}/CLASS/IMAGE.jpg"
        )
    if loose:
        skipped.endings["beside the classes"] = loose
    paths = tuple(path for name in full for path in of_class[name])
    sizes = tuple(size for name in full for size in of_class[name].values())
    empty = tuple(name for name in classes if not of_class[name])
    return Listing(tuple(full), empty, paths, sizes, skipped)


def files(root: Path, skipped: Skipped | None = None) -> list[tuple[str, int]]:
    """Return (relative path, size) of the images below a folder, sorted."""
    found = _images(str(root), "", frozenset(), skipped or Skipped([], Counter()))
    return list(_sorted(found).items())


def _sorted(found: Iterable[dict[str, int]]) -> dict[str, int]:
    size_of: dict[str, int] = {}
    for of_folder in found:
        size_of |= of_folder
    return {path: size_of[path] for path in sorted(size_of)}


def _shown(root: Path) -> list[os.DirEntry]:
    return [entry for entry in os.scandir(root) if not entry.name.startswith(".")]


def _images(
    folder: str, relative: str, above: frozenset[str], skipped: Skipped
) -> Iterator[dict[str, int]]:
    """Yield path -> size of the images of a folder, then of those below it, except hidden ones.

    relative: what their paths begin with. The size of a file that cannot be examined is -1.
    """
    here = os.path.realpath(folder)
    if here in above:
        skipped.loops.append(relative.removesuffix("/"))
        return
    sizes: dict[str, int] = {}
    below: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            kind, ending = _kind(entry), name[name.rfind(".") :].lower()
            if kind == "folder":
                below.append(name)
            elif kind in ("file", "broken") and ending in ENDINGS:
                sizes[relative + name] = _size(entry)
            elif kind == "file":
                skipped.endings[os.path.splitext(name)[1].lower() or "without ending"] += 1
    if sizes:
        yield sizes
    for name in below:
        inside = os.path.join(folder, name)
        yield from _images(inside, f"{relative}{name}/", above | {here}, skipped)


def _kind(entry: os.DirEntry) -> str:
    """Return folder, file, broken (a dangling or circular link) or other (a pipe, a device)."""
    try:
        if entry.is_file():  # most are, and the system need not be asked again
            return "file"
        return "folder" if stat.S_ISDIR(entry.stat().st_mode) else "other"
    except OSError:
        return "broken"


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1
