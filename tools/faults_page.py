"""Make docs/faults.md of supmim/runtime/faults.toml.

python tools/faults_page.py
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE, PAGE = ROOT / "supmim/runtime/faults.toml", ROOT / "docs/faults.md"
COLUMNS = "| | fault | what happens | exit code | test |\n|---|---|---|---|---|"
HEAD = """\
# What can go wrong, and what supmim then does

Each row is held by a test, or says what is missing. The message of an error begins with its row,
as in `supmim: [R14] no good checkpoint is left`. [troubleshooting.md](troubleshooting.md) has the
exit codes, [launch/README.md](../launch/README.md) a drill. `python tools/faults_page.py` writes
this page.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for group, rows in tomllib.loads(TABLE.read_text()).items():
        parts += [f"## {group}\n", COLUMNS]
        for name, row in rows.items():
            file, _, test = row["test"].partition("::")
            where = f"[{file}](../tests/test_{file}.py) `{test}`" if file else "none yet"
            cells = (name, row["fault"], row["behaviour"], row["code"], where)
            parts.append(f"| {' | '.join(cells)} |")
        parts[-1] += "\n"
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written     {PAGE.relative_to(ROOT)}")
