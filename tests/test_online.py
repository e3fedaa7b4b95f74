"""Ids come from a program of their own: whatever surrounds a row, it gets the same ones."""

import jax
import numpy as np
import pytest

from supmim import sharding
from supmim.data import stream
from supmim.tasks.supmim import SupMIM
from supmim.tokenizers import online
from supmim.tokenizers.patch_vq import PatchVQ
from tests.conftest import digit_views, tiny_config

CONFIG = tiny_config(**{"tokenizer.codebook_size": 64})
CODES = jax.random.uniform(jax.random.key(9), (64, 4))


def task():
    return SupMIM(CONFIG, PatchVQ(CODES, 2, 1))


def raw_batch(rows):
    return stream.Training(digit_views("train", CONFIG), 0, rows, np.arange(rows))(0)[0]


def ids_of(rows, shape=(1, 1, 1), microbatch=16):
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    made = task()
    placed = jax.device_put(raw_batch(rows), sharding.batch_sharding(mesh))
    tokenize = online.Tokenize(made.tokenize, mesh, microbatch)
    frozen = jax.device_put(made.frozen, sharding.replicated(mesh))
    return tokenize(frozen, placed)["target_ids"]


SURROUNDINGS = [
    (5, (1, 1, 1)), (96, (1, 1, 1)), (96, (2, 1, 1)), (96, (2, 2, 2)), (40, (1, 8, 1))
]  # fmt: skip


@pytest.mark.parametrize(("rows", "shape"), SURROUNDINGS, ids=str)
def test_ids_depend_neither_on_batch_size_nor_on_devices(rows, shape):
    ids = ids_of(rows, shape)
    assert ids.shape == (rows, 16) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids, ids_of(96)[:rows])
    np.testing.assert_array_equal(
        ids, task().tokenize(task().frozen, raw_batch(rows))["target_ids"]
    )
    assert ids.sharding.is_equivalent_to(sharding.batch_sharding(ids.sharding.mesh), ids.ndim)


def test_every_microbatch_has_the_same_shape_and_no_image_leaves_its_device():
    mesh, seen = sharding.make_mesh(4, 2, 1), set()

    def tokenize(frozen, batch):
        seen.add(batch["image"].shape)
        return task().tokenize(frozen, batch)

    program = online.Tokenize(tokenize, mesh, 3)
    placed = jax.device_put(raw_batch(64), sharding.batch_sharding(mesh))
    program(task().frozen, placed)
    assert seen == {(3, 8, 8, 1)}
    text = jax.jit(lambda batch: program(task().frozen, batch)).lower(placed).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_stack_has_the_ids_of_its_batches(shape):
    """Of the first two; the third is not looked at. A microbatch has rows of two batches."""
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    made, rows = task(), raw_batch(60)
    stacked = {name: x.reshape(3, 20, *x.shape[1:]) for name, x in rows.items()}
    placed = jax.device_put(stacked, sharding.batch_sharding(mesh, stacked=True))
    frozen = jax.device_put(made.frozen, sharding.replicated(mesh))
    ids = online.Tokenize(made.tokenize, mesh, 8)(frozen, placed, 2)["target_ids"]
    assert ids.shape == (3, 20, 16)
    np.testing.assert_array_equal(ids[:2].reshape(40, 16), ids_of(60)[:40])
    where = sharding.batch_sharding(mesh, stacked=True)
    assert ids.sharding.is_equivalent_to(where, ids.ndim)


def test_ids_that_were_read_with_the_images_are_left_alone():
    program = online.Tokenize(task().tokenize, sharding.make_mesh(8, 1, 1), 4)
    batch = raw_batch(8)
    assert program(None, batch) is batch
    read = batch | {"target_ids": np.zeros((8, 16), np.int32)}
    assert program(task().frozen, read) is read
