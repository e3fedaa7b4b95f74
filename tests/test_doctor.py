"""supmim doctor: what it finds out about a machine, and what it says is wrong with it."""

import dataclasses
import errno
import json
import math
import os
import sys
from pathlib import Path

import jax
import pytest

import supmim.runtime
from supmim import cli
from supmim.commands import doctor, machine_problems
from supmim.errors import DeviceError
from supmim.runtime import cgroup, devices, host_memory, machine

SOUND = machine.Machine(
    packages={"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.2"},
    misfits=(),
    environment={},
    driver="580.65.06",
    driver_fault="",
    ptxas=(("/venv/nvidia/cuda_nvcc/bin/ptxas", "12.9.86"),),
    free_memory_gib=200.0,
    total_memory_gib=256.0,
    memory_limit_gib=math.inf,
    readers=100,
    cores=64,
    allowed_cores=64,
    core_quota=math.inf,
    usable_cores=64,
    folder="/home/me",
    free_disk_gib=500.0,
    writable=True,
    open_files=4096,
)
CUDA_13 = SOUND.packages | {"jax-cuda13-plugin": "0.10.2"}
del CUDA_13["jax-cuda12-plugin"]
NO_CUDA = {"packages": {"jax": "0.10.2", "jaxlib": "0.10.2"}, "driver": "", "ptxas": ()}


def problems_of(hosts="", **changes):
    return list(machine_problems.find_problems(dataclasses.replace(SOUND, **changes), hosts))


def environment(**variables):
    return {"environment": variables}


def ptxas(*versions):
    return {
        "ptxas": tuple((f"/{number}/ptxas", version) for number, version in enumerate(versions))
    }


CASES = [
    ({"packages": SOUND.packages | {"tensorflow": "2.20.0"}}, "TensorFlow and JAX both pin",
     "pip uninstall tensorflow, then pip install 'jax[cuda12]'"),
    ({"packages": SOUND.packages | {"jax-cuda12-plugin": "0.10.1"}},
     "jax-cuda12-plugin 0.10.1 beside jaxlib 0.10.2", "pip install 'jax[cuda12]'"),
    ({"packages": CUDA_13 | SOUND.packages}, "both installed", "pip uninstall jax-cuda13-plugin"),
    ({"misfits": ("nvidia-cudnn-cu12 9.3.0.75 does not fit",)}, "nvidia-cudnn-cu12 9.3", "pip"),
    (environment(XLA_PYTHON_CLIENT_PREALLOCATE="false"), "may fragment", "unset XLA_PYTHON"),
    (environment(XLA_PYTHON_CLIENT_PREALLOCATE="off"), "not switch preallocation off", "=false"),
    (environment(XLA_CLIENT_MEM_FRACTION=".2"), "may use 20% of a GPU", "unset XLA_CLIENT_MEM_FR"),
    (environment(XLA_PYTHON_CLIENT_MEM_FRACTION=".5"), "use 50%", "unset XLA_PYTHON_CLIENT_MEM_FR"),
    (environment(XLA_CLIENT_MEM_FRACTION="75%"), "not a number", "unset XLA_CLIENT_MEM_FRACTION"),
    (environment(XLA_CLIENT_MEM_FRACTION=".9", XLA_PYTHON_CLIENT_MEM_FRACTION=".9"),
     "is set by its old name too: JAX finds no GPU", "unset XLA_PYTHON_CLIENT_MEM_FRACTION"),
    (environment(XLA_PYTHON_CLIENT_ALLOCATOR="platform"), "is very slow", "unset"),
    ({"driver": "515.105.01"}, "515.105.01 is too old: CUDA 12 needs 525", "cuda-compat"),
    ({"driver": "570.124.06", "packages": CUDA_13} | ptxas("13.0.88"), "too old: CUDA 13 needs 580",
     "jax[cuda12]"),
    ({"driver_fault": "Driver/library version mismatch"}, "nvidia-smi fails: Driver/l", "reboot"),
    (ptxas(), "ptxas 11.8+ (not 12.3.103), found none", "pip install 'jax[cuda12]'"),
    (ptxas("11.5.119", "12.3.103"), "found only 11.5.119, 12.3.103", "pip install"),
    (ptxas("11.5.119", "11.8.89"), "uses ptxas 11.8.89, which is older than C", "pip install"),
    (ptxas("11.8.89", "12.9.86") | environment(CUDA_ROOT="/0"), "which is older", "unset CUDA_R"),
    ({"free_memory_gib": 2.0, "readers": 1}, "less than 3 GiB of memory", "close other programs"),
    ({"free_memory_gib": 2.0, "memory_limit_gib": 4.0}, "less than 3 GiB", "raise the limit"),
    ({"readers": 10}, "room for 10 reader processes on 64 cores", "close other"),
    ({"core_quota": 3.5, "usable_cores": 4, "readers": 4}, "programs see 64 cores, but may use o",
     "taskset -c 0-3 supmim"),
    ({"free_disk_gib": 1.0}, "less than 5 GiB of disk", "--workdir="),
    ({"writable": False}, "nothing can be written to the current folder", "cd to another"),
    ({"open_files": 256}, "only 256 files may be open", "ulimit -n 4096"),
    ({"hosts": "8 Slurm tasks"} | environment(HTTPS_PROXY="http://x", http_proxy="http://x"),
     "with https_proxy, http_proxy, 8 Slurm tasks may not", "or list all hosts in no_proxy"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "problem", "fix"), CASES)
