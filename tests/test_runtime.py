"""The machine: devices that should be used, signals, one run per workdir, bad numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from supmim import doctor, metrics
from supmim.errors import ConfigError, DeviceError, NumericsError
from supmim.runtime import devices, lock, numerics
from supmim.runtime.clock import Clock


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
    assert devices.visible_accelerator(root) == kind
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    devices.check(root)
    monkeypatch.delenv("JAX_PLATFORMS")
    if not kind:
        devices.check(root)
        return
    with pytest.raises(DeviceError, match="JAX_PLATFORMS=cpu") as caught:
        devices.check(root)
    assert devices.INSTALL[kind] in str(caught.value) and caught.value.exit_code == 6


def test_doctor_tells_versions_devices_and_problems_in_80_columns(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "free_disk", lambda: 1.0)
    assert doctor.run(None, None) == 0
    out = capsys.readouterr().out
    assert "jax 0." in out and "8 x cpu" in out and "less than 5 GiB of disk" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_second_run_on_a_workdir_is_refused_and_a_stale_lock_is_not(tmp_path):
    script = f"""
import time
from pathlib import Path
from supmim.runtime import lock
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


def test_a_second_signal_exits_at_once():
    script = """
import time
from supmim.runtime.preemption import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.after(0):
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


def totals_of(bad: int, loss: float) -> dict:
    return {
        "skipped_in_a_row": metrics.Last(jnp.asarray(bad)),
        "mim_loss": metrics.scalar(jnp.asarray(loss)),
        "class_loss": metrics.scalar(jnp.asarray(1.0)),
    }


def test_five_bad_steps_in_a_row_end_the_run_with_a_post_mortem(tmp_path):
    watch = numerics.NumericsWatch(tmp_path / "postmortem.json", {"seed": 3})
    for step in range(1, 10):  # never five in a row
        watch.add(step, jnp.asarray([step]), totals_of(step % 5, 1.0))
    with pytest.raises(NumericsError, match="the last is step 14; not finite: mim_loss") as caught:
        for step in range(10, 20):
            watch.add(step, jnp.asarray([step, 7]), totals_of(step - 9, float("nan")))
    assert caught.value.exit_code == 5
    document = json.loads((tmp_path / "postmortem.json").read_text())
    assert document["seed"] == 3 and [s["step"] for s in document["steps"]] == [10, 11, 12, 13, 14]
    assert document["steps"][-1]["index"] == [14, 7]
    assert document["steps"][-1]["mim_loss"] == "not finite"


def test_clock_leaves_out_pauses_and_counts_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    clock = Clock(batch_size=10)
    with clock.compiling():
        spend(40)
    for _ in range(4):
        with clock.waiting():
            spend(1)
        spend(3)
        with clock.paused():
            spend(100)
    summary = clock.summary(4)
    assert summary == {"images_per_second": 2.5, "data_wait": 0.25, "compile_seconds": 40.0}
    spend(5)
    assert clock.summary(1)["images_per_second"] == 2.0
