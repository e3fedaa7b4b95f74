"""The machine: devices that should be used, signals, one run per workdir, bad numbers."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from supmim import __main__, cli, metrics, sharding
from supmim import config as config_lib
from supmim.config import options
from supmim.data import sources
from supmim.errors import ConfigError, DeviceError, NumericsError
from supmim.report import terminal
from supmim.runtime import (
    accelerator,
    compile_cache,
    devices,
    host_memory,
    memory,
    numerics,
    profile,
    start_up,
)
from supmim.runtime.clock import Clock
from supmim.workdir import lock
from tests.conftest import tiny_config


def machine(tmp_path: Path, *files: str) -> Path:
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0x1ae0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "kind", "device_id"),
    [("dev/nvidia0", "gpu", ""), ("dev/accel0", "tpu", ""), ("dev/null", "", ""),
     ("sys/bus/pci/devices/a/vendor", "tpu", "0x0063"),
     ("sys/bus/pci/devices/a/vendor", "", "0x0042")],
)  # fmt: skip
def test_cpu_beside_an_accelerator_needs_consent(tmp_path, monkeypatch, file, kind, device_id):
    root = machine(tmp_path, file)
    if device_id:
        (root / file).with_name("device").write_text(device_id)
    assert accelerator.visible(root) == kind
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    devices.check(root)
    monkeypatch.delenv("JAX_PLATFORMS")
    if not kind:
        devices.check(root)
        return
    with pytest.raises(DeviceError, match="JAX_PLATFORMS=cpu") as caught:
        devices.check(root)
    assert devices.INSTALL[kind] in str(caught.value) and caught.value.exit_code == 6


BUFFERS = """
import ctypes, resource, threading
from supmim.runtime import host_memory

host_memory.keep_freed()
libc, size = ctypes.CDLL(None), ctypes.c_size_t(80 * 2**20)
libc.malloc.restype = ctypes.c_void_p

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(size))
    libc.memset(block, 1, size)
    libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

for _ in range(3):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
"""


def test_pages_of_freed_buffers_are_there_in_the_next_step():
    done = subprocess.run([sys.executable, "-c", BUFFERS], capture_output=True, text=True)
    first, *later = map(int, done.stdout.split())
    assert first > 1000 and max(later) < 100, done


@pytest.mark.parametrize(
    ("platforms", "visible", "kept"), [("", "", 1), ("", "gpu", 0), ("cpu", "gpu", 1)]
)
def test_freed_buffers_are_kept_where_the_cpu_computes(monkeypatch, platforms, visible, kept):
    calls = []
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(accelerator, "visible", lambda: visible)
    monkeypatch.setattr(host_memory, "keep_freed", lambda: calls.append("kept"))
    for module, name in ((start_up, "begin"), (cli, "main"), (__main__.gc, "set_threshold")):
        monkeypatch.setattr(module, name, lambda *_: None)
    __main__.main()
    assert len(calls) == kept


def test_a_second_run_on_a_workdir_is_refused_and_a_stale_lock_is_not(tmp_path):
    script = f"""
