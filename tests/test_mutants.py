"""tools/mutants.py: its list fits the code, and it tells what tests notice."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools/mutants.py")
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)
LISTED = mutants.read_table()


@pytest.mark.parametrize("mutant", LISTED, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_its_tests_exist(mutant):
    mutants.check(mutant)


def test_mutants_are_in_every_folder_and_few_survive():
    folders = {path.parent.name for path in (ROOT / "supmim").rglob("*.py")}
    changed = {(ROOT / "supmim" / mutant.file).parent.name for mutant in LISTED}
    assert changed >= folders - {"supmim"} and len(LISTED) >= 100
    assert sum(bool(mutant.survives) for mutant in LISTED) <= 5


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("a = 1", "m: in supmim/x.py, 'b = 2' is not there"),
        ("b = 2\nb = 2", "m: in supmim/x.py, 'b = 2' is there 2 times"),
        ("b = 2 + (\n1)", "m: 'b = (' is not Python"),
    ],
)
def test_a_mutant_that_does_not_apply_is_named(source, told):
    mutant = mutants.Mutant("m", "x.py", "b = 2", "b = (", ("test_x.py",), "", False)
    with pytest.raises(mutants.TableError) as caught:
        mutant.apply(source)
    assert told in str(caught.value)
    same = mutant._replace(new="b = (2)")
    with pytest.raises(mutants.TableError, match="means the same"):
        same.apply("b = 2")


CODE = "def even(n):\n    while n > 1:\n        n -= 2\n    return n == 0\n"
TESTS = """
from supmim.code import even

def test_even():
    assert even(2) and not even(3)

def test_nothing():
    even(2)

def test_wrong():
    assert even(1)
"""
TABLE = """
fast = ["killed", "left", "late", "broken"]
survivors = {}
["code.py"]
killed = ["n == 0", "n != 0", "test_code.py::test_even"]
left = ["n == 0", "n != 0", "test_code.py::test_nothing"]
late = ["n -= 2", "n -= 0", "test_code.py::test_even"]
broken = ["def even(n)", "def odd(n)", "test_code.py::test_even"]
unfit = ["n == 0", "n != 0", "test_code.py::test_wrong"]
"""


@pytest.fixture
def project(tmp_path):
    """A small working tree with the tool, and a function that runs it there."""
    tool = (ROOT / "tools/mutants.py").read_text()
    start, end = tool.index("LIBRARIES = ("), tool.index("PASSED, ")
    files = {
        "supmim/__init__.py": "", "supmim/code.py": CODE, "tests/test_code.py": TESTS,
        "tools/mutants.py": f'{tool[:start]}LIBRARIES = ("pytest",)\n{tool[end:]}',
        "tools/mutants.toml": TABLE,
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    def run(*flags):
        command = [sys.executable, str(tmp_path / "tools/mutants.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        assert {name: (tmp_path / name).read_text() for name in files} == files
        return done.returncode, done.stdout + done.stderr

    return run


def test_what_tests_notice_is_counted_and_the_tree_stays_as_it_was(project):
    code, out = project("--fast", "--limit=4", "-j", "2")
    told = {
        line.split()[-1]: line.rsplit(maxsplit=3)[0] for line in out.splitlines() if " s  " in line
    }
    assert told == {"killed": "killed", "left": "SURVIVED", "late": "killed, out of time",
                    "broken": "NOT RUN"}  # fmt: skip
    assert code == 2 and "killed: 2 of 4" in out
    assert "survived: left: no test noticed it" in out and "the tests of broken could not" in out
    assert project("--only=left")[0] == 1 and project("--only=killed")[0] == 0


def test_a_test_that_fails_anyway_kills_nothing(project):
    code, out = project("--only=unfit")
    assert code == 2 and "without a mutant, these tests do not pass" in out
    assert project("--only=none") == (2, "mutants.toml has no mutant none\n")