def test_each_clash_and_shortage_is_one_problem_with_its_remedy(changes, problem, fix):
    (found,) = problems_of(**changes)
    assert problem in found.problem and fix in found.fix
    assert max(map(len, found)) <= doctor.WIDTH - doctor.LABEL


@pytest.mark.parametrize(
    "changes",
    [
        {},
        NO_CUDA,
        {"packages": CUDA_13, **ptxas("13.0.88")},
        {"driver": "525.60.13"},
        {"driver": "", **ptxas()},  # a machine without a GPU, from which jobs are sent
        {"packages": SOUND.packages | {"tensorflow-cpu": "2.20.0"}},
        NO_CUDA | {"packages": NO_CUDA["packages"] | {"tensorflow": "2.20.0"}},
        NO_CUDA | environment(XLA_PYTHON_CLIENT_PREALLOCATE="false", XLA_CLIENT_MEM_FRACTION="x"),
        environment(XLA_PYTHON_CLIENT_PREALLOCATE="true", XLA_CLIENT_MEM_FRACTION=".9"),
        environment(https_proxy="http://x"),  # one host
        {"hosts": "8 Slurm tasks"} | environment(https_proxy="", no_proxy="localhost"),
        {"memory_limit_gib": 150.0},
        ptxas("11.5.119", "12.9.86"),  # XLA passes over the first
    ],
)
def test_a_sound_machine_has_no_problem(changes):
    assert not problems_of(**changes)


# What is found out.


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 535.104.05; echo 535.104.05", ("535.104.05", "")),
        ("echo Failed to initialize NVML: Driver/library version mismatch; exit 18",
         ("580.65.06", "Failed to initialize NVML: Driver/library version mismatch")),
        ("echo it failed >&2; exit 9", ("580.65.06", "it failed")),
        ("exec sleep 60", ("580.65.06", "it gives no answer")),
        ("", ("580.65.06", "it gives no answer")),
        (None, ("580.65.06", "")),
    ],
)  # fmt: skip
def test_the_driver_is_asked_of_nvidia_smi_and_else_of_the_kernel(
    tmp_path, monkeypatch, script, found
):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "SECONDS", 0.5)
    kernel = tmp_path / "version"
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", kernel)
    if script is not None:
        program(tmp_path / "nvidia-smi", script)
    without = found[0] if found[1] == "" and script else ""
    assert machine.nvidia_driver() == (without, found[1])
    kernel.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n"
                      "GCC version:  gcc version 12.2.0\n")  # fmt: skip
    assert machine.nvidia_driver() == found


