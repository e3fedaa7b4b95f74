"""Checkpoints: whole or not at all, damage noticed, any mesh, nothing cast."""

import itertools
import json
import resource
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from supmim import sharding
from supmim.config.options import Checkpoint
from supmim.errors import CheckpointError
from supmim.workdir import checkpoint, digests
from supmim.workdir.checkpoint import Checkpoints

NOTE = {"length": 3}


def state_of(value, dtype=jnp.float32):
    return {"step": jnp.asarray(int(value)), "w": {"kernel": jnp.full((64, 8), value, dtype)}}


def abstract_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def told():
    return []


@pytest.fixture
def saved(tmp_path, told):
    """Checkpoints of steps 1, 2, 3."""
    checkpoints = Checkpoints(
        tmp_path / "checkpoints", told.append, Checkpoint(keep=3, keep_best=0)
    )
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), {}, NOTE)
    checkpoints.wait()
    return checkpoints


def data_file(checkpoints, step):
    files = (checkpoints.folder / str(step)).rglob("d/*")
    return max(files, key=lambda path: path.stat().st_size)


def test_newest_comes_back_with_its_fingerprint(saved):
    restored = saved.restore(abstract_of(state_of(0)))
    assert int(restored.state["step"]) == 3 and restored.fingerprint == NOTE
    np.testing.assert_array_equal(restored.state["w"]["kernel"], 3.0)


def test_nothing_saved_is_nothing_restored(tmp_path, told):
    assert Checkpoints(tmp_path / "none", told.append).restore(abstract_of(state_of(0))) is None


def flip_bit(checkpoints):
    file = data_file(checkpoints, 3)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(checkpoints):
    file = data_file(checkpoints, 3)
    file.write_bytes(file.read_bytes()[:10])


def remove_file(checkpoints):
    data_file(checkpoints, 3).unlink()


def empty(checkpoints):
    shutil.rmtree(checkpoints.folder / "3")
    (checkpoints.folder / "3").mkdir()


def damage_digests(checkpoints):
    (checkpoints.folder / "3" / checkpoint.DIGESTS).write_text("{")


def change_results(checkpoints):
    path = checkpoints.folder / "3" / checkpoint.DIGESTS
    path.write_text(path.read_text().replace('"length": 3', '"length": 2'))


HARMS = [flip_bit, truncate, remove_file, empty, damage_digests, change_results]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_newest_falls_back_with_one_message(saved, told, harm):
    harm(saved)
    restored = saved.restore(abstract_of(state_of(0)))
    assert int(restored.state["step"]) == 2
    assert len(told) == 1 and "damaged" in told[0] and "3.corrupt" in told[0]
    assert (saved.folder / "3.corrupt").is_dir() and not (saved.folder / "3").exists()


def test_a_flipped_bit_is_named(saved):
    flip_bit(saved)
    assert "SHA-256 differs" in checkpoint.damage(saved.folder / "3")


def test_a_changed_byte_of_the_digests_is_damage_wherever_it_is(saved):
    saved.rank(3, {"knn/recall_at_1": 0.25})
    path = saved.folder / "3" / checkpoint.DIGESTS
    whole = path.read_bytes()
    masks = itertools.cycle((0x01, 0x02, 0x07, 0x20, 0x80))
    for at, mask in zip(range(0, len(whole), 3), masks, strict=False):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        assert checkpoint.DIGESTS in checkpoint.damage(path.parent), (at, mask)
    path.write_bytes(whole)
    assert checkpoint.damage(path.parent) == ""


def test_a_save_without_digests_is_not_whole_and_is_ignored(saved, told):
    (saved.folder / "3" / checkpoint.DIGESTS).unlink()
    assert saved.steps() == [1, 2]
    assert int(saved.restore(abstract_of(state_of(0))).state["step"]) == 2
    assert len(told) == 1 and "was not finished" in told[0]


def test_leftovers_of_a_killed_save_are_ignored(saved, told):
    (saved.folder / "4.orbax-checkpoint-tmp").mkdir()
    assert int(saved.restore(abstract_of(state_of(0))).state["step"]) == 3 and not told


