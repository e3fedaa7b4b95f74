"""Every Python example of docs/api.md and docs/export.md runs as it stands, but PyTorch's."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from supmim.interop import export, load
from tests.conftest import digits
from tests.test_evaluate import stored_run

ROOT = Path(__file__).parents[1]
PAGES = "".join((ROOT / "docs" / name).read_text() for name in ("api.md", "export.md"))
BLOCKS = re.findall(r"```python(?: plain)?\n(.*?)```", PAGES, re.S)

PRESET = """
from tests.test_python import SHORT, tiny_preset

def get_config():
    return tiny_preset(**SHORT)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    (folder / "runs").mkdir()
    model = load.load(stored_run(folder / "runs" / "digits", 0.1))
    export.export(model, "timm", folder / "exported", {})
    export.export(model, "stablehlo", folder / "program", {})
    for name, index in (("a", 0), ("b", 1)):
        Image.fromarray(digits("test")[index].image[..., 0]).save(folder / f"{name}.png")
    (folder / "configs").mkdir()
    (folder / "configs/digits.py").write_text(PRESET)
    return folder


def test_examples_run_in_their_order_and_plain_jax_computes_the_same(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict = {}
    assert len(BLOCKS) == 7 and len(BLOCKS[-1].splitlines()) < 50
    with jax.numpy_rank_promotion("allow"):  # as it is for users
        for block in BLOCKS:
            exec(compile(block, "docs", "exec"), names)
    embeddings = names["model"].embed(["a.png", "b.png"])
    np.testing.assert_allclose(names["embeddings"], embeddings, atol=1e-5)
    assert "missing.png cannot be read: No such file or directory" in capsys.readouterr().out
    assert names["saliency"].shape == (2, 8, 8, 1) and names["saliency"].std() > 0
    assert names["out"].logits.shape == (2, 10)
    np.testing.assert_allclose(names["outputs"][0], names["out"].embedding, atol=1e-5)
    assert "knn/recall_at_1" in names["more"] and "classification/top1" in names["results"]