import time
from pathlib import Path
from supmim.workdir import lock
with lock.hold(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    with (
        pytest.raises(ConfigError, match=rf"in use by process {child.pid} on .*, for 0 minutes"),
        lock.hold(tmp_path),
    ):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_was_deleted_while_it_was_waited_for_is_taken_anew(tmp_path, monkeypatch):
    """A start that failed deletes its folder, in which another start may be waiting."""
    flock = lock.fcntl.flock

    def flock_once_deleted(file, how):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        flock(file, how)
        shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(lock.fcntl, "flock", flock_once_deleted)
    with lock.hold(tmp_path / "run"):
        assert lock.held(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_signal_exits_at_once():
    script = """
import time
from supmim.runtime.preemption import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.asked():
            print("requested", flush=True)
            time.sleep(60)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "requested\n"
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    try:
        _, err = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 128 + signal.SIGINT and time.monotonic() - began < 5
    assert "SIGTERM: finishing the step and saving" in err


def totals_of(*bad: int, loss: float) -> dict:
    """Metrics of a call whose steps have so many bad ones in a row, with room for one more step."""
    ones = jnp.ones(len(bad) + 1)
    return {
        "skipped_in_a_row": metrics.Last(jnp.asarray([*bad, 0])),
        "spikes": metrics.Last(jnp.zeros(len(bad) + 1, jnp.int32)),
        "mim_loss": metrics.average(loss * ones, ones),
        "class_loss": metrics.average(ones, ones),
    }


def test_five_bad_steps_in_a_row_end_the_run_with_a_post_mortem(tmp_path):
    watch = numerics.NumericsWatch(tmp_path, lambda step: {"seed": 3, "before": step})
    for step in range(1, 10):  # never five in a row
        watch.add(range(step, step + 1), jnp.asarray([[step]]), totals_of(step % 5, loss=1.0))
    with pytest.raises(NumericsError, match="the last is step 14; not finite: mim_loss") as caught:
        for steps in (range(10, 11), range(11, 13), range(13, 17), range(17, 19)):
            bad = [step - 9 if step < 15 else 0 for step in steps]
            index = jnp.asarray([[step, 7] for step in steps])
            watch.add(steps, index, totals_of(*bad, loss=float("nan")))
    assert caught.value.exit_code == 5
    document = json.loads((tmp_path / "postmortem.json").read_text())
    assert document["seed"] == 3 and document["before"] == 10
    assert [s["step"] for s in document["steps"]] == [10, 11, 12, 13, 14]
    assert document["steps"][-1]["index"] == [14, 7]
    assert document["steps"][-1]["mim_loss"] == "not finite"


def test_a_post_mortem_that_cannot_be_written_does_not_hide_what_happened(tmp_path):
    watch = numerics.NumericsWatch(tmp_path / "gone", lambda step: {}, bad_steps=1)
    with pytest.raises(NumericsError, match="could not be written to .*: No such file"):
        for step in (1, 2):
            watch.add(range(step, step + 1), jnp.asarray([[step]]), totals_of(step, loss=jnp.nan))


def test_clock_tells_speed_without_pauses_and_where_the_time_went(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: 7 + 2 * now[0])  # two busy threads

    def spend(seconds):
        now[0] += seconds

    clock = Clock(batch_size=10)
    spend(44)
    clock.begin()
    with clock.spending("compile"):
        spend(40)
    for kind in ("evaluate", "save", "evaluate", "save"):
        with clock.spending("data_wait"):
            spend(1)
        spend(3)
        with clock.spending(kind):
            spend(25)
    summary = clock.summary(4)
    assert summary["images_per_second"] == 2.5 and summary["data_wait"] == 0.25
    assert summary["compile_seconds"] == 40.0
    shares = {name: round(200 * share) for name, share in clock.shares().items()}
    assert shares == {
        "goodput/set_up": 44, "goodput/compile": 40, "goodput/data_wait": 4,
        "goodput/evaluate": 50, "goodput/draw": 0, "goodput/save": 50, "goodput/step": 12,
    }  # fmt: skip
    seconds = clock.seconds()
    assert seconds.pop("cpu_seconds/start_up") == 7
    assert {name: seconds[f"wall_seconds/{name[8:]}"] for name in shares} == shares
    assert {name: seconds[f"cpu_seconds/{name[8:]}"] / 2 for name in shares} == shares
    spend(5)
    assert clock.summary(1)["images_per_second"] == 2.0


def test_a_clock_that_is_set_back_makes_no_speed_and_no_age_negative(tmp_path, monkeypatch):
    clock = Clock(batch_size=10)
    clock.begin()
    with lock.hold(tmp_path / "run"):
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert clock.summary(4)["images_per_second"] > 0
        assert min(clock.seconds().values()) >= 0
        with pytest.raises(ConfigError, match="for 0 minutes"), lock.hold(tmp_path / "run"):
            pass


def test_out_of_memory_tells_needed_and_three_settings(tmp_path):
    config = tiny_config()
    with pytest.raises(DeviceError) as told, memory.explained(config, tmp_path):
        jnp.zeros((2**46,), jnp.uint8).block_until_ready()  # 64 TiB
    assert "it asked for 65536.00 GiB more" in str(told.value)
    assert str(told.value).count("--config.") == 3 and told.value.exit_code == 6
    assert (tmp_path / "memory.prof").stat().st_size > 0
    tpu = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert memory.needed(tpu) == "it needed 20.50 GiB of 15.75 GiB"


def test_every_setting_that_saves_memory_is_a_valid_override_that_changes_something():
    config = config_lib.validate(config_lib.get_config())
    for line in memory.memory_savers(config):
        path, _, value = line.split()[0].partition("=")
        option = options.OPTIONS[path]
        assert not option.problem(type(option.default)(value))
        assert str(config_lib.flatten(config)[path]) != value
    saving = {"encoder.dtype": "bfloat16", "encoder.remat": "full"}
    saving |= {"optimizer.moment_dtype": "bfloat16"}
    with_all = config_lib.replaced(config, saving)
    offered = [line.split("=")[0] for line in memory.memory_savers(with_all)]
    assert "encoder.remat" not in offered and "batch_size" in offered


@pytest.mark.parametrize("span", ["10", "a:b", "5:4", "0:3", ":"])
def test_a_span_that_is_none_is_told(span):
    with pytest.raises(ConfigError, match="START:STOP"):
        profile.parse(span)


def test_a_span_of_more_steps_than_memory_holds_is_refused():
    assert profile.parse("5:1004") == (5, 1004)
    with pytest.raises(ConfigError, match="more than 1000 steps in memory; nearest: .*=5:1004"):
        profile.parse("5:99999999999")


def test_a_profile_covers_its_steps_and_ends_with_the_run(tmp_path):
    told = []
    tracer = profile.Profile("2:3", tmp_path / "whole", told.append)
    for number in range(1, 6):
        with tracer.call(range(number, number + 1)):
            value = jnp.ones(4).sum()
        tracer.done(range(number, number + 1), value)
        assert len(told) == (number >= 3)
    assert list((tmp_path / "whole").rglob("*.xplane.pb"))
    short = profile.Profile("1:99", tmp_path / "short", told.append)
    with short.call(range(1, 2)):
        value = jnp.ones(4).sum()
    short.close(value)
    assert list((tmp_path / "short").rglob("*.xplane.pb")) and len(told) == 2


def test_kernels_are_deterministic_when_asked(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    devices.prepare("", deterministic=True)
    flags = os.environ["XLA_FLAGS"]
    assert flags.startswith("--xla_force_host") and "xla_gpu_deterministic_ops=true" in flags
    check_known()


def check_known():
    """Check that XLA knows all flags: it ends the process at one that it does not know."""
    script = "import jax; jax.jit(lambda x: x + 1)(1.0); print('known')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "known\n", done.stderr


def test_quick_flags_are_set_where_they_are_known(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    devices.prepare("", deterministic=False, quick=True)
    check_known()
    for version, visible, expected in (
        ("0.10.2", "", devices.QUICK), ("0.10.2", "tpu", ""), ("0.11.0", "", ""),
    ):  # fmt: skip
        monkeypatch.setenv("XLA_FLAGS", "")
        monkeypatch.setattr(devices.metadata, "version", lambda _, found=version: found)
        monkeypatch.setattr(accelerator, "visible", lambda found=visible: found)
        devices.prepare("", deterministic=False, quick=True)
        assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize("given", ["x", "-1", "0", "00", "²", "1000", "9" * 20])
def test_a_wrong_number_of_pretend_devices_is_refused(monkeypatch, given):
    monkeypatch.setattr(devices.jax.config, "update", None)
    with pytest.raises(ConfigError, match=f"--fake-devices={given} is not a number from 1 to 999"):
        devices.prepare(given, deterministic=False)


def test_quick_compiling_ends_where_it_was_asked_for():
    """A part of a run that asks for it, or does not, leaves --debug as it is."""

    def found():
        return jax.config.read("jax_disable_most_optimizations")

    for inner in (True, False):
        with devices.compiling_quickly(True):
            with devices.compiling_quickly(inner):
                assert found() is True
            assert found() is True
        assert found() is False


def test_a_profile_that_traces_nothing_says_so_and_a_late_start_traces_the_rest(tmp_path):
    told = []
    missed = profile.Profile("50:60", tmp_path / "missed", told.append)
    with missed.call(range(1, 2)):
        pass
    missed.done(range(1, 2), None)
    missed.close(None)
    assert "no step from 50 to 60" in told[0] and not (tmp_path / "missed").exists()
    late = profile.Profile("2:4", tmp_path / "late", told.append)
    for number in (4, 5):  # a resumed run that begins with step 4
        with late.call(range(number, number + 1)):
            value = jnp.ones(4).sum()
        late.done(range(number, number + 1), value)
    assert list((tmp_path / "late").rglob("*.xplane.pb")) and len(told) == 2


def test_looking_at_a_lock_does_not_make_a_start_fail(tmp_path):
    (tmp_path / "lock").touch()
    looker = (tmp_path / "lock").open("rb")
    fcntl.flock(looker, fcntl.LOCK_SH)  # as lock.held does for a moment
    timer = threading.Timer(0.3, looker.close)
    timer.start()
    with lock.hold(tmp_path):
        assert lock.held(tmp_path)
    timer.join()


def test_the_plan_says_that_bfloat16_is_slow_on_a_cpu():
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    source, _ = sources.load(tiny_config().data, True)
    for dtype, told in (("bfloat16", True), ("float32", False)):
        config = tiny_config(**{"encoder.dtype": dtype})
        text = terminal.plan(config, Path("x"), {}, mesh, source, 0, 15)
        assert ("warning     bfloat16 is slow on a CPU: --config.enc" in text) == told


def test_compiled_programs_are_kept_in_a_folder_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = compile_cache.environment("")
    folder = Path(found["JAX_COMPILATION_CACHE_DIR"])
    assert folder.parent == tmp_path / "cache/supmim" and folder.stat().st_mode & 0o777 == 0o700
    assert int(found["JAX_COMPILATION_CACHE_MAX_SIZE"]) == 2**31
    folder.chmod(0o777)
    assert compile_cache.environment("") == found and folder.stat().st_mode & 0o777 == 0o700
    moved = compile_cache.environment(str(tmp_path / "x/y"))
    assert moved["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "x/y")
    (tmp_path / "file").write_text("")
    assert compile_cache.environment(str(tmp_path / "file/below")) == {}
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert compile_cache.environment("") == {}, "a folder of another user"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "given")
    assert compile_cache.environment("") == {}
    assert compile_cache.environment("none") == {"JAX_COMPILATION_CACHE_DIR": ""}


def test_a_second_process_compiles_nothing_and_a_damaged_program_anew(tmp_path):
    code = """
import os, sys
from supmim.runtime import compile_cache
os.environ.update(compile_cache.environment(sys.argv[1]))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
import jax
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
print(float(jax.jit(lambda x: x * 3 + 1)(2.0)), "/jax/compilation_cache/cache_hits" in events)
"""

    def run(folder):
        command = [sys.executable, "-W", "ignore", "-c", code, folder]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    folder = tmp_path / "programs"
    assert run(str(folder)) == ["7.0", "False"] and run(str(folder)) == ["7.0", "True"]
    for file in folder.glob("*-cache"):
        file.write_bytes(file.read_bytes()[:-9])
    assert run(str(folder)) == ["7.0", "False"]
    assert run("none") == ["7.0", "False"]
