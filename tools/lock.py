"""Write the lock file of CI: every package that the tests need, with its version and SHA-256.

    python tools/lock.py           # write it
    python tools/lock.py --fits    # exit code 0 if it is for this Python and platform

It holds for the Python and the platform that it is run with, which stand in its first line.
CI installs it with pip's hash checking mode, so that a package which was exchanged is refused. To
compare the versions with published advisories: pip install pip-audit && pip-audit -r .ci/lock.txt
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / ".ci/lock.txt"


def this() -> str:
    """Return what wheels depend on: Python, system and processor."""
    version = ".".join(platform.python_version_tuple()[:2])
    return f"Python {version}, {platform.system()}, {platform.machine()}"


def resolved() -> list[dict]:
    """Return what pip would install into an empty environment, newest versions that fit."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    report = ["--dry-run", "--ignore-installed", "--report=-", f"{ROOT}[test]"]
    done = subprocess.run([*pip, *report], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["install"]


def text(packages: list[dict]) -> str:
    """Return the lock file of the packages of pip's report, without where they come from."""
    lines = [f"# {this()}; written by tools/lock.py"]
    found = {}
    for package in packages:
        name = package["metadata"]["name"].lower()
        if name != "supmim":
            digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
            found[name] = f"{name}=={package['metadata']['version']} --hash=sha256:{digest}"
    return "\n".join([*lines, *(found[name] for name in sorted(found))]) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--fits"]:
        sys.exit(not LOCK.read_text().startswith(f"# {this()};"))
    packages = resolved()
    LOCK.write_text(text(packages))
    print(f"written     {LOCK.relative_to(ROOT)}, {len(packages) - 1} packages, for {this()}")
