"""Exported folders in timm and transformers, in an environment of their own (CONTRIBUTING.md)."""

import itertools
import json
import os
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from supmim.config import options
from supmim.interop import export, load
from tests.test_export import images_of, model_of
from tests.test_vit_interop import config_with

PYTHON = os.environ.get("SUPMIM_TORCH_PYTHON", "")
TOLERANCE = 1e-4
EXTRAS = {
    "plain": {},
    "layer_scale": {"layer_scale": 0.1},
    "registers": {"registers": 3},
    "both": {"layer_scale": 0.1, "registers": 3, "gelu": "exact"},
    "sincos": {"positions": "sincos2d"},
}
SCRIPT = """
import json, sys
import numpy as np, onnxruntime, timm, torch
from PIL import Image
from timm.models._hub import save_for_hf
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

found = {}
for folder in sys.argv[1:]:
    image = torch.from_numpy(np.load(f"{folder}/x.npy").transpose(0, 3, 1, 2))
    with torch.no_grad():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        tokens = model.forward_features(image)
        named = AutoModelForImageClassification.from_pretrained(folder).eval()
        alone = AutoModel.from_pretrained(folder).eval()
        np.savez(
            f"{folder}/theirs.npz",
            timm_logits=model(image),
            timm_embedding=model.forward_head(tokens, pre_logits=True),
            timm_patches=tokens[:, model.num_prefix_tokens:],
            transformers_logits=named(image).logits,
            transformers_embedding=alone(image).pooler_output,
        )
    save_for_hf(model, f"{folder}/by_timm", safe_serialization=True)
    named.save_pretrained(f"{folder}/by_transformers")
    names = [named.config.id2label[i] for i in range(5)]
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert other.head.out_features == 3
    if image.shape[1] == 3:
        view = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        picture = Image.open(f"{folder}/picture.png").convert("RGB")
        np.save(f"{folder}/view.npy", view(picture).numpy().transpose(1, 2, 0))
        AutoImageProcessor.from_pretrained(folder)
        onnx = f"{folder}/model.onnx"
        torch.onnx.export(model, (image[:2],), onnx, dynamo=True, dynamic_shapes=({0: "n"},),
                          verbose=False)
        session = onnxruntime.InferenceSession(onnx)
        logits = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
        np.save(f"{folder}/onnx.npy", logits)
    found[folder] = names
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="SUPMIM_TORCH_PYTHON names no interpreter with timm")
def test_exported_folders_compute_the_same_in_timm_and_transformers(tmp_path):
    """Prints the largest differences of logits, embeddings and patch features.

    What timm and transformers save again, supmim loads again.
    """
    models = {}
    cases = itertools.product(("gap", "cls", "map"), (1, 3), EXTRAS.items())
    rng = np.random.default_rng(3)
    for pool, channels, (kind, extra) in cases:
        config = config_with(pool, channels)
        model = model_of(options.changed(config, encoder=options.changed(config.encoder, **extra)))
        folder = tmp_path / f"{pool}-{channels}-{kind}"
        export.export(model, "timm", folder, {})
        np.save(folder / "x.npy", model.preprocess(images_of(model)))
        Image.fromarray(rng.integers(0, 255, (30, 41, 3), np.uint8)).save(folder / "picture.png")
        models[str(folder)] = model
    done = subprocess.run([PYTHON, "-c", SCRIPT, *models], capture_output=True, text=True,
                          env=os.environ | {"HF_HUB_OFFLINE": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names = json.loads(done.stdout.splitlines()[-1])
    worst: dict[str, float] = {}
    for folder, model in models.items():
        assert tuple(names[folder]) == model.class_names
        out = jax.jit(model.apply)(model.params, np.load(f"{folder}/x.npy"))
        patches = np.asarray(out.patch_features).reshape(3, 9, -1)
        ours = {"logits": out.logits, "embedding": out.embedding, "patches": patches}
        with np.load(f"{folder}/theirs.npz") as theirs:
            for name in theirs:
                difference = np.abs(theirs[name] - ours[name.partition("_")[2]]).max()
                worst[name] = max(worst.get(name, 0), float(difference))
        for saved in ("by_timm", "by_transformers"):
            again = load.load(f"{folder}/{saved}")
            assert again.config.encoder == load.load(folder).config.encoder
            embedding = jax.jit(again.apply)(again.params, np.load(f"{folder}/x.npy")).embedding
            difference = float(np.abs(embedding - out.embedding).max())
            worst[saved] = max(worst.get(saved, 0), difference)
        if model.config.data.channels == 3:
            theirs = np.load(f"{folder}/view.npy")
            ours = model.preprocess([f"{folder}/picture.png"])[0]
            worst["view"] = max(worst.get("view", 0), float(np.abs(theirs - ours).max()))
            difference = np.abs(np.load(f"{folder}/onnx.npy") - out.logits).max()
            worst["onnx_logits"] = max(worst.get("onnx_logits", 0), float(difference))
    print(len(models), "folders:", worst)
    assert worst.pop("view") < 1.01 / 127.5  # one step of uint8, as two libraries round
    assert max(worst.values()) < TOLERANCE
