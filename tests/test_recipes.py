"""The data sections of the ImageNet presets, from a store of JPEGs to a traced step."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from supmim import cli, optimizer, sharding, step
from supmim import config as config_lib
from supmim.data import images, pipeline, sources
from supmim.tasks.registry import TASKS
from tests.conftest import plain_readers, prepare
from tests.pictures import encoded, photo
from tests.test_configs import PRESETS, load

COUNT = 1000
RECIPES = [name for name in PRESETS if name.startswith("imagenet")]
USUAL = ("imagenet_s16", "imagenet_b16_deit3", "imagenet21k_b14")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """1,000 JPEGs of ImageNet-like sizes in ten classes, as supmim data convert packs them."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    whole = Image.fromarray(photo(750, 1000))
    for index in range(COUNT):
        width, height = (500, int(rng.integers(333, 400)))[:: rng.choice([-1, 1])]
        left, top = rng.integers(0, 1000 - width), rng.integers(0, 750 - height)
        path = root / "raw" / str(index % 10) / f"{index}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = whole.crop((left, top, left + width, top + height))
        path.write_bytes(encoded(part, quality=90))
    assert cli.run(["data", "convert", f"folder:{root / 'raw'}", f"--out={root / 'store'}"]) == 0
    return root / "store"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in USUAL else pytest.mark.slow) for n in RECIPES]
)
def test_a_recipe_goes_from_the_store_to_a_step(name, store):
    preset = load(name).get_config()
    preset.batch_size = 8
    preset.data.update(train=f"records:{store}", eval="")
    config = config_lib.validate(preset)
    train_source, eval_source = sources.load(config.data)
    assert len(train_source) + len(eval_source) == COUNT and len(train_source.class_names) == 10
    mesh = sharding.make_mesh(8, 1, 1)
    seen = images.training(train_source, config.data)
    batch = next(pipeline.train_batches(seen, 0, 8, mesh, 0, 1, plain_readers()))
    expected = pipeline.abstract_batch(config, mesh)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in expected.items()
    }
    assert len(np.unique(np.asarray(batch["image"]))) > 99
    evaluated = images.evaluation(eval_source, config.data)
    held_out = next(pipeline.eval_batches(evaluated, 8, mesh, plain_readers()))
    assert held_out["image"].shape == batch["image"].shape
    config = config_lib.replaced(config, {"encoder.scan": True})  # which traces faster
    task = TASKS[config.task].abstract(config)
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, 100_000))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(step.create_state, task=task, tx=tx), key)
    prepared = jax.eval_shape(functools.partial(prepare, task), task.frozen, batch)
    after, totals = jax.eval_shape(
        functools.partial(step.train_step, task=task, tx=tx), state, prepared, key
    )
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert {"class_loss", "mim_loss"} <= set(totals)
    other_view = bool(config.data.randaug_num or config.data.three_augment)
    assert (prepared.class_view is not None) == other_view
