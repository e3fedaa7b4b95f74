"""Breaks the code one line at a time and counts how often a test notices.

    python tools/mutants.py --fast          # some mutants, about a minute
    python tools/mutants.py -j 2            # all of them
    python tools/mutants.py --only=NAME     # one, with the output of its tests

The mutants are listed in tools/mutants.toml. Each is planted in a temporary copy of the working
tree, and the tests named with it run there. A mutant is killed if a test fails, or if the time is
up. The exit code is 1 if a mutant survives that the list does not give a reason for, and 2 if the
list does not fit the code or a test fails without any mutant.
"""

import argparse
import ast
import contextlib
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tools" / "mutants.toml"
UNCHANGED = "without a mutant"
# Imported once; the processes that run tests are forked from here, which saves them seconds.
LIBRARIES = ("pytest", "jax", "flax.linen", "optax", "orbax.checkpoint", "clu.metrics",
             "grain", "matplotlib.figure", "scipy.ndimage", "sklearn.manifold")  # fmt: skip
PASSED, FAILED = 0, 1  # exit codes of pytest


class TableError(Exception):
    """The list of mutants does not fit the code."""


class Mutant(NamedTuple):
    """One change: `old`, found once in supmim/`file`, becomes `new`; `tests` should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str  # why no test can notice, if none can
    fast: bool

    def apply(self, source: str) -> str:
        """Return the changed source; TableError if the change does not apply or changes nothing."""
        if (count := source.count(self.old)) != 1:
            found = "is not there" if not count else f"is there {count} times"
            raise TableError(f"{self.name}: in supmim/{self.file}, {self.old!r} {found}")
        changed = source.replace(self.old, self.new)
        try:
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
        except SyntaxError as error:
            raise TableError(f"{self.name}: {self.new!r} is not Python: {error}") from error
        if same:
            raise TableError(f"{self.name}: {self.new!r} means the same as {self.old!r}")
        return changed


def read_table(path: Path = TABLE) -> list[Mutant]:
    """Return all mutants; TableError if two have one name."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    fast, survivors = set(table.pop("fast")), table.pop("survivors")
    rows = [
        Mutant(name, file, old, new, tuple(tests), survivors.get(name, ""), name in fast)
        for file, mutants in table.items()
        for name, (old, new, *tests) in mutants.items()
    ]
    names = [mutant.name for mutant in rows]
    for name in {*fast, *survivors, *names}:
        if names.count(name) != 1:
            raise TableError(f"{name} is the name of {names.count(name)} mutants")
    return rows


def check(mutant: Mutant, root: Path = ROOT) -> None:
    """Raise TableError unless the mutant applies to the code and its tests exist."""
    mutant.apply((root / "supmim" / mutant.file).read_text(encoding="utf-8"))
    if not mutant.tests:
        raise TableError(f"{mutant.name} names no test")
    for test in mutant.tests:
        file, _, function = test.partition("::")
        function = function.partition("[")[0]
        path = root / "tests" / file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not text or not re.search(rf"^def {function}" + (r"\b" if function else ""), text, re.M):
            raise TableError(f"{mutant.name}: there is no test {test}")


def copy_of_the_tree(to: Path) -> None:
    """Copy the files that git knows or would add, and compile them once for all copies."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    # Compiled files are matched by the hash of the source: a mutant may have size and time of it.
    quietly = ("-q", "--invalidation-mode=checked-hash", "supmim", "tests")
    subprocess.run([sys.executable, "-m", "compileall", *quietly], cwd=to, check=True)


def run_tests(folder: Path, tests: list[str], output: Path) -> None:
    """Run some tests in a copy of the tree; end this process with pytest's exit code."""
    os.setsid()
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(folder))
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"]
    code = importlib.import_module("pytest").main([*options, *(f"tests/{test}" for test in tests)])
    sys.stdout.flush()
    os._exit(code)


class Attempt(NamedTuple):
    """One run of some tests in a copy of the tree that is deleted afterwards."""

    process: BaseProcess
    folder: Path
    began: float


