"""Shows that a change of the code changes no number: nine short commands, recorded and compared.

    git worktree add ../before main
    python tools/same_results.py record before.json --checkout=../before
    python tools/same_results.py record after.json
    python tools/same_results.py compare before.json after.json

Each recording takes about five minutes on two cores. It calls only `supmim VERB ...` and reads only
files that a run writes, so that it can record any two commits which take the same options. What is
compared: every array of the last checkpoint, results.json, the first 50 lines of metrics.jsonl
without times, the StableHLO of every train step, and the files of a cache of target ids.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LINES = 50  # of metrics.jsonl
TIMES = re.compile(r"goodput/|(wall|cpu)_seconds/|images_per_second$|data_wait$|compile_seconds$")
DIGITS = ("--config.log_every=5", "--config.eval_every=60", "--config.total_epochs=4")
RUNS = {
    "two_passes": ("train", "--config=configs/digits.py", *DIGITS),
    "one_pass": (
        "train", "--config=configs/digits.py", *DIGITS, "--config.mim.passes=one",
        "--config.data.mixup=0.0", "--config.mim.target=normalized_pixels",
    ),
    "baseline": ("train", "--config=configs/digits.py:baseline", *DIGITS),
    "cached": (
        "train", "--config=configs/digits.py", *DIGITS, "--config.data.targets={ids}",
        "--config.data.randaug_num=2", "--config.data.randaug_magnitude=10.0",
        "--config.accumulation_steps=2",
    ),
    "finetuned": (
        "train", "--config=configs/finetune_digits.py", "--config.total_epochs=3",
        "--config.init.model={two_passes}", "--config.log_every=5",
    ),
    "tokenizer": (
        "tokenizer", "train", "--config=configs/tokenizer_cifar10.py", "--config.total_epochs=1",
        "--config.data.train=digits:train", "--config.data.image_size=8",
        "--config.data.channels=1", "--config.tokenizer.patch_size=2",
        "--config.tokenizer.channel_multipliers=1,1", "--config.tokenizer.filters=8",
        "--config.tokenizer.codebook_size=32", "--config.tokenizer.adversarial_weight=0.1",
        "--config.tokenizer.discriminator_filters=4", "--config.optimizer.warmup_steps=10",
        "--config.log_every=5",
    ),
    "segmentation": (
        "train", "--config=configs/segment_scenes.py:finetune", "--config.total_epochs=4",
        "--config.init.model={two_passes}", "--config.log_every=5",
        "--config.optimizer.warmup_steps=10",
    ),
}  # fmt: skip
LOCATION = re.compile(r"(?m)^#loc.*\n| loc\((?:[^()]|\([^()]*\))*\)")  # in the text of StableHLO
IDS = ("data", "tokens", "--config=configs/digits.py", *DIGITS)
EVERY_EVALUATOR = ("evaluate", "--workdir={two_passes}", "--evaluators=all")


def supmim(checkout: Path, arguments: tuple[str, ...], **environment: str) -> None:
    """Runs the command line of a checkout; shows what it printed if it fails."""
    command = [sys.executable, "-m", "supmim", *arguments]
    changed = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(checkout), **environment}
    done = subprocess.run(
        command, cwd=checkout, env=os.environ | changed, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def record(checkout: Path) -> dict[str, Any]:
    """Runs everything; returns what is compared, by the name of the run."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {name: str(Path(folder, name)) for name in ("ids", *RUNS)}

        def filled(arguments: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(argument.format(**places) for argument in arguments)

        for name, arguments in RUNS.items():
            print(f"{name} ...", flush=True)
            if name == "cached":
                supmim(checkout, filled((*IDS, "--out={ids}")))
                found["target ids"] = files_digest(Path(places["ids"]))
            workdir, programs = Path(places[name]), Path(folder, f"{name}_programs")
            dump = {"JAX_DUMP_IR_TO": str(programs), "JAX_DUMP_IR_MODES": "stablehlo"}
            supmim(checkout, (*filled(arguments), f"--workdir={workdir}"), **dump)
            found[name] = run_record(workdir) | {"train step": program_digests(programs)}
        print("every evaluator ...", flush=True)
        supmim(checkout, filled(EVERY_EVALUATOR))
        found["every evaluator"] = results_of(Path(places["two_passes"]))
    return found


def run_record(workdir: Path) -> dict[str, Any]:
    """What is compared of one finished run."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[:LINES]
    metrics = [
        {name: value for name, value in json.loads(line).items() if not TIMES.match(name)}
        for line in lines
    ]
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    return {
        "checkpoint": arrays_digest(newest),
        "results.json": results_of(workdir),
        "metrics.jsonl": metrics,
    }


def results_of(workdir: Path) -> dict[str, Any]:
    """Return results.json without paths and without digests of files, whose layout may change."""
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    for note, name in (("checkpoint", "digest"), ("init", "sha256"), ("init", "workdir")):
        results.get(note, {}).pop(name, None)
    return results


def arrays_digest(checkpoint: Path) -> str:
    """SHA-256 of the names, shapes, types and bytes of all arrays of a checkpoint."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    jax.config.update("jax_platforms", "cpu")
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(ocp.load(checkpoint)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def program_digests(folder: Path) -> list[str]:
    """SHA-256 of each train step that was lowered, without source locations."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*train_step*"))]
    if not texts:
        sys.exit(f"no program called train_step was lowered in {folder}")
    plain = [LOCATION.sub("", text) for text in texts]
    return sorted({hashlib.sha256(text.encode()).hexdigest() for text in plain})


def files_digest(folder: Path) -> str:
    """SHA-256 of the cache's binary files; its metadata.json may gain a field."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.ids")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def differences(before: Any, after: Any, where: str) -> list[str]:
    """A line for every value that is not the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        pairs = [(before.get(name), after.get(name), f"{where} {name}") for name in names]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [
            (b, a, f"{where}[{i}]") for i, (b, a) in enumerate(zip(before, after, strict=True))
        ]
    else:
        return [] if before == after else [f"{where}: {before!r} before, {after!r} after"]
    return [line for pair in pairs for line in differences(*pair)]


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Prints a line for each recorded run; returns all differences."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        lines = differences(before.get(name), after.get(name), name)
        print(f"{name:<16} {f'{len(lines)} DIFFERENCES' if lines else 'identical'}")
        found += lines
    return found


def main() -> None:
    """Parses the command line; exits with 1 if two recordings differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(required=True, dest="verb")
    recorder = verbs.add_parser("record", help="run everything and write what came out")
    recorder.add_argument("file", type=Path)
    recorder.add_argument("--checkout", type=Path, default=Path(__file__).parent.parent)
    comparer = verbs.add_parser("compare", help="compare two recordings")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.verb == "record":
        text = json.dumps(record(asked.checkout.resolve()), indent=1) + "\n"
        asked.file.write_text(text, encoding="utf-8")
        return
    recordings = (
        json.loads(path.read_text(encoding="utf-8")) for path in (asked.before, asked.after)
    )
    if lines := compare(*recordings):
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
