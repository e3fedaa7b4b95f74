"""Files of arrays from elsewhere: safetensors, NumPy's npz and Flax's msgpack, never a pickle."""

import re
import shlex
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import load_file

from supmim.errors import CheckpointError, counted
from supmim.runtime.streams import printable

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
CONVERT_PICKLE = """\
  python -c "import sys, torch; from safetensors.torch import save_file as s; \\
    w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); \\
    w = w.get('state_dict', w); \\
    s({{k: v.clone() for k, v in w.items()}}, 'model.safetensors')" {path}
timm's config.json belongs beside it"""
CONVERT_OBJECTS = """\
  python -c "import sys, numpy as np; w = np.load(sys.argv[1], allow_pickle=True); \\
    np.savez('weights.npz', **{{k: np.array(w[k].tolist(), 'float32') for k in w}})" {path}"""
NUMBERS = "biufV"  # kinds of NumPy's types; V: bfloat16 and its like
OUTSIDE_PARAMS = "beside params/"  # prefix of the names of other parts of a Flax train state
MOST_MEMBERS, LARGEST_RATIO, SMALL = 100_000, 20, 2**24  # of an npz; its unpacked bytes
MAX_ROWS = 20  # of a table of tensors
NAME_WIDTH = 44  # columns of a tensor's name in that table
LONGEST_REASON = 200  # characters


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file, recognised by its content.

    CheckpointError if it is a pickle, which is not opened, or damaged, or would unpack to far more
    than its size.
    """
    if path.is_dir():
        inside = next((file.name for file in sorted(path.iterdir()) if file.is_file()), "FILE")
        raise CheckpointError(f"{path} is a folder: give the file, e.g. {path / inside}")
    try:
        with path.open("rb") as file:
            head = file.read(16)
        is_safetensors = head[8:9] == b"{"  # the length before it may begin like a pickle
        is_zip = head[:4] == b"PK\x03\x04"  # PyTorch's pickles are archives too
        # No msgpack map that holds anything begins with the first byte of a pickle.
        is_pickle = not is_safetensors and (head[:1] == b"\x80" or (is_zip and not is_npz(path)))
        if path.suffix.lower() in PICKLE_SUFFIXES or is_pickle:
            raise CheckpointError(
                f"{path} is a pickle, or named like one. A pickle can run any code, so supmim "
                "opens none. If you trust it, convert it where PyTorch is installed:\n"
                + CONVERT_PICKLE.format(path=shlex.quote(str(path))),
                fault="S1",
            )
        if is_zip:
            stored = read_npz(path)
        else:
            stored = load_file(path) if is_safetensors else read_msgpack(path.read_bytes())
        if odd := [name for name, array in stored.items() if array.dtype.kind not in NUMBERS]:
            raise CheckpointError(
                f"{path}: {short(odd[0])} does not hold numbers; write the file again without it"
            )
        return stored
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what is raised depends on the damage
        why = str(error)[:LONGEST_REASON].rstrip(".") or type(error).__name__
        raise CheckpointError(
            f"{path} is not a complete file of safetensors, npz or Flax's msgpack: {why}. "
            "Download it again, and compare its size",
            fault="S2",
        ) from error


def is_npz(path: Path) -> bool:
    """Return whether all members of an archive are arrays of NumPy."""
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def read_npz(path: Path, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an npz, or only those named.

    ValueError for object arrays, duplicates and archive bombs; KeyError for a name that is missing.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        members = stored.zip.infolist()
        size = sum(member.file_size for member in members)
        if len(members) > MOST_MEMBERS or len({m.filename for m in members}) < len(members):
            raise ValueError(
                f"it has {counted(len(members), 'member')}, too many or two of one name"
            )
        if size > SMALL and size > LARGEST_RATIO * path.stat().st_size:
            raise ValueError(f"it would unpack to {counted(size, 'byte')}, far more than its size")
        try:
            return {name: stored[name] for name in names or stored.files}
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise CheckpointError(
                f"{path} has arrays of Python objects, which are pickles. A pickle can run any "
                "code, so supmim opens none. If you trust it, convert it where it may run:\n"
                + CONVERT_OBJECTS.format(path=shlex.quote(str(path))),
                fault="S1",
            ) from error


def read_msgpack(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a Flax msgpack blob; the parameters may be under `params`."""
    tree = serialization.msgpack_restore(data)
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not a tree of parameters")
    flat = traverse_util.flatten_dict(tree, sep="/")
    if "params" in tree:
        flat = {
            name.removeprefix("params/") if name.startswith("params/") else OUTSIDE_PARAMS + name: x
            for name, x in flat.items()
        }
    return {name: np.asarray(leaf) for name, leaf in flat.items()}


def highest(names: Collection[str], pattern: str) -> int:
    """Return the highest number that a pattern finds in whole names, or -1 if none matches.

    Numbers as large as the number of names, or larger, are ignored: lower ones must be missing.
    """
    texts = (match[1] for name in names if (match := re.fullmatch(pattern, name)))
    numbers = (int(text) for text in texts if len(text) < 10)
    return max((number for number in numbers if number < len(names)), default=-1)


def short(name: str) -> str:
    """Return a name of at most NAME_WIDTH characters, all printable."""
    name, half = printable(name), NAME_WIDTH // 2 - 2
    return name if len(name) <= NAME_WIDTH else f"{name[:half]}...{name[-half:]}"


def table(rows: Iterable[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None]]) -> str:
    """Return lines of (tensor, expected shape, shape in the file), cut if there are many."""
    cells = [("tensor", "expected", "found")]
    for name, expected, found in rows:
        a, b = ("-" if shape is None else str(list(shape)) for shape in (expected, found))
        cells.append((short(name), a, b))
    shown, more = cells[: MAX_ROWS + 1], len(cells) - 1 - MAX_ROWS
    lines = [f"  {name:<{NAME_WIDTH}} {a:<16} {b}".rstrip() for name, a, b in shown]
    return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))
