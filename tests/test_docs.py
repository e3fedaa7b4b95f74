"""The README and the pages of docs: what they say works, and everything is reached.

Every command is accepted by the command line. With -m slow it is also run, small, unless it stands
in NOT_RUN.
"""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from supmim import cli
from supmim import config as config_lib
from supmim.commands.verbs import FAMILIES, VERBS
from supmim.config import OPTIONS
from supmim.data.sources import scenes
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {path.name: path.read_text() for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
GENERATED = ("plan.md",)
MOST_LINES = 160
OTHERS = [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "launch/README.md"]


def commands(text: str) -> list[str]:
    """The supmim commands of the shell blocks of a page, one line each."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"^    (supmim .*)$", text, re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    each = (" ".join(part.split()) for line in lines for part in line.split("&&"))
    return [command for command in each if command.startswith("supmim ")]


COMMANDS = dict.fromkeys(command for text in PAGES.values() for command in commands(text))


def parsed(command: str) -> tuple[str, list[str]]:
    """The verb of a command and its arguments, without what the shell does with the output."""
    _, verb, *args = shlex.split(command.partition(" > ")[0])
    if args and f"{verb} {args[0]}" in VERBS:
        verb, args = f"{verb} {args[0]}", args[1:]
    return verb, args


TINY = {
    "batch_size": 48, "total_epochs": 2, "log_every": 1, "data.limit": 96, "data.workers": 0,
    "encoder.width": 16, "encoder.depth": 1, "encoder.num_heads": 2, "encoder.mlp_dim": 32,
    "tokenizer.codebook_size": 16, "tokenizer.fit_images": 64, "tokenizer.fit_steps": 2,
    "decoder.width": 16, "decoder.depth": 1, "decoder.num_heads": 2, "decoder.mlp_dim": 32,
    "optimizer.warmup_steps": 0, "eval.batch_size": 104, "eval.pictures": 4,
}  # fmt: skip
SMALL = [f"--config.{path}={value}" for path, value in TINY.items()]

# Run in this order, since some take what others made.
RUN = [
    "supmim configs",
    "supmim doctor",
    "supmim data check folder:photos",
    "supmim data check pairs:streets",
    "supmim data convert folder:photos --out=small",
    "supmim data convert folder:photos --out=small --size=256",
    "supmim train --config=digits --config.encoder.width=96 --print-config",
    "supmim train --config=pictures:Ti/16 --print-config",
    "supmim train --config=digits --workdir=runs/digits",
    "supmim evaluate --workdir=runs/digits --evaluators=knn",
    "supmim evaluate --workdir=runs/digits --evaluators=knn,retrieval",
    "supmim evaluate --workdir=runs/digits --evaluators=knn,retrieval "
    "--config.data.train=digits:tune --config.data.eval=digits:validation",
    "supmim evaluate --workdir=runs/digits --evaluators=all",
    "supmim train --config=pictures:cpu --workdir=runs/photos --config.data.train=folder:photos",
    "supmim embed --model=runs/photos --images=photos --out=photos.npz",
    "supmim embed --model=runs/photos --images=photos --out=patches.npz --features=patches "
    "--dtype=float16",
    "supmim search --model=runs/photos --embeddings=photos.npz --query=photos/cat/1.jpg "
    "--picture=found.png",
    "supmim search --model=runs/photos --embeddings=photos.npz --query=cat.jpg --picture=found.png",
    "supmim search --model=runs/photos --embeddings=photos.npz --query=cat.jpg --top=10 "
    "--picture=found.png",
    "supmim predict --model=runs/photos --images=photos --top=3",
    "supmim predict --model=runs/photos --images=photos --json > classes.jsonl",
    "supmim draw --model=runs/photos --images=photos --out=pictures",
    "supmim draw --model=runs/photos --images=photos --out=pictures --ratios=0.25,0.5,0.75",
    "supmim export --model=runs/photos --to=timm --out=exported",
    "supmim export --model=runs/digits --to=stablehlo --out=program",
    "supmim export --model=runs/digits --to=timm --out=exported",
    "supmim evaluate --model=exported --out=judged --config.data.train=digits:train "
    "--evaluators=knn",
    "supmim tokenizer fit --config=digits --out=tokenizers/pixels",
    "supmim tokenizer score --config=digits --config.tokenizer.path=tokenizers/pixels",
    "supmim data tokens --config=digits --out=ids",
    "supmim train --config=digits --workdir=runs/cached --config.data.targets=ids",
    "supmim plan --config=digits --topology=cpu:2",
    "supmim sweep plan --sweep=ratios.py --folder=sweeps/ratios",
    "supmim sweep plan --sweep=mim_gain --folder=sweeps/mim_gain",
    "supmim sweep status --folder=sweeps/mim_gain",
    "supmim sweep table --folder=sweeps/mim_gain",
    "supmim sweep run --folder=sweeps/mim_gain --engine=commands",
]

NOT_RUN = {
    "downloads data or weights, or takes a file that others publish": [
        "supmim data prepare imagenet2012",
        "supmim data convert imagenet2012:train --out=imagenet256 --size=256",
        "supmim evaluate --workdir=runs/digits --evaluators=landmarks "
        "--config.eval.landmarks=oxford.json",
        "supmim tokenizer import --from=tokenizer_imagenet256_checkpoint --out=tokenizers/maskgit",
        "supmim tokenizer train --config=tokenizer_cifar10 --workdir=runs/tokenizer_cifar10",
        "supmim train --config=segment_ade20k --workdir=runs/ade20k --config.init.model=runs/b14",
    ],
    "needs an accelerator, its compiler, Slurm or more hosts": [
        "supmim plan --config=imagenet_l14 --topology=v5e:16x16",
        "supmim plan --config=imagenet_l14 --topology=v5e:16x16 --largest-batch",
        "supmim plan --config=pictures:B/16 --topology=h200:1 --config.data.train=folder:photos",
        "supmim plan --table=docs/plan.md",
        "supmim benchmark step --config=imagenet_b14 --config.batch_size=256",
        "supmim train --config=pictures --workdir=runs/photos_s16 "
        "--config.data.train=folder:photos",
        "supmim train --config=pictures --workdir=runs/photos --config.data.train=records:small",
        "supmim train --config=pictures --workdir=runs/maskgit --config.data.train=folder:photos "
        "--config.tokenizer.name=vqgan --config.tokenizer.path=tokenizers/maskgit",
        "supmim train --config=pictures:Ti/16,baseline --workdir=runs/baseline "
        "--config.data.train=folder:photos",
        "supmim train --config=imagenet_b14 --workdir=runs/b14 --config.tokenizer.patch_size=16 "
        "--config.tokenizer.image_size=256",
        "supmim train --config=imagenet_b14 --workdir=/shared/b14 --coordinator=10.0.0.1:8476 "
        "--num-processes=2 --process-id=0",
        "supmim train --config=digits --workdir=runs/try --debug --fake-devices=8",
        "supmim train --workdir=runs/wide --config.mesh.fsdp=2",
        "supmim sweep run --folder=sweeps/mim_gain --engine=slurm "
        "--slurm=nodes=2,slurm_partition=gpu",
    ],
    "needs a bucket; tests/test_buckets.py does the same in a fake one": [
        "supmim doctor --workdir=gs://BUCKET/digits",
        "supmim train --config=digits --workdir=gs://BUCKET/digits",
    ],
    "needs a bucket; tests copy from a fake of one": [
        "supmim train --config=pictures --workdir=runs/photos "
        "--config.data.train=records:gs://BUCKET/small --config.data.local_copy=/mnt/disk",
    ],
    "needs a run that has failed": ["supmim replay --postmortem=runs/x/postmortem.json"],
    "trains or times for minutes; tests of its parts are smaller": [
        "supmim train --config=digits --workdir=runs/try --debug",
        "supmim train --config=digits --workdir=runs/wide --config.encoder.width=96",
        "supmim train --workdir=runs/wide",
        "supmim train --config=digits:baseline --workdir=runs/baseline",
        "supmim train --config=digits:few_labels --workdir=runs/few_labels",
        "supmim train --config=digits --workdir=runs/mim --config.class_weight=0",
        "supmim train --config=digits:few_labels,baseline --workdir=runs/tuned "
        "--config.init.model=runs/mim",
        "supmim tokenizer fit --config=digits --out=tokenizers/features "
        "--config.tokenizer.name=feature_codes",
        "supmim train --config=digits --workdir=runs/pixels --config.mim.target=pixels",
        "supmim train --config=mine.py --workdir=runs/mine",
        "supmim train --config=finetune_digits --workdir=runs/finetuned "
        "--config.init.model=runs/digits",
        "supmim train --config=segment_scenes --workdir=runs/frozen "
        "--config.init.model=runs/digits",
        "supmim train --config=segment_scenes --config.init.model=runs/digits "
        "--workdir=runs/segmented",
        "supmim train --config=segment_scenes --workdir=runs/segmented "
        "--config.init.model=runs/digits",
        "supmim train --config=segment_scenes:finetune --workdir=runs/finetuned "
        "--config.init.model=runs/digits",
        "supmim evaluate --workdir=runs/digits --evaluators=linear,fewshot --step=4200",
        "supmim evaluate --workdir=runs/frozen",
        "supmim sweep run --sweep=mim_gain --folder=sweeps/mim_gain --results=results",
        "supmim sweep run --sweep=mim_cifar10 --folder=sweeps/mim_cifar10 --results=results",
        "supmim sweep run --sweep=mim_dense --folder=sweeps/mim_dense --results=results",
        "supmim sweep run --sweep=mim_unseen --folder=sweeps/mim_unseen --results=results",
        "supmim sweep run --sweep=mim_features --folder=sweeps/mim_features --results=results",
        "supmim sweep run --sweep=tune_few_labels --folder=sweeps/tune_few_labels "
        "--results=results",
        "supmim sweep run --sweep=mim_few_labels --folder=sweeps/mim_few_labels --results=results",
        "supmim sweep run --folder=sweeps/mim_gain",
        "supmim sweep run --folder=sweeps/mim_gain --jobs=2",
        "supmim benchmark embed --config=pictures --config.data.train=folder:photos",
        "supmim benchmark input --config=pictures --config.data.train=folder:photos",
        "supmim benchmark input --config=imagenet_s16 --config.data.train=folder:SMALL",
        "supmim benchmark job --config=digits --config.total_epochs=4",
        "supmim benchmark knn --config=digits",
        "supmim benchmark knn --config=digits --config.encoder.width=384 --rounds=3",
        "supmim benchmark step --config=digits",
        "supmim benchmark step --config=digits --config.batch_size=128 --rounds=20",
        "supmim benchmark tokenizer --config=digits",
    ],
}
LISTED = [command for listed in NOT_RUN.values() for command in listed]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what a reader of the docs has: pictures, masks, and the files of the pages."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(60):
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number // 2 + 1}.jpg"
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(path)
    shutil.copy(folder / "photos/cat/1.jpg", folder / "cat.jpg")
    for kind in ("images", "masks"):
        (folder / "streets" / kind).mkdir(parents=True)
    (folder / "streets/classes.txt").write_text("\n".join(scenes.CLASSES))
    for index in range(12):
        record = scenes.load("train", "whole", None)[index]
        Image.fromarray(record.image[..., 0]).save(folder / f"streets/images/{index}.png")
        Image.fromarray(record.mask).save(folder / f"streets/masks/{index}.png")
    for name, page in (("mine.py", "presets.md"), ("ratios.py", "sweeps.md")):
        (block,) = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.M | re.S)
        (folder / name).write_text(block)
    return folder


@pytest.mark.slow
def test_commands_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for command in RUN:
        verb, args = parsed(command)
        small = SMALL if VERBS[verb].takes_config else []
        if "pictures:cpu" in command:
            small = [*small, "--config.data.image_size=24", "--config.checkpoint.keep_best=0"]
            small += ["--config.eval.evaluators=classification"]
        for out in (arg.partition("=")[2] for arg in args if arg.startswith("--out=")):
            shutil.rmtree(out, ignore_errors=True)
        code = cli.run([*verb.split(), *args[:1], *small, *args[1:]])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
    for page in ("README.md", "embeddings.md"):
        (block,) = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.M | re.S)
        exec(compile(block, page, "exec"), {})
    monkeypatch.setattr(sys, "argv", ["", "runs/digits", "--out=drawn"])
    runpy.run_path(str(ROOT / "tools/readme_pictures.py"), run_name="__main__")
    drawn = {path.name for path in Path("drawn").iterdir()}
    others = {"results.png"}  # of tools/results.py
    assert drawn == {path.name for path in (ROOT / "docs/pictures").glob("*.png")} - others


def cells_of_the_notebook():
    """Its cells that are code."""
    notebook = json.loads((ROOT / "docs/first_steps.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_was_run():
    cells = cells_of_the_notebook()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds and "display_data" in kinds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # a picture that is shown
def test_the_notebook_runs(place, monkeypatch):
    """Its cells are plain Python: they run here without Jupyter, with a smaller network."""
    monkeypatch.chdir(place)
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # as it is for users
        for cell in cells_of_the_notebook():
            exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
            names.get("overrides", {}).update(TINY)
    assert names["results"]["classification/top1"] >= 0 and names["rows"][-1]["mim_loss"] > 0
    assert names["nearest"].shape == (5, 6) and names["sheet"].shape == (40, 56)


def test_every_command_is_run_or_listed():
    assert set(COMMANDS) == {*RUN, *LISTED}
    assert len(RUN) + len(LISTED) == len({*RUN, *LISTED})


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--model=exported" not in c])
def test_commands_are_accepted(place, monkeypatch, command):
    monkeypatch.chdir(place)
    for workdir in (Path("runs", name) for name in ("digits", "wide", "frozen")):
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            (workdir / "config.json").write_text(config_lib.to_json(tiny_config()))
    verb, args = parsed(command)
    values = cli.parse(verb, args)
    if VERBS[verb].takes_config and values.config is not None or verb == "evaluate":
        cli.config_of(VERBS[verb], values)


def test_commands_in_sentences_have_real_verbs_and_flags():
    for page, text in PAGES.items():
        for command in re.findall(r"`(supmim [^`]*)`", text.replace("\n", " ")):
            verb, args = parsed(command)
            words = [arg for arg in args if not arg.startswith("-")]
            names = [arg.partition("=")[0][2:] for arg in args if arg.startswith("--")]
            assert verb in VERBS or verb in FAMILIES, f"{page}: {command}"
            if verb in VERBS:
                known = {*VERBS[verb].flags, "config", "help"}
                own = {name.replace("-", "_") for name in names if "." not in name}
                assert own <= known, f"{page}: {command}"
                assert not words or words[0] in VERBS[verb].actions, f"{page}: {command}"
            options = {name.removeprefix("config.") for name in names if "." in name}
            assert options <= OPTIONS.keys(), f"{page}: {command}"


def test_the_ten_options_are_options_and_ten():
    section = (
        PAGES["README.md"].partition("## The ten options that matter")[2].partition("\n## ")[0]
    )
    named = re.findall(r"^\| `([\w.]+)` \|", section, re.M)
    assert len(set(named)) == 10 and {*named} <= OPTIONS.keys()
    assert all(OPTIONS[name].common for name in named)  # --help shows them without being asked


def test_pages_are_short_and_reached_from_the_readme():
    links = set(re.findall(r"\]\(docs/([\w.]+)\)", PAGES["README.md"]))
    files = {path.name for path in (ROOT / "docs").iterdir() if path.is_file()}
    assert files <= links
    long = {name for name, text in PAGES.items() if len(text.splitlines()) > MOST_LINES}
    assert long <= set(GENERATED)


def test_links_and_pictures_exist():
    texts = {README: PAGES["README.md"]} | {path: path.read_text() for path in OTHERS}
    for path, text in texts.items():
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        named, defined = (
            set(re.findall(form, text, re.M)) for form in (r"\]\[([\w-]+)\]", r"^\[([\w-]+)\]:")
        )
        assert named == defined, path.name
    pictures = list((ROOT / "docs/pictures").iterdir())
    shown = {name for text in texts.values()
             for name in re.findall(r"\]\((?:docs/)?pictures/([\w.]+)\)", text)}  # fmt: skip
    assert {path.name for path in pictures} == shown
    assert all(path.stat().st_size < 100_000 for path in pictures)