def test_ptxas_is_looked_for_where_xla_looks(tmp_path, monkeypatch):
    """CUDA_ROOT, or else the wheel; then PATH; then /usr/local/cuda."""

    def place(folder, version):
        told = f"echo 'Cuda compilation tools, release x, V{version}'" if version else "exit 1"
        return str(program(tmp_path / folder / "ptxas", told))

    monkeypatch.setattr(machine, "CUDA", tmp_path / "cuda")
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}:{tmp_path / 'first'}")
    monkeypatch.delenv("CUDA_ROOT", raising=False)
    assert list(machine.all_ptxas()) == []
    expected = [
        (place("wheels/nvidia/cuda_nvcc/bin", "12.9.86"), "12.9.86"),
        (place("first", "11.5.119"), "11.5.119"),
        (place("second", ""), ""),
        (place("cuda/bin", "13.0.88"), "13.0.88"),
    ]
    monkeypatch.syspath_prepend(tmp_path / "wheels")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert list(machine.all_ptxas()) == expected
    own = (place("own/bin", "12.3.103"), "12.3.103")
    monkeypatch.setenv("CUDA_ROOT", str(tmp_path / "own"))
    assert list(machine.all_ptxas()) == [own, *expected[1:]]


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    metadata.write_text(
        "\n".join(["Metadata-Version: 2.1", "Provides-Extra: with-cuda", *lines, ""])
    )


def test_cuda_libraries_that_the_plugin_does_not_take_are_named(tmp_path, monkeypatch):
    extra = 'extra == "with-cuda"'
    distribution(
        tmp_path, "jax-cuda12-plugin", "0.10.2",
        "jax-cuda12-pjrt==0.10.2", f"nvidia-cudnn-cu12<10.0,>=9.8; {extra}",
        f"nvidia-cublas-cu12>=12.9; {extra}", f"nvidia-nccl-cu12>=2.18; {extra}",
    )  # fmt: skip
    distribution(tmp_path, "nvidia-cudnn-cu12", "9.3.0.75")
    distribution(tmp_path, "nvidia-cublas-cu12", "12.9.1.4")
    distribution(tmp_path, "jax-cuda12-pjrt", "0.10.2")
    monkeypatch.syspath_prepend(tmp_path)
    found = machine.look()
    assert found.misfits == (
        "jax-cuda12-plugin needs nvidia-cudnn-cu12<10.0,>=9.8, but 9.3.0.75 is installed",
    )
    assert found.plugins == {"jax-cuda12-plugin": 12} and found.packages["jax"] == jax.__version__


def test_versions_are_numbers():
    assert machine.numbers("580.65.06") == (580, 65, 6) and machine.numbers("no") == ()
    assert machine.numbers("0.10.2rc1") == (0, 10, 2)


# The limits of containers.


def control_groups(tmp_path, monkeypatch, own, files):
    for name, text in {"proc/self/cgroup": own, **files}.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/job/step\n", {  # the second version; the limit is that of the job
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/memory.max": f"{8 * 2**30}\n",
            "sys/fs/cgroup/job/memory.current": f"{3 * 2**30}\n",
            "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {2**30}\n",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
            "sys/fs/cgroup/job/cpu.max": "250000 100000\n"}),
        ("0::/host/path/of/a/container\n", {  # of which only the root is visible
            "sys/fs/cgroup/memory.max": f"{8 * 2**30}\n",
            "sys/fs/cgroup/memory.current": f"{3 * 2**30}\n",
            "sys/fs/cgroup/memory.stat": f"inactive_file {2**30}\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n"}),
        ("0::/../../other\n", {
            "sys/fs/cgroup/memory.max": f"{8 * 2**30}\n",
            "sys/fs/cgroup/memory.current": f"{2 * 2**30}\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n"}),
        ("4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n", {  # the first version
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{8 * 2**30}\n",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": f"{3 * 2**30}\n",
            "sys/fs/cgroup/memory/a/memory.stat": f"total_inactive_file {2**30}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}),
    ],
)  # fmt: skip
def test_limits_of_a_container_are_those_of_the_groups_above_too(tmp_path, monkeypatch, own, files):
    control_groups(tmp_path, monkeypatch, own, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    assert cgroup.memory_limit() == 8 * 2**30 and cgroup.memory_left() == 6 * 2**30
    assert cgroup.core_quota() == 2.5 and cgroup.usable_cores() == 3
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {256 * 2**20} kB\nMemAvailable: {200 * 2**20} kB\n")
    monkeypatch.setattr(host_memory, "MEMINFO", meminfo)
    assert host_memory.available() == 6 and host_memory.total() == 256
    assert host_memory.affordable_readers() == 3


def test_without_limits_the_machine_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(5))
    for own, files in (("", {}), ("0::/\n", {"sys/fs/cgroup/memory.max": "max\n"})):
        control_groups(tmp_path, monkeypatch, own, files)
        assert cgroup.memory_limit() == cgroup.memory_left() == cgroup.core_quota() == math.inf
        assert cgroup.usable_cores() == 5
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "another system")
    assert cgroup.memory_limit() == math.inf


