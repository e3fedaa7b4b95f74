"""The table of faults: its page, its tests, and the errors that name its rows."""

import ast
import importlib.util
import tomllib
from pathlib import Path

from supmim import errors
from supmim.errors import SupmimError

ROOT = Path(__file__).parents[1]


def rows():
    """Name -> row of the table."""
    groups = tomllib.loads((ROOT / "supmim/runtime/faults.toml").read_text())
    return {name: row for group in groups.values() for name, row in group.items()}


def raised():
    """Name of a row -> exit codes of the errors in the code that name it."""
    found = {}
    for path in (ROOT / "supmim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                if keyword.arg == "fault" and isinstance(node.func, ast.Name):
                    code = getattr(errors, node.func.id).exit_code
                    found.setdefault(ast.literal_eval(keyword.value), set()).add(str(code))
    return found


def test_the_page_of_faults_is_that_of_the_table_and_its_tests_exist():
    spec = importlib.util.spec_from_file_location("faults_page", ROOT / "tools/faults_page.py")
    faults_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults_page)
    assert faults_page.PAGE.read_text() == faults_page.page()
    every = rows()
    assert len(every) == 58
    codes = {str(kind.exit_code) for kind in SupmimError.__subclasses__()}
    for name, row in every.items():
        assert row.keys() - {"told_as"} == {"fault", "behaviour", "code", "test"}
        assert row["code"] in {*codes, "", "0", "128 + signal"}, name
        file, _, test = row["test"].partition("::")
        missing = "yet" in row["behaviour"] or "does not apply" in row["behaviour"]
        assert bool(file) or missing, name
        if file:
            assert f"def {test}(" in (ROOT / f"tests/test_{file}.py").read_text(), name


def test_errors_name_their_rows_and_have_their_exit_codes():
    every = rows()
    told_as = {name: row["told_as"] for name, row in every.items() if "told_as" in row}
    assert all(every[name]["code"] == every[other]["code"] for name, other in told_as.items())
    ends = {name for name, row in every.items() if row["code"].isdecimal() and row["code"] != "0"}
    assert raised() == {name: {every[name]["code"]} for name in ends - told_as.keys()}


def test_a_message_begins_with_its_row():
    assert str(errors.DataError("no images", fault="I7")) == "[I7] no images"
    assert str(errors.DataError("no images")) == "no images"


def test_an_error_told_of_a_file_still_begins_with_its_row():
    found = errors.DataError("no images", fault="I7").at("runs/x")
    assert str(found) == "[I7] runs/x: no images" and isinstance(found, errors.DataError)
