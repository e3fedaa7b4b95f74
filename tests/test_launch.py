"""launch/: clean shell, valid YAML, and arguments that arrive as they were written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from supmim import cli, errors
from tests.test_structure import MODULES, imports_of

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
FIXTURES = ROOT / "tests/fixtures"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
JOBSET = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
SKYPILOT = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
INTERRUPTED = errors.Interrupted.exit_code
AGAIN = {errors.DeviceError.exit_code, errors.StallError.exit_code, INTERRUPTED}
FAULTS = {kind.exit_code for kind in errors.SupmimError.__subclasses__()} - AGAIN

TOOLS = ("docker", "gcloud", "kubectl", "python3", "sbatch", "scontrol", "sky", "srun", "supmim",
         "xpk")  # fmt: skip
# Notes how it was called, arguments end in NUL and calls in RS; gcloud copies to $VM, uv installs.
STAND_IN = r"""#!/bin/bash
tool=${0##*/}
printf '%s\0' "$tool" "$@" $'\x1e' >> "$RECORD"
[[ $tool == gcloud && $4 == scp ]] && cp "$5" "$VM"
[[ "$tool $*" == "python3 -m uv venv"* ]] && mkdir -p .venv/bin && cp "${0%/*}/supmim" .venv/bin
code=EXIT_$tool
exit "${!code-0}"
"""
HOSTILE = [
    "--workdir=/runs/two words",
    '--a=it\'s "quoted"',
    "--b=$(touch pwned) `touch pwned` ${HOME} $HOME $$",
    "--c=; touch pwned & touch pwned | touch pwned > pwned #",
    "--d=* ? [a] {1,2} ~ ! \\ \\n %s é",
    "",
    "--e=a  b\tc",
]


class Bench:
    """Runs a script of launch/ among stand-ins and tells how they were called."""

    def __init__(self, folder: Path):
        self.vm, self.bin, self.record = folder / "vm", folder / "bin", folder / "record"
        for path in (self.vm, self.bin):
            path.mkdir()
        for tool in TOOLS:
            (self.bin / tool).write_text(STAND_IN)
            (self.bin / tool).chmod(0o755)
        self.env = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "VM": str(self.vm),
            "TMPDIR": str(folder),
            "SLURM_JOB_ID": "123",
            "SLURM_CPUS_PER_TASK": "8",
        }

    def run(self, *command: str, cwd: Path | None = None, **env: str):
        return subprocess.run(
            command, cwd=cwd or self.vm, env=self.env | env, capture_output=True, text=True
        )

    def calls(self) -> list[list[str]]:
        """Every call so far, the tool's name first; forgets them."""
        text = self.record.read_text() if self.record.exists() else ""
        self.record.unlink(missing_ok=True)
        return [call.split("\0")[:-1] for call in text.split("\x1e\0")[:-1]]


@pytest.fixture
def bench(tmp_path):
    yield Bench(tmp_path)
    assert not list(tmp_path.rglob("pwned"))


def shellcheck(text: str, *flags: str) -> None:
    tool = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([tool, *flags, "-"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_thin_and_shellcheck_finds_nothing(script):
    text = script.read_text()
    shellcheck(text)
    assert "set -euo pipefail" in text and len(text.splitlines()) <= 40
    assert os.access(script, os.X_OK)


def test_shellcheck_finds_nothing_in_the_commands_of_skypilot():
    shellcheck(SKYPILOT["setup"], "--shell=bash")
    shellcheck(SKYPILOT["run"], "--shell=bash")


def test_what_runs_on_tpus_writes_to_a_bucket_and_installs_what_that_needs():
    for name in ("tpu_vm.sh", "xpk.sh", "jobset.yaml", "skypilot.yaml"):
        text = (LAUNCH / name).read_text()
        workdirs = re.findall(r"--workdir=(\S+)", text)
        assert workdirs and all(workdir.startswith("gs://") for workdir in workdirs), name
    for name in ("tpu_vm.sh", "skypilot.yaml", "README.md"):
        installed = re.findall(r"install .*'\.\[(?:tpu|cuda)(.*)\]'", (LAUNCH / name).read_text())
        assert set(installed) == {",gcs"}, name
    extras = re.findall(r'"(\w+)": (?:GCS|\[)', (ROOT / "setup.py").read_text())
    assert {"tpu", "cuda", "gcs"} <= set(extras)
    assert "--workdir=/scratch/" in (LAUNCH / "slurm.sbatch").read_text()


def test_only_the_module_of_buckets_imports_cloud_sdks_and_none_that_starts_machines():
    clouds = {"gcsfs", "google", "s3fs", "botocore", "boto3", "azure"}
    roots = {
        module: {name.split(".")[0] for name in imports_of(path)}
        for module, path in MODULES.items()
    }
    assert {m for m, found in roots.items() if found & clouds} == {"supmim.storage.buckets"}
    assert not set().union(*roots.values()) & {"googleapiclient", "kubernetes", "sky", "xpk"}


@pytest.mark.parametrize(
    "args",
    [
        ["tpu_vm.sh"],
        ["tpu_vm.sh", "pod", "zone", "--config=a.py", "--workdir=b"],
        ["tpu_vm.sh", "pod", "--zone=zone", "--", "--config=a.py"],
        ["tpu_vm.sh", "pod", "zone", "--project=lab", "--"],
        ["xpk.sh", "l14", "cluster", "v5litepod-256", "--", "--config=a.py"],
        ["xpk.sh", "l14", "cluster", "v5litepod-256", "--docker-image=a", "--", "--config=a.py"],
        ["xpk.sh", "l14", "cluster", "v5litepod-256", "image", "--spot", "--"],
        ["slurm.sbatch"],
        ["gpu_debug.sh", "configs/digits.py"],
    ],
)
def test_wrong_arguments_are_told_the_usage_and_nothing_is_called(bench, args):
    done = bench.run(LAUNCH / args[0], *args[1:])
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
    assert max(map(len, done.stderr.splitlines())) <= 80
    assert not bench.calls()


def working_tree(folder: Path) -> Path:
    """A repository with the script, a file that git knows, a new one and an ignored one."""
    for name in ("launch", "configs", "runs"):
        (folder / name).mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_vm.sh", folder / "launch")
    for name in ("setup.py", "configs/a néw one.py", "runs/big"):
        (folder / name).touch()
    (folder / ".gitignore").write_text("runs/\n")
    for command in (["init", "-q"], ["add", "setup.py"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder / "launch/tpu_vm.sh"


def test_tpu_vm_brings_the_tree_and_the_arguments_to_every_worker(bench, tmp_path):
    script = working_tree(tmp_path / "tree")
    name, zone = "pod one", "$(touch pwned)"
    done = bench.run(script, name, zone, "--project=a b", "--", *HOSTILE)
    assert done.returncode == 0, done.stderr
    where = [f"--zone={zone}", "--worker=all", "--project=a b"]
    scp, ssh = bench.calls()
    assert scp[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert scp[6:] == [f"{name}:", *where] and not Path(scp[5]).exists()
    assert ssh[:-1] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, *where]

    remote = ssh[-1].removeprefix("--command=")
    for _ in range(2):  # the second time, the workers are set up
        done = bench.run("bash", "-c", remote)
        assert done.returncode == 0, done.stderr
        assert bench.calls()[-1] == ["supmim", "train", *HOSTILE]
    tree = bench.vm / "supmim"
    assert (tree / "setup.py").exists() and (tree / "configs/a néw one.py").exists()
    assert not (tree / "runs").exists() and not (tree / ".git").exists()


def test_tpu_vm_does_not_go_on_after_a_failure(bench, tmp_path):
    script = working_tree(tmp_path / "tree")
    args = ["pod", "zone", "--", "--workdir=x"]
    assert bench.run(script, *args, EXIT_gcloud="7").returncode == 7
    assert len(bench.calls()) == 1
    assert bench.run(script, *args).returncode == 0
    remote = bench.calls()[-1][-1].removeprefix("--command=")
    assert bench.run("bash", "-c", remote, EXIT_python3="3").returncode == 3
    assert len(bench.calls()) == 1


def test_xpk_restarts_what_was_interrupted_and_the_container_gets_the_arguments(bench):
    args = ["l14", "a cluster", "v5litepod-256", "image:1", "--zone=$(touch pwned)"]
    done = bench.run(LAUNCH / "xpk.sh", *args, "--", *HOSTILE)
    assert done.returncode == 0, done.stderr
    (call,) = bench.calls()
    assert call[:3] == ["xpk", "workload", "create"]
    assert {
        "--workload=l14",
        "--cluster=a cluster",
        "--tpu-type=v5litepod-256",
        "--docker-image=image:1",
        "--zone=$(touch pwned)",
        f"--restart-on-exit-codes={','.join(map(str, sorted(AGAIN)))}",
    } < set(call)
    command = call[-1].removeprefix("--command=")
    assert "$(" not in command and "\n" not in command  # Kubernetes and YAML read it, too
    bench.run("bash", "-c", f"({command}) & wait $!")
    assert bench.calls() == [["supmim", "train", *HOSTILE]]


def test_slurm_passes_the_arguments_and_requeues_only_what_was_interrupted(bench):
    for code, restarts in ((0, 0), *((n, 0) for n in (*AGAIN, *FAULTS, 137)), (6, 50), (75, 50)):
        restarted = {"SLURM_RESTART_COUNT": str(restarts)}
        done = bench.run(LAUNCH / "slurm.sbatch", *HOSTILE, EXIT_srun=str(code), **restarted)
        assert done.returncode == code
        srun, *then = bench.calls()
        assert srun[0] == "srun" and srun[-len(HOSTILE) - 2 :] == ["supmim", "train", *HOSTILE]
        again = code == INTERRUPTED or code in AGAIN and restarts < 50
        assert then == ([["scontrol", "requeue", "123"]] if again else [])


def test_slurm_asks_for_a_signal_in_time_and_one_task_per_gpu():
    options = re.findall("^#SBATCH --([^=\n]+)=?(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    asked = dict(options)
    assert asked["signal"] == "TERM@120" and "requeue" in asked
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]


def test_gpu_debug_looks_at_the_machine_and_then_runs_short_in_a_new_folder(bench):
    flags = ["--config=a b.py", *HOSTILE[1:]]
    folders = set()
    for _ in range(2):
        done = bench.run(LAUNCH / "gpu_debug.sh", *flags)
        assert done.returncode == 0, done.stderr
        doctor, train = bench.calls()
        assert doctor == ["supmim", "doctor"]
        assert train[:2] == ["supmim", "train"] and train[3:] == ["--debug", *flags]
        folders.add(train[2].removeprefix("--workdir="))
    assert len(folders) == 2 and not any(os.listdir(folder) for folder in folders)


def test_gpu_debug_ends_where_the_doctor_finds_no_device(bench):
    code = errors.DeviceError.exit_code
    done = bench.run(LAUNCH / "gpu_debug.sh", "--config=a.py", EXIT_supmim=str(code))
    assert done.returncode == code and len(bench.calls()) == 1


@pytest.mark.parametrize(("name", "document"), [("jobset", JOBSET), ("skypilot", SKYPILOT)])
def test_yaml_follows_its_schema_and_a_misspelt_field_does_not(name, document):
    schema = yaml.safe_load((FIXTURES / f"{name}.schema.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(document))
    for group, key in fields(document):
        group[f"{key}X"] = group.pop(key)
        assert list(validator.iter_errors(document)), key
        group[key] = group.pop(f"{key}X")


def fields(document) -> list[tuple[dict, str]]:
    """Every (mapping, key) of a document."""
    if isinstance(document, list):
        return [field for item in document for field in fields(item)]
    if not isinstance(document, dict):
        return []
    below = [field for value in document.values() for field in fields(value)]
    return [(document, key) for key in document] + below


def test_jobset_asks_for_as_many_chips_as_its_topology_has_and_passes_no_shell():
    (slice_job,) = JOBSET["spec"]["replicatedJobs"]
    job = slice_job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert job["completions"] == job["parallelism"]
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert container["command"] == ["supmim", "train"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    workdir = next(arg for arg in container["args"] if arg.startswith("--workdir="))
    assert workdir.startswith("--workdir=gs://")
    assert f"--config.data.tfds_dir={mounts['data']}" in container["args"]


def test_jobset_gives_up_on_the_faults_that_a_restart_would_repeat_and_on_no_other():
    (slice_job,) = JOBSET["spec"]["replicatedJobs"]
    job = slice_job["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert set(rule["onExitCodes"]["values"]) == FAULTS
    (container,) = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    policy = JOBSET["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] > 0 and job["backoffLimit"] == 0


def test_skypilot_passes_one_flag_a_line_and_recovers_what_was_interrupted(bench):
    assert SKYPILOT["resources"]["job_recovery"] == {"recover_on_exit_codes": sorted(AGAIN)}
    assert bench.run("bash", "-c", SKYPILOT["setup"]).returncode == 0
    bench.calls()
    flags = [flag for flag in HOSTILE if flag]
    alone = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NODE_RANK": "0"}
    for lines in (flags, SKYPILOT["envs"]["FLAGS"].splitlines()):
        bench.run("bash", "-c", SKYPILOT["run"], FLAGS="\n".join(lines) + "\n", **alone)
        assert bench.calls() == [["supmim", "train", *lines]]
    assert (
        bench.run("bash", "-c", SKYPILOT["run"], FLAGS="a", EXIT_supmim="75", **alone).returncode
        == 75
    )


def test_skypilot_tells_several_hosts_where_they_meet(bench):
    bench.run("bash", "-c", SKYPILOT["setup"])
    bench.calls()
    hosts = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    bench.run("bash", "-c", SKYPILOT["run"], FLAGS="--a", SKYPILOT_NODE_RANK="1", **hosts)
    meeting = ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]
    assert bench.calls() == [["supmim", "train", "--a", *meeting]]


def test_the_commands_of_the_readme_reach_their_tools(bench):
    text = (LAUNCH / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    called = {}
    for block in blocks:
        done = bench.run("bash", "-euc", block, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        called |= {call[0]: call for call in bench.calls()}
    assert set(called) == {"docker", "gcloud", "kubectl", "sbatch", "sky", "supmim", "xpk"}
    paths = re.findall(r"(?:launch|configs)/\w+\.\w+", text)
    assert all((ROOT / path).exists() for path in paths)
    assert {path.name for path in LAUNCH.iterdir()} - {"README.md"} <= set(
        re.findall(r"\w+\.\w+", text)
    )


def test_every_flag_that_launch_names_is_one_of_train():
    text = "".join(path.read_text() for path in LAUNCH.iterdir())
    own = ("debug", "profile", "fake-devices", "coordinator", "num_processes", "process_id")
    for flag in own:
        assert f"--{flag}" in text
        assert flag.replace("-", "_") in cli.VERBS["train"].flags