def test_what_other_saves_left_is_deleted_by_the_next(saved):
    for step in (4, 5):
        (saved.folder / f"{step}.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    saved.save(6, state_of(6), {}, NOTE)
    saved.wait()
    assert {path.name for path in saved.folder.iterdir()} == {"2", "3", "6"}


def test_an_unfinished_folder_is_overwritten_by_the_next_save(saved):
    (saved.folder / "3" / checkpoint.DIGESTS).unlink()
    saved.save(3, state_of(7), {}, NOTE)
    saved.wait()
    assert saved.restore(abstract_of(state_of(0))).state["w"]["kernel"][0, 0] == 7


def test_all_damaged_stops_instead_of_starting_again(saved):
    for step in (1, 2, 3):
        data_file(saved, step).write_bytes(b"")
    for _ in range(2):  # a scheduler that starts it again changes nothing
        with pytest.raises(CheckpointError, match="no good checkpoint is left") as caught:
            saved.restore(abstract_of(state_of(0)))
        assert caught.value.exit_code == 4


def test_resume_takes_the_step_asked_for_and_sets_newer_ones_aside(saved, told):
    restored = saved.restore_from("2", abstract_of(state_of(0)))
    assert int(restored.state["step"]) == 2 and saved.steps() == [1, 2, 3]
    saved.set_aside_newer(2)
    assert (saved.folder / "3.superseded").is_dir() and "renamed to 3.superseded" in told[0]
    path = str(saved.folder / "1")
    assert int(saved.restore_from(path, abstract_of(state_of(0))).state["step"]) == 1
    assert saved.steps() == [1, 2]


def test_a_name_that_only_looks_like_a_number_is_no_step(saved):
    """int("\u00b2") fails, though a superscript is a digit to Python."""
    (saved.folder / "\u00b2").mkdir()
    assert saved.restore(abstract_of(state_of(0))).state["step"] == 3
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        saved.restore_from("\u00b2", abstract_of(state_of(0)))


def test_a_missing_resume_is_an_error_with_the_nearest_steps(saved):
    with pytest.raises(CheckpointError, match="nearest: 3, 2, 1"):
        saved.restore_from("9", abstract_of(state_of(0)))
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        saved.restore_from("/nowhere/3", abstract_of(state_of(0)))


def test_shapes_and_names_that_differ_are_listed(saved):
    expected = {"step": jnp.asarray(0), "w": {"bias": jnp.zeros(3), "kernel": jnp.zeros((64, 9))}}
    with pytest.raises(CheckpointError) as caught:
        saved.restore(abstract_of(expected))
    message = str(caught.value)
    assert "w/bias: stored nothing, expected float32[3]" in message
    assert "w/kernel: stored float32[64, 8], expected float32[64, 9]" in message


def test_a_dtype_is_never_cast_silently(saved):
    with pytest.raises(CheckpointError, match=r"stored float32\[64, 8\], expected bfloat16"):
        saved.restore(abstract_of(state_of(0, jnp.bfloat16)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (1, 4, 1), (2, 2, 2), (1, 8, 1)])
def test_any_mesh_restores_the_same_bits(tmp_path, told, shape):
    mesh = sharding.make_mesh(1, 4, 2)
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    values = jax.random.normal(jax.random.key(0), (64, 8))
    checkpoints = Checkpoints(tmp_path, told.append)
    checkpoints.save(1, {"w": jax.device_put(values, split)}, {}, NOTE)
    checkpoints.wait()
    other = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    target = NamedSharding(other, PartitionSpec("fsdp", "tensor"))
    expected = {"w": jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=target)}
    restored = checkpoints.restore(expected).state["w"]
    np.testing.assert_array_equal(restored, values)
    assert restored.sharding == target


def test_newest_and_best_are_kept(tmp_path, told):
    checkpoints = Checkpoints(tmp_path, told.append, Checkpoint())
    for step, score in enumerate([0.1, 0.9, 0.2, None, 0.3], start=1):
        results = {} if score is None else {"knn/recall_at_1": score}
        checkpoints.save(step, state_of(step), results, NOTE)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]


