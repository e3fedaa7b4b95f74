"""One looped program: bits depend neither on how steps are grouped nor on where images lie."""

import types

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from supmim import sharding, train
from supmim.data import calls, images, pipeline, resident
from supmim.data.calls import Groups
from supmim.errors import ConfigError, Interrupted
from supmim.planning import program
from supmim.runtime.preemption import StopSignal
from supmim.tasks.supmim import SupMIM
from tests.conftest import digits, plain_readers, tiny_config

pytestmark = pytest.mark.usefixtures("all_undrawn")

QUICK = {"eval.evaluators": "classification", "checkpoint.keep_best": 0, "encoder.depth": 1,
         "data.mixup": 0.2, "encoder.dropout": 0.1, "log_every": 6}  # fmt: skip
MESH = sharding.make_mesh(8, 1, 1)


def run(workdir, **options):
    """The last checkpoint of a training of 15 steps, and the losses of its log."""
    config = tiny_config(**QUICK | options)
    train.train_and_evaluate(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return ocp.load(workdir / "checkpoints/15"), [line.split("goodput")[0] for line in lines]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Every step a call of its own, of images that are read and sent."""
    options = {"steps_per_call": 1, "data.resident": "off"}
    return run(tmp_path_factory.mktemp("plain") / "run", **options)[0]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"steps_per_call": 4, "data.resident": "off"}, marks=pytest.mark.slow),
        pytest.param(
            {"steps_per_call": 15, "data.resident": "on", "log_every": 15}, marks=pytest.mark.slow
        ),
        pytest.param({}, marks=pytest.mark.slow),  # as long as half a second, from the devices
    ],
    ids=["four, read", "all, resident", "timed, resident"],
)
def test_bits_depend_neither_on_the_grouping_nor_on_where_images_lie(plain, tmp_path, options):
    found, _ = run(tmp_path / "run", **options)
    assert_equal(found, plain)


def test_a_run_goes_on_bit_for_bit_with_other_groups(plain, tmp_path, monkeypatch):
    """Stopped after 8 steps, in mid-group of the whole run."""
    asked = StopSignal.asked
    monkeypatch.setattr(StopSignal, "asked", lambda stop: next(answers, True))
    answers = iter([False, False, False])
    options = {"steps_per_call": 3, "data.resident": "off", "log_every": 8}
    with pytest.raises(Interrupted, match="stopped at step 8 of 15"):
        run(tmp_path / "run", **options)
    monkeypatch.setattr(StopSignal, "asked", asked)
    found, _ = run(tmp_path / "run", **options | {"steps_per_call": 5, "data.resident": "on"})
    assert_equal(found, plain)


def test_groups_end_where_something_is_due():
    found = [(s[0], s[-1]) for s in Groups(3, 30, 8, every=(10, 0, 25), ends=(13, 2, 99))]
    assert found == [(4, 10), (11, 13), (14, 20), (21, 25), (26, 30)]
    assert list(Groups(5, 5, 8)) == []


def test_a_group_has_one_step_until_its_time_is_known(monkeypatch):
    now = iter([10.0, 10.1])
    monkeypatch.setattr(calls, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    groups, found = Groups(0, 100, 32, timed=True), []
    for steps in groups:
        found.append(len(steps))
        if len(found) > 2:  # two are put on the devices ahead
            groups.time(jax.numpy.zeros(()))
    assert found == [1, 1, 1, 1, *[5] * 19, 1]


def test_room_for_steps_follows_their_bytes_and_the_log():
    def slots(**options):
        return calls.slots_of(tiny_config(**options), MESH)

    assert slots(log_every=500) == calls.MOST_SLOTS
    assert slots(log_every=7) == 7
    assert slots(steps_per_call=3, log_every=2) == 3
    large = {"data.image_size": 256, "data.channels": 3, "log_every": 99}
    assert slots(**large, batch_size=8 * 128) == 2  # 25 MB a step and device
    assert slots(**large, batch_size=8 * 1024) == 1


def batches(config, slots, on_devices):
    seen = images.training(digits("train"), config.data)
    found = resident.of(config, seen, MESH) if on_devices else None
    groups = Groups(2, 2 + 2 * slots, slots)
    return list(calls.training(seen, config, MESH, groups, plain_readers(), found))


def test_stacks_hold_the_batches_of_single_steps():
    config = tiny_config()
    seen = images.training(digits("train"), config.data)
    alone = list(pipeline.train_batches(seen, 0, 96, MESH, 2, 6, plain_readers()))
    for on_devices in (False, True):
        first, second = batches(config, 2, on_devices)
        assert (first.steps, second.steps) == (range(3, 5), range(5, 7))
        stacked = [jax.tree.map(lambda x, i=i: x[i], dict(call.batches))
                   for call in (first, second) for i in range(2)]  # fmt: skip
        for found, expected in zip(stacked, alone, strict=True):
            assert found.keys() == expected.keys()
            assert_equal(found, dict(expected))
        where = sharding.batch_sharding(MESH, stacked=True)
        for field in first.batches.values():
            assert field.sharding.is_equivalent_to(where, field.ndim)


def test_a_run_whose_images_cannot_lie_on_the_devices_leaves_nothing(tmp_path):
    options = {"data.resident": "on", "data.crop": "inception", "mim_weight": 0.0}
    with pytest.raises(ConfigError, match="resident=on is not possible"):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run/config.json").exists()


def test_why_images_cannot_lie_on_the_devices_is_said(monkeypatch):
    def asked(**options):
        config = tiny_config(**{"data.resident": "on"} | options)
        return resident.of(config, images.training(digits("train"), config.data), MESH)

    with pytest.raises(ConfigError, match="resident=on is not possible: config.data.crop=ince"):
        asked(**{"data.crop": "inception"})
    assert asked(**{"data.crop": "inception", "data.resident": "auto"}) is None
    assert asked(**{"data.resident": "auto"}) is not None
    monkeypatch.setattr(resident, "free_bytes", lambda mesh: 2.0 * 1500 * 64)
    assert asked() is not None, "half of what is free, and asked for"
    assert asked(**{"data.resident": "auto"}) is None, "more than a tenth of what is free"
    monkeypatch.setattr(resident, "free_bytes", lambda mesh: 1000.0)
    with pytest.raises(ConfigError, match="the images take 0.0 GiB, but 0.0 GiB is free"):
        asked()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ConfigError, match="the run has several processes; set --config.data.resident"
    ):
        asked()


def test_a_step_is_traced_once(monkeypatch):
    """For the shapes of its metrics and for the loop; twice took a third more of tracing."""
    config, traced = tiny_config(**QUICK), []
    prepare = SupMIM.prepare
    monkeypatch.setattr(
        SupMIM, "prepare", lambda task, batch: traced.append(task) or prepare(task, batch)
    )
    with jax.set_mesh(MESH):
        planned = program.build(config, MESH)
        planned.train_steps.trace(*planned.arguments)
    assert len(traced) == 1
