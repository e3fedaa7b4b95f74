"""Train digits under random faults, and compare the end with that of an undisturbed run.

    python tools/soak.py                         # 100 faults, half an hour on two cores
    python tools/soak.py --faults=10 --seed=1

Each fault ends a start of the run, or is followed by SIGTERM some steps later; the same command
then goes on. Parameters, results and every line of the metrics must be bit-equal in the end. The
exit code is 1 if they are not, or if a start ended with a code that its fault does not have.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEPS_EACH = 10  # at most, from one fault to the next
HUNG = 1000  # no exit code
LIMIT, WHOLE = 180.0, 1800.0  # seconds for one start, and for one that comes to the end
TIMES = re.compile(r"goodput/|(wall|cpu)_seconds/|images_per_second$|data_wait$|compile_seconds$")
# kind -> the exit codes that a start may end with. Those of 75 alone are ended by SIGTERM.
KINDS = {
    "killed": (-signal.SIGKILL,),
    "SIGTERM": (75,),
    "SIGHUP": (75,),
    "stalled step": (7,),
    "stalled reader": (7,),
    "killed reader": (75,),
    "full disk": (75,),
    "damaged checkpoint": (75,),
    "damaged digests": (75,),
}
FAULTS = {
    "killed": "kill@step", "SIGTERM": "term@step", "SIGHUP": "hup@step",
    "stalled step": "stall@step", "stalled reader": "stall@record",
    "killed reader": "kill@record", "full disk": "full@save",
}  # fmt: skip
IMAGES, BATCH = 300, 30
OPTIONS = {
    "batch_size": BATCH, "log_every": 1, "save_every": 4, "eval_every": 0,
    "data.workers": 1, "data.resident": "off", "data.mixup": 0.2,
    "encoder.depth": 1, "encoder.width": 16, "encoder.num_heads": 2, "encoder.mlp_dim": 32,
    "decoder.width": 16, "decoder.num_heads": 2, "decoder.mlp_dim": 32,
    "tokenizer.codebook_size": 16, "optimizer.warmup_steps": 4, "optimizer.ema_decay": 0.9,
    "eval.evaluators": "classification,reconstruction", "checkpoint.keep_best": 0,
    "runtime.stall_minutes": 0.2,
}  # fmt: skip


def write_images(folder: Path) -> None:
    """Write digits as files, one folder per class, since in-memory sources have no readers."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for number in range(IMAGES):
        path = folder / str(found.target[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[number] * 15).astype(np.uint8)).save(path)


def command(workdir: Path, images: Path, total_steps: int) -> list[str]:
    """Return the command that starts a run and continues it."""
    values = OPTIONS | {"data.train": f"folder:{images}", "total_steps": total_steps}
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return [
        sys.executable,
        "-m",
        "supmim",
        "train",
        "--config=digits",
        f"--workdir={workdir}",
        *flags,
    ]