def test_fewer_scored_than_kept_best_deletes_none(tmp_path, told):
    checkpoints = Checkpoints(tmp_path, told.append, Checkpoint(1, 3, "x"))
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), {"x": step / 10}, NOTE)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]


def test_a_result_that_the_data_does_not_allow_is_told(saved, told):
    saved.kept = Checkpoint(keep_best_metric="fewshot/25_shot")
    assert not saved.among_best({"fewshot/1_shot": 0.5})
    assert told == [
        "the best checkpoint is not kept: these results have no fewshot/25_shot "
        "(config.checkpoint.keep_best_metric)"
    ]
    assert saved.among_best({"fewshot/25_shot": 0.5})


def test_the_last_save_must_succeed_and_is_not_made_twice(tmp_path, told, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", told.append)
    checkpoints.save_now(3, state_of(3), NOTE)
    before = (tmp_path / "c/3" / checkpoint.DIGESTS).stat().st_mtime_ns
    checkpoints.save_now(3, state_of(3), NOTE)
    assert before == (tmp_path / "c/3" / checkpoint.DIGESTS).stat().st_mtime_ns
    checkpoints.rank(3, {"x": 0.5})
    assert checkpoints.note(3)["results"] == {"x": 0.5} and not checkpoint.damage(
        checkpoints.folder / "3"
    )

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp, "save_async", full)
    with pytest.raises(CheckpointError, match="step 4 could not be saved .* from step 3"):
        checkpoints.save_now(4, state_of(4), NOTE)


def test_a_donated_state_is_saved_as_it_was(tmp_path, told):
    checkpoints = Checkpoints(tmp_path, told.append)
    state = state_of(1)
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints.save(1, state, {}, NOTE)
    for _ in range(10):
        state = bump(state)
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.restore(abstract_of(state)).state["w"]["kernel"], 1.0)


@pytest.mark.parametrize("where", ["at once", "in the background"])
def test_failed_saves_are_told_and_stop_the_run_after_three(tmp_path, told, monkeypatch, where):
    checkpoints = Checkpoints(tmp_path / "c", told.append, Checkpoint(keep=1, keep_best=0))
    checkpoints.save(1, state_of(1), {}, NOTE)
    checkpoints.wait()

    class FullLater:
        def result(self):
            raise OSError(28, "No space left on device")

    def full(*_, **__):
        if where == "at once":
            FullLater().result()
        return FullLater()

    monkeypatch.setattr(ocp, "save_async", full)
    with pytest.raises(CheckpointError, match="3 saves in a row .* continues from step 1"):
        for step in (2, 3, 4):
            checkpoints.save(step, state_of(step), {}, NOTE)
            checkpoints.wait()
    assert len(told) == 3 and "No space left" in told[0]
    assert checkpoints.steps() == [1] and checkpoint.damage(checkpoints.folder / "1") == ""


def test_a_failed_save_is_told_in_one_line(tmp_path, told, caplog):
    """Orbax logs the traceback of each of its threads: hundreds of lines on a full disk."""
    checkpoints = Checkpoints(tmp_path, told.append, Checkpoint(keep=1, keep_best=0))
    noise = jax.random.normal(jax.random.key(0), (512, 512))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        checkpoints.save(1, {"step": jnp.asarray(1), "w": noise}, {}, NOTE)
        checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be saved" in told[0] and "File too large" in told[0]
    assert not caplog.records


UNRAISABLE = """
import sys
from supmim.workdir import checkpoint

class Late:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise RuntimeError(self.text)

Late("Event loop is closed")
Late("another")
"""


def test_what_tensorstore_says_of_each_array_of_a_failed_save_is_dropped():
    """A hundred tracebacks on a full disk, past all of Python's logging; others are shown."""
    done = subprocess.run([sys.executable, "-c", UNRAISABLE], capture_output=True, text=True)
    assert "RuntimeError: another" in done.stderr and "Event loop" not in done.stderr


NEVER_AWAITED = """
from supmim.workdir import checkpoint

class OrbaxLayout:
    async def write(self):
        pass

async def another():
    pass

without_builtins = eval("lambda box: box.clear()", {"__builtins__": {}})  # as in a named tuple
without_builtins([OrbaxLayout().write()])
without_builtins([another()])
"""


