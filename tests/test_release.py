"""What is released: a wheel that holds the tree and works elsewhere, and packages with hashes."""

import re
import runpy
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in names.split("\n"):
        if (ROOT / name).is_file() and name.startswith(("setup.py", "supmim", "configs", "READ")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", tree]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel):
    """The folder in which it is installed."""
    target = wheel.parent / "installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--no-index", f"--target={target}", wheel]
    subprocess.run(install, check=True, capture_output=True)
    return target


def test_an_installed_wheel_has_the_presets_and_trains_outside_a_clone(installed, tmp_path):
    steps = [
        "--config.batch_size=750",
        "--config.total_epochs=1",
        "--config.eval.evaluators=classification",
    ]
    steps += ["--config.optimizer.warmup_steps=1", "--config.mim_weight=0"]
    steps += ["--config.encoder.depth=1", "--config.encoder.width=16", "--config.eval_every=0"]
    steps += ["--config.encoder.mlp_dim=16", "--config.decoder.width=16", "--config.data.mixup=0"]
    steps += ["--config.eval.batch_size=99", "--config.checkpoint.keep_best=0"]
    script = f"""
import os, sys
sys.path.insert(0, {str(installed)!r})
import supmim, supmim.presets.digits
from supmim import cli
assert supmim.__file__.startswith({str(installed)!r})
assert cli.run(["configs"]) == 0
if __name__ == "__main__":
    sys.exit(cli.run(["train", "--config=digits", "--workdir=run", *{steps!r}]))
"""
    (tmp_path / "main.py").write_text(script)
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"They are the files in {installed}/supmim/presets" in done.stdout
    assert (tmp_path / "run/report.html").is_file()


def test_a_wheel_is_compared_with_the_tree(wheel, tmp_path):
    """An added module, a changed one and a missing one are found; supmim's own wheel has none."""
    tool = runpy.run_path(str(ROOT / "tools/wheel.py"))
    assert tool["differences"](wheel, wheel) == []
    changed = tmp_path / "changed.whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            if name != "supmim/step.py":
                data = source.read(name)
                if name == "supmim/presets/digits.py":
                    data += b"import miner\n"
                if name.endswith("METADATA"):
                    data = data.replace(b"Requires-Dist: jax", b"Requires-Dist: miner, jax", 1)
                target.writestr(name, data)
        target.writestr("supmim/miner.py", "")
        target.writestr("supmim-0.2.0.dist-info/evil.pth", "import miner")
    found = tool["differences"](changed, wheel)
    assert [line.partition(": ")[0] for line in found[4:]] == ["only one of both says"] * 2
    assert "miner" in found[-1] + found[-2]
    assert found[:4] == [
        "only in the wheel: supmim-0.2.0.dist-info/evil.pth", "only in the wheel: supmim/miner.py",
        "missing: supmim/step.py", "differs: supmim/presets/digits.py",
    ]  # fmt: skip


def test_the_lock_file_has_a_hash_of_all_that_the_tests_need():
    """And no name of a host; a version that the tree no longer takes is told here."""
    lines = (ROOT / ".ci/lock.txt").read_text().splitlines()[1:]
    form = re.compile(r"([a-z0-9._-]+)==([^ ]+) --hash=sha256:[0-9a-f]{64}")
    matches = filter(None, map(form.fullmatch, lines))
    locked = {match[1].replace("_", "-"): match[2] for match in matches}
    assert len(locked) == len(lines) > 50
    for text in metadata.requires("supmim"):
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": "test"}):
            version = locked[needed.name.lower().replace("_", "-")]
            assert needed.specifier.contains(version), text
    assert "--require-hashes -r .ci/lock.txt" in (ROOT / ".ci/run").read_text()
