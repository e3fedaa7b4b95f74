"""The README's first command, end to end on real data; as written with -m slow."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from supmim.workdir.writer import read_metrics
from tests.conftest import USERS_XLA_FLAGS

ROOT = Path(__file__).parents[1]
COMMAND = "supmim train --config=digits --workdir=runs/digits"
# Images as they lie, averaged over fewer steps, are learned in a tenth of the epochs, and by a
# network of half the width.
SHORTER = [
    "--config.total_epochs=18", "--config.log_every=30", "--config.optimizer.warmup_steps=20",
    "--config.optimizer.ema_decay=0.95", "--config.data.mixup=0", "--config.data.shift=0",
    "--config.data.rotate=0", "--config.data.scale=0", "--config.data.shear=0",
    "--config.encoder.width=32", "--config.encoder.depth=2", "--config.encoder.mlp_dim=96",
    "--config.decoder.width=32", "--config.decoder.mlp_dim=64",
]  # fmt: skip


@pytest.mark.parametrize(
    ("shorter", "least", "mim_share"),
    [
        (SHORTER, 0.85, 0.8),
        pytest.param([], 0.97, 0.8, marks=pytest.mark.slow),
    ],
)
def test_first_command(tmp_path, shorter, least, mim_share):
    assert f"pip install -e . && {COMMAND}" in (ROOT / "README.md").read_text()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    bin_folder = Path(sys.executable).parent
    program, *args = shlex.split(COMMAND)
    done = subprocess.run(
        [bin_folder / program, *args, *shorter], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ
        | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
        | ({} if shorter else {"XLA_FLAGS": USERS_XLA_FLAGS}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    workdir = tmp_path / "runs/digits"
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "class_loss" in row]
    for name, share in (("class_loss", 0.5), ("mim_loss", mim_share)):
        assert rows[-1][name] < share * rows[0][name], name
    results = json.loads((workdir / "results.json").read_text())
    assert results["classification/top1"] > least and results["knn/recall_at_1"] > least
    assert results["reconstruction/token_accuracy"] > results["floor/token_accuracy"]
    for name in ("curves", "reconstructions", "neighbours"):
        assert (workdir / "pictures" / f"{name}.png").stat().st_size > 10_000
    assert (workdir / "report.html").stat().st_size > 100_000