def test_what_python_says_of_coroutines_of_a_failed_save_is_dropped():
    """Three lines for each, where a warning cannot be imported; others are shown."""
    done = subprocess.run([sys.executable, "-c", NEVER_AWAITED], capture_output=True, text=True)
    assert "coroutine object another" in done.stderr and "OrbaxLayout" not in done.stderr


def test_old_checkpoints_stay_until_the_new_one_is_whole(tmp_path, told, monkeypatch):
    checkpoints = Checkpoints(tmp_path, told.append, Checkpoint(keep=1, keep_best=0))
    checkpoints.save(1, state_of(1), {}, NOTE)
    checkpoints.wait()
    write, seen = digests.write_text, []
    monkeypatch.setattr(
        digests, "write_text", lambda *a: seen.append(checkpoints.steps()) or write(*a)
    )
    checkpoints.save(2, state_of(2), {}, NOTE)
    checkpoints.wait()
    assert seen == [[1]] and checkpoints.steps() == [2]
    note = json.loads((tmp_path / "2" / checkpoint.DIGESTS).read_text())
    assert note["step"] == 2 and all(len(digest) == 64 for digest in note["files"].values())


class Lost:
    """A save in the background that failed."""

    def result(self):
        raise OSError(28, "No space left on device")


def failing(monkeypatch, outcomes):
    """Saves fail or succeed as told, one after the other."""
    save_async, outcomes = ocp.save_async, iter(outcomes)

    def save(*args, **kwargs):
        return save_async(*args, **kwargs) if next(outcomes) else Lost()

    monkeypatch.setattr(ocp, "save_async", save)


def test_a_save_that_failed_in_the_background_is_told_at_the_next_step(tmp_path, told, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", told.append)
    failing(monkeypatch, [False])
    checkpoints.save(1, state_of(1), {}, NOTE)
    threads = [thread for thread in threading.enumerate() if thread.name.endswith("(_finish)")]
    for thread in threads:
        thread.join()
    assert not told
    checkpoints.poll()  # what the loop calls after each step
    assert len(told) == 1 and "No space left" in told[0]
    checkpoints.poll()
    assert len(told) == 1


def test_failures_are_counted_anew_after_a_success(tmp_path, told, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", told.append)
    outcomes = [False, False, True, False, False, False]
    failing(monkeypatch, outcomes)
    for step in range(1, 6):
        checkpoints.save(step, state_of(step), {}, NOTE)
        checkpoints.wait()
    assert len(told) == 4 and checkpoints.steps() == [3]
    checkpoints.save(6, state_of(6), {}, NOTE)
    with pytest.raises(CheckpointError, match="3 saves in a row"):
        checkpoints.wait()


def test_a_deletion_that_is_cut_short_leaves_nothing_that_counts_as_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, lambda _: None)
    checkpoints.save(1, state_of(1), {}, NOTE)
    checkpoints.wait()

    def killed(path, **_):
        data_file(checkpoints, int(path.name)).unlink()
        raise OSError("a kill stands for this")

    monkeypatch.setattr(shutil, "rmtree", killed)
    checkpoints.save(2, state_of(2), {}, NOTE)
    checkpoints.wait()
    assert (tmp_path / "1").is_dir() and checkpoints.steps() == [2]


def test_a_damaged_resume_is_an_error_and_no_state(saved):
    flip_bit(saved)
    for requested in ("3", str(saved.folder / "3")):
        with pytest.raises(CheckpointError, match=r"checkpoint .*/3 is damaged: .* SHA-256"):
            saved.restore_from(requested, abstract_of(state_of(0)))
    assert (saved.folder / "3").is_dir()  # it was asked for: the user decides what becomes of it


def test_leaves_that_the_model_lacks_are_listed(saved):
    expected = {"step": jnp.asarray(0)}
    with pytest.raises(
        CheckpointError, match=r"w/kernel: stored float32\[64, 8\], expected nothing"
    ):
        saved.restore(abstract_of(expected))