# The report.


def test_the_report_names_facts_and_problems_in_80_columns(capsys, monkeypatch):
    changes = {name: value for changed, _, _ in CASES for name, value in changed.items()}
    changes["environment"] = {"https_proxy": "http://secret@x", "XLA_CLIENT_MEM_FRACTION": ".2"}
    del changes["hosts"]
    worst = dataclasses.replace(SOUND, **changes)
    monkeypatch.setattr(doctor, "look", lambda: worst)
    assert cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "devices     8 x cpu (cpu)\n" in out and "jax 0.10.2" in out
    assert "proxies     https_proxy; unset them for runs of several hosts\n" in out
    assert "memory      2.0 of 256.0 GiB available, limited to 4.0\n" in out
    assert (
        "problem     less than 5 GiB of disk is free: saving checkpoints may fail\n  fix  " in out
    )
    assert max(map(len, out.splitlines())) <= 80 and "secret" not in out
    assert cli.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["platform"] for one in found["devices"]] == ["cpu"] * 8
    assert found["problems"] == [one._asdict() for one in problems_of(**changes)]
    assert found["memory_limit_gib"] == 4.0 and "secret" not in str(found)
    monkeypatch.setattr(doctor, "look", lambda: SOUND)
    assert cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("problems    none found\n")
    assert "driver      NVIDIA 580.65.06\n" in out
    assert "ptxas       12.9.86 in /venv/nvidia/cuda_nvcc/bin/ptxas\n" in out
    assert cli.run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["core_quota"] is None


def test_no_usable_device_and_a_jax_that_cannot_be_imported_exit_6(capsys, monkeypatch):
    def unused():
        raise DeviceError("this machine has a gpu, but JAX would train on the CPU.\nInstall " * 3)

    monkeypatch.setattr(devices, "check", unused)
    assert cli.run(["doctor"]) == 6
    out = capsys.readouterr().out
    assert "devices     none usable: this machine has a gpu" in out
    assert max(map(len, out.splitlines())) <= 80 and "problem" in out
    monkeypatch.delattr(supmim.runtime, "devices")
    monkeypatch.setitem(sys.modules, "supmim.runtime.devices", None)
    assert cli.run(["doctor", "--json"]) == 6
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == [] and found["fault"].startswith("JAX cannot be imported: ")
    assert found["problems"] == [] or all(one["fix"] for one in found["problems"])


@pytest.mark.parametrize("before", [None, "true"])
def test_the_doctor_takes_no_memory_of_a_gpu_that_is_in_use(monkeypatch, before):
    name, seen = machine_problems.PREALLOCATE, []
    monkeypatch.delenv(name, raising=False)
    if before:
        monkeypatch.setenv(name, before)
    monkeypatch.setattr(devices, "check", lambda: seen.append(os.environ[name]) or jax.devices())
    assert doctor.jax_devices().found and seen == ["false"]
    assert os.environ.get(name) == before


# The workdir.


def test_a_workdir_is_tried_and_stays_as_it_was(capsys, tmp_path):
    """Also one that holds a run whose config cannot be read: the doctor does not read it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("no config")
    for place in (run, tmp_path / "new" / "deep"):
        assert cli.run(["doctor", f"--workdir={place}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line[:11].strip() for line in lines[-4:]] == ["write", "list", "read", "delete"]
        assert all(line.endswith(" ms") and len(line) <= 80 for line in lines[-4:])
    assert sorted(tmp_path.rglob("*")) == [run, run / "config.json"]


def test_a_workdir_that_cannot_be_written_exits_2(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    assert cli.run(["doctor", f"--workdir={tmp_path / 'file' / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert "cannot be used: Not a directory; choose another --workdir" in told

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert cli.run(["doctor", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "cannot be used: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "file"]


def test_without_a_workdir_none_is_tried(capsys, monkeypatch):
    monkeypatch.setattr(doctor.trial, "seconds", lambda _: pytest.fail("it was tried"))
    assert cli.run(["doctor"]) == 0 and "workdir " not in capsys.readouterr().out
    assert cli.run(["doctor", "--json"]) == 0
    assert "workdir" not in json.loads(capsys.readouterr().out)