def rows(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of the metrics, without times."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [{k: v for k, v in row.items() if not TIMES.match(k)} for row in found]


def whole(workdir: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    found = [p.parent for p in (workdir / "checkpoints").glob("*/digests.json")]
    return sorted((p for p in found if p.name.isdecimal()), key=lambda p: int(p.name))


def damage(checkpoint: Path, chance: random.Random, digests: bool) -> None:
    """Change one byte of a checkpoint, in its digests or in another of its files."""
    path = checkpoint / "digests.json"
    if not digests:
        files = [p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size and p != path]
        path = chance.choice(sorted(files))
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def newest_step(workdir: Path) -> int:
    """Return the step of the last line of the metrics."""
    path = workdir / "metrics.jsonl"
    found = re.findall(rb'"step": ([0-9]+)', path.read_bytes()[-2000:]) if path.is_file() else []
    return int(found[-1]) if found else 0


def take_signals() -> None:
    """Let a start have signals that nohup or a shell has ignored."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def start(
    arguments: list[str], workdir: Path, fault: str = "", until: int = 0, limit: float = LIMIT
) -> tuple[int, str]:
    """Run one start; return its exit code and the end of what it said.

    until: the step after which it gets SIGTERM; 0: none.
    """
    environment = os.environ | ({"SUPMIM_FAULT": fault} if fault else {})
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(
            arguments, stdout=told, stderr=told, env=environment, preexec_fn=take_signals
        )
        end, asked = time.monotonic() + limit, False
        while child.poll() is None:
            time.sleep(0.1)
            if until and not asked and newest_step(workdir) >= until:
                child.terminate()
                asked = True
            if time.monotonic() > end:
                child.kill()
                return HUNG, f"it took longer than {limit:.0f} s"
        told.seek(0)
        return child.wait(), told.read().decode(errors="replace")[-2000:]


def state(workdir: Path) -> dict[str, Any]:
    """Return results and the bytes of every array at the end of a run."""
    import jax
    from orbax.checkpoint import v1 as ocp

    results = json.loads((workdir / "results.json").read_text())
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load(whole(workdir)[-1]))
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    plain = {name: value for name, value in results.items() if isinstance(value, int | float)}
    return {"results": plain, "arrays": arrays, "metrics": rows(workdir)}


def disturbed(arguments: list[str], workdir: Path, count: int, chance: random.Random) -> int:
    """Run under `count` faults and to the end; return how many starts ended as none may."""
    ends: dict[str, collections.Counter] = {kind: collections.Counter() for kind in KINDS}
    wrong = noticed = 0
    for number in range(count):
        checkpoints = whole(workdir)
        done = int(checkpoints[-1].name) if checkpoints else 0
        kinds = [k for k in KINDS if len(checkpoints) > 1 or not k.startswith("damaged")]
        kind, at = chance.choice(kinds), done + chance.randint(1, STEPS_EACH)
        fault, until = FAULTS.get(kind, ""), 0
        if fault.endswith("record"):
            at = chance.randrange(IMAGES * 9 // 10)  # a tenth is held out
        if kind == "full disk":
            at = (done // 4 + 1) * 4  # the next save
        if kind.startswith("damaged"):
            damage(checkpoints[-1], chance, kind.endswith("digests"))
        if KINDS[kind] == (75,) and not kind.startswith("SIG"):
            until = done + STEPS_EACH
        code, told = start(arguments, workdir, f"{fault}:{at}" if fault else "", until)
        ends[kind][code] += 1
        corrupt = list((workdir / "checkpoints").glob("*.corrupt*"))
        noticed += len(corrupt)
        for path in corrupt:
            shutil.rmtree(path)
        if code not in KINDS[kind]:
            wrong += 1
            print(f"{number}: {kind} at {at} ended with {code}:\n{told}", file=sys.stderr)
        print(f"{number + 1}/{count}  {kind} at {at}: exit code {code}", flush=True)
    code, told = start(arguments, workdir, limit=WHOLE)
    if code:
        print(f"the last start ended with {code}:\n{told}", file=sys.stderr)
    print(f"{'fault':<20}{'times':>6}  exit codes")
    for kind, codes in ends.items():
        each = ", ".join(f"{n} x {code}" for code, n in sorted(codes.items()))
        print(f"{kind:<20}{sum(codes.values()):>6}  {each}")
    print(f"damaged checkpoints that were noticed: {noticed}")
    return wrong + bool(code)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        write_images(folder / "images")
        steps = (args.faults + 4) * STEPS_EACH
        plain, faulty = (command(folder / n, folder / "images", steps) for n in ("plain", "faulty"))
        code, told = start(plain, folder / "plain", limit=WHOLE)
        if code:
            sys.exit(f"the undisturbed run ended with {code}:\n{told}")
        wrong = disturbed(faulty, folder / "faulty", args.faults, random.Random(args.seed))
        expected, found = state(folder / "plain"), state(folder / "faulty")
    differ = [name for name in expected if expected[name] != found[name]]
    print(f"{steps} steps; bit-equal: {', '.join(n for n in expected if n not in differ)}")
    if differ:
        print(f"NOT bit-equal: {', '.join(differ)}")
    return int(bool(wrong or differ))


if __name__ == "__main__":
    sys.exit(main())
