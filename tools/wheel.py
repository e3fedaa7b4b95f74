"""Compare a wheel with this tree, from which it claims to be built.

    python tools/wheel.py                                  # one that is built of it
    python tools/wheel.py supmim-0.2.0-py3-none-any.whl    # a published one, at its tag

Every module and preset of the tree must be there with the same bytes, what it requires and runs
must be that of a wheel built here, and there must be nothing else: a release that carries more than
its repository is how malware was spread.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRESETS = re.compile("^configs/")  # their place in a wheel is supmim/presets/
ABOUT = re.compile(
    r"^supmim-[^/]+\.dist-info/"
    r"(METADATA|WHEEL|RECORD|entry_points\.txt|top_level\.txt|licenses/LICENSE)$"
)


def expected(root: Path) -> dict[str, bytes]:
    """Return name in a wheel -> content, of the files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "supmim/*.py", "configs/*.py"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = [name for name in listed.stdout.splitlines() if (root / name).is_file()]
    return {PRESETS.sub("supmim/presets/", name): (root / name).read_bytes() for name in names}


def promises(wheel: Path) -> set[str]:
    """Return the lines that say what an installation brings and which commands it makes."""
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            name.rpartition("/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if name.endswith(("METADATA", "entry_points.txt"))
        }
    head = texts["METADATA"].partition("\n\n")[0].splitlines()
    required = [line for line in head if line.startswith(("Requires-", "Provides-Extra"))]
    return {*required, *texts["entry_points.txt"].split("\n")}


def differences(wheel: Path, ours: Path, root: Path = ROOT) -> list[str]:
    """Return a line for each file that differs, is missing, or does not belong there.

    ours: a wheel built of the tree, for what the other promises.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not ABOUT.match(name)]
        found = {name: archive.read(name) for name in names}
    files = expected(root)
    differ = {name for name in files.keys() & found.keys() if files[name] != found[name]}
    return [
        *(f"only in the wheel: {name}" for name in sorted(found.keys() - files.keys())),
        *(f"missing: {name}" for name in sorted(files.keys() - found.keys())),
        *(f"differs: {name}" for name in sorted(differ)),
        *(f"only one of both says: {line}" for line in sorted(promises(wheel) ^ promises(ours))),
    ]


def built(folder: Path) -> Path:
    """Build a wheel of the tree in a folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", f"--wheel-dir={folder}", str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        ours = built(Path(folder))
        wheel = Path(sys.argv[1]) if len(sys.argv) > 1 else ours
        lines = differences(wheel, ours)
        print("\n".join(lines) or f"{wheel.name} holds what the tree holds")
    sys.exit(bool(lines))