def start(base: Path, mutant: Mutant | None, tests: list[str]) -> Attempt:
    """Plant a mutant in a copy of `base` and start its tests."""
    folder = Path(tempfile.mkdtemp(dir=base.parent))
    shutil.copytree(base, folder / "tree")
    if mutant:
        path = folder / "tree" / "supmim" / mutant.file
        path.write_text(mutant.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
    process = multiprocessing.get_context("fork").Process(
        target=run_tests, args=(folder / "tree", tests, folder / "output")
    )
    process.start()
    return Attempt(process, folder, time.monotonic())


def finish(attempt: Attempt, limit: float) -> tuple[int | None, str]:
    """Return pytest's exit code, None if the time was up, and its output; delete the copy."""
    attempt.process.join(max(0.0, attempt.began + limit - time.monotonic()))
    code = attempt.process.exitcode
    with contextlib.suppress(ProcessLookupError):
        os.killpg(attempt.process.pid or 0, signal.SIGKILL)  # what the tests left behind, too
    attempt.process.join()
    output = (attempt.folder / "output").read_text(errors="replace")
    shutil.rmtree(attempt.folder, ignore_errors=True)
    return code, output


def outcomes(
    base: Path, mutants: list[Mutant], jobs: int, limit: float
) -> Iterator[tuple[Mutant, int | None, str, float]]:
    """Yield each mutant with exit code, output and seconds of its tests, as they end."""
    waiting, running = list(reversed(mutants)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            attempt = start(base, mutant, list(mutant.tests))
            running[attempt.process.sentinel] = mutant, attempt
        oldest = min(attempt.began for _, attempt in running.values())
        ended = wait(list(running), max(0.0, oldest + limit - time.monotonic()))
        late = [s for s, (_, a) in running.items() if time.monotonic() >= a.began + limit]
        for sentinel in {*ended, *late}:
            mutant, attempt = running.pop(sentinel)
            seconds = time.monotonic() - attempt.began
            yield mutant, *finish(attempt, limit), seconds


def measure(mutants: list[Mutant], jobs: int, limit: float, verbose: bool) -> int:
    """Print what became of each mutant, the total and the survivors; return the exit code."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        base.mkdir()
        copy_of_the_tree(base)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        code, output = finish(start(base, None, tests), limit * len(mutants))
        if code != PASSED:
            print(f"{output}\n{UNCHANGED}, these tests do not pass (pytest ended with {code})")
            return 2
        killed, survivors, faults = 0, [], []
        for mutant, code, output, seconds in outcomes(base, mutants, jobs, limit):
            what = {PASSED: "SURVIVED", FAILED: "killed", None: "killed, out of time"}.get(code)
            print(f"{what or 'NOT RUN':<19} {seconds:5.1f} s  {mutant.name}", flush=True)
            killed += code in (FAILED, None)
            survivors += [mutant] if code == PASSED else []
            faults += [] if what else [mutant]
            if verbose or not what:
                print(output)
    print(f"killed: {killed} of {len(mutants)}")
    for mutant in survivors:
        print(f"survived: {mutant.name}: {mutant.survives or 'no test noticed it'}")
    for mutant in faults:
        print(f"the tests of {mutant.name} could not be run: it must leave the code importable")
    return 2 if faults else int(any(not mutant.survives for mutant in survivors))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="run only the mutants listed as fast")
    parser.add_argument("--only", metavar="NAME", help="run one mutant and show its tests' output")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="how many run at once")
    parser.add_argument("--limit", type=float, default=180, help="seconds for each, 180 by default")
    flags = parser.parse_args(arguments)
    try:
        mutants = read_table()
        if flags.only and flags.only not in {mutant.name for mutant in mutants}:
            raise TableError(f"{TABLE.name} has no mutant {flags.only}")
        for mutant in mutants:
            check(mutant)
    except TableError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [
        mutant
        for mutant in mutants
        if (mutant.fast or not flags.fast) and flags.only in (None, mutant.name)
    ]
    return measure(chosen, flags.j, flags.limit, verbose=bool(flags.only))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
