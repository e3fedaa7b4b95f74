"""The verbs of `supmim`: what each does, its flags, and the help that is made of them."""

import dataclasses

from supmim.config import OPTIONS


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb: what it does, how it is called, its flags as name -> (default, meaning).

    A flag whose default is False is a switch. actions: what the word after the verb may be, with
    what it does; argument: what the word after that is, if one must stand there, and forms: what it
    may look like.
    """

    summary: str
    usage: str
    flags: dict[str, tuple[str | bool, str]] = dataclasses.field(default_factory=dict)
    required: tuple[str, ...] = ()
    takes_config: bool = False
    actions: dict[str, str] = dataclasses.field(default_factory=dict)
    argument: str = ""
    forms: str = ""


WORKDIR = ("", "folder of the run: config, metrics, checkpoints, pictures, report")


HOSTS = {
    "coordinator": ("", "HOST:PORT of process 0; Slurm and TPU pods find it themselves"),
    "num_processes": ("", "how many processes there are; 1: this one runs alone"),
    "process_id": ("", "which of them this is, from 0"),
    "one_host": (False, "all processes are on this machine"),
}


TRAIN = {
    "workdir": WORKDIR,
    "resume": ("", "checkpoint to go on from: a STEP or a PATH"),
    "profile": ("", "START:STOP, steps to trace for xprof into WORKDIR/profile"),
    "allow_data_change": (False, "go on though data, seed or batch are not what they were"),
    "debug": (False, "2 blocks, small images, 20 steps, NaNs end it: seconds"),
    "deterministic": (False, "GPU kernels that give the same bits again, slower"),
    "fake_devices": ("", "train on so many pretend CPU devices"),
    **HOSTS,
}


VERBS = {
    "train": Verb(
        "train, evaluate and draw; resume where the workdir stopped",
        "supmim train --config=configs/digits.py --workdir=runs/digits",
        TRAIN,
        required=("workdir",),
        takes_config=True,
    ),
    "evaluate": Verb(
        "run evaluators on a workdir's checkpoint",
        "supmim evaluate --workdir=runs/digits --evaluators=knn",
        {
            "workdir": WORKDIR,
            "step": ("", "checkpoint to evaluate; default: the newest"),
            "evaluators": ("", "names separated by commas, or all; default: those of the config"),
            "fake_devices": ("", "evaluate on so many pretend CPU devices"),
            **HOSTS,
        },
        required=("workdir",),
    ),
    "sweep": Verb(
        "train every member of a sweep file: plan, run, status, table",
        "supmim sweep run --sweep=configs/sweeps/mim_gain.py --folder=sweeps/mim_gain",
        {
            "folder": ("", "folder of the sweep: index, a workdir for each member, table"),
            "sweep": ("", "file of code with PRESET and get_sweep(); default: folder's members"),
            "engine": ("local", "run: local, slurm (submitit), commands (prints, runs nothing)"),
            "jobs": ("1", "run, local: members at a time; they share this host's devices"),
            "slurm": ("", "run, slurm: submitit's parameters, e.g. nodes=2,slurm_partition=gpu"),
            "metric": ("knn/recall_at_1", "table: result to sort by, higher is better"),
        },
        required=("folder",),
        actions={
            "plan": "list the members, with what they cost",
            "run": "train those that are not finished",
            "status": "how far each of them is",
            "table": "results over the seeds, as text and as a picture",
        },
    ),
    "data": Verb(
        "images, before training: check, prepare (TFDS), convert",
        "supmim data check folder:photos",
        {
            "out": ("", "convert: folder that gets the store"),
            "size": ("", "convert: short side, in pixels, that larger images are shrunk to"),
            "quality": ("", "convert, with --size: quality of the JPEGs, 1 to 100; default: 90"),
            "raw": (False, "convert: store pixels instead of files"),
            "holdout": ("", "share of a folder held out for evaluation; default: config's"),
            "tfds_dir": ("", "folder of TFDS's datasets; default: TFDS's own"),
            "json": (False, "check: print JSON"),
            "mask_classes": ("", "check pairs: as config.data.mask_classes; default: classes.txt"),
            "ignore_label": ("", "check pairs: as config.data.ignore_label; default: none"),
        },
        actions={
            "check": "decode all images, say what is there and what training would refuse",
            "prepare": "download a data set of TFDS and write it as ArrayRecord",
            "convert": "write a folder, or any source, as a store that reads faster",
        },
        argument="SOURCE",
        forms="folder:DIR, records:DIR, NAME:SPLIT; prepare: NAME; check: pairs:DIR",
    ),
    "data tokens": Verb(
        "compute target ids once, for all runs that share them",
        "supmim data tokens --config=configs/digits.py --out=ids",
        {
            "out": ("", "folder that gets them; a run reads it with --config.data.targets=DIR"),
            "deterministic": (False, "GPU kernels that give the same bits again, slower"),
            "fake_devices": ("", "compute on so many pretend CPU devices"),
            **HOSTS,
        },
        required=("config", "out"),
        takes_config=True,
    ),
    "tokenizer import": Verb(
        "turn published tokenizer weights into a folder",
        "supmim tokenizer import --from=imagenet256.msgpack --out=tokenizers/maskgit",
        {
            "from": ("", "safetensors, or MaskGIT's Flax blob; never a pickle"),
            "out": ("", "folder that gets the tokenizer"),
        },
        required=("from", "out"),
    ),
    "tokenizer train": Verb(
        "train one like anything else, then write its folder",
        "supmim tokenizer train --config=FILE.py --workdir=runs/tokenizer",
        TRAIN,
        required=("workdir",),
        takes_config=True,
    ),
    "benchmark": Verb(
        "time step, input, tokenizer or knn against references",
        "supmim benchmark step --config=configs/digits.py",
        {
            "rounds": ("10", "turns that every step has; the median counts"),
            "queries": ("", "knn: images that are searched for; default: what fits"),
            "bank": ("", "knn: images that are searched; default: what fits"),
            "neighbours": ("20", "knn: how many of each query"),
            "json": (False, "print JSON instead of a table"),
        },
        required=("config",),
        takes_config=True,
        actions={
            "step": "the train step, whole and in parts",
            "input": "reading, decoding and augmenting",
            "tokenizer": "ids, and the step with and without them",
            "knn": "exact search, beside scikit-learn and NumPy",
        },
    ),
    "plan": Verb(
        "does the train step fit a pod that is not there; how fast",
        "supmim plan --config=configs/imagenet_l14.py --topology=v5e:16x16",
        {
            "topology": ("", "GENERATION:SIZE, e.g. v5e:16x16, v5p:8x8x8, h200:8, cpu:8"),
            "images": ("", "training images, for the hours; default: those of the source"),
            "largest_batch": (False, "find the largest batch that fits, in a few compiles"),
            "json": (False, "print JSON instead of a table"),
            "table": ("", "FILE.md: plan every ImageNet preset of configs/ on five pods, write it"),
        },
        takes_config=True,
    ),
    "doctor": Verb("versions, devices, memory, disk, known clashes", "supmim doctor"),
}


# Verbs that are only the first word of others.
FAMILIES = {"tokenizer": "make a tokenizer, for --config.tokenizer.path"}


def of_family(name: str) -> dict[str, str]:
    """The second words of the verbs that begin with `name`, with what they do."""
    found = (verb for verb in VERBS if verb.startswith(f"{name} "))
    return {verb.removeprefix(f"{name} "): VERBS[verb].summary for verb in found}


def listed(items: dict[str, str]) -> list[str]:
    """Lines of names and meanings, below each other."""
    width = max(map(len, items))
    return [f"  {name:<{width}}  {meaning}" for name, meaning in items.items()]


def overview() -> str:
    """The help of `supmim` itself."""
    verbs = "\n".join(listed({name: verb.summary for name, verb in VERBS.items()}))
    return f"""\
supmim trains image encoders with labels and masked image modelling.

usage: supmim VERB [--flag=value ...]

{verbs}

First run, on digits, about two minutes on a laptop:
  supmim train --config=configs/digits.py --workdir=runs/digits
All flags of a verb:
  supmim VERB --help"""


def family_help(name: str) -> str:
    """The help of a verb's first word alone."""
    words = of_family(name)
    return "\n".join(
        [
            f"supmim {name}: {FAMILIES[name]}",
            "",
            f"usage: supmim {name} {'|'.join(words)} [--flag=value ...]",
            "",
            *listed(words),
            "",
            *(f"  {VERBS[f'{name} {word}'].usage}" for word in words),
            "",
            "All flags of one:",
            f"  supmim {name} {next(iter(words))} --help",
        ]
    )


def verb_help(name: str) -> str:
    """The help of one verb, with every config option where it takes them."""
    verb = VERBS[name]
    lines = [f"supmim {name}: {verb.summary}", "", f"  {verb.usage}", ""]
    if verb.actions:
        words = filter(None, ("|".join(verb.actions), verb.argument))
        lines[2:2] = [f"usage: supmim {name} {' '.join(words)} [--flag=value ...]", ""]
        lines += [*listed(verb.actions), ""]
    if verb.forms:
        lines += [f"  {verb.argument}", f"      {verb.forms}", ""]
    if others := of_family(name):
        lines += [*listed({f"supmim {name} {w}": does for w, does in others.items()}), ""]
    if verb.takes_config:
        lines += ["  --config=FILE.py[:arg]", "      preset to start from, a file of code"]
    if verb.takes_config and "workdir" in verb.flags:
        lines += [
            "      without it the workdir's own config.json is continued, with any",
            "      --config.option=value on top",
        ]
    for flag, (default, meaning) in verb.flags.items():
        dashed = flag.replace("_", "-")
        lines += [f"  --{dashed}" + ("" if default is False else "="), f"      {meaning}"]
    if verb.takes_config:
        lines += ["", "Config options and their defaults, before the preset:"]
        lines += [describe_options()]
    return "\n".join(lines)


def describe_options() -> str:
    """Return all config options as text of at most 80 columns."""
    lines, group = [], None
    for path, option in OPTIONS.items():
        if (head := path.rpartition(".")[0]) != group:
            group = head
            lines.append("")
        lines.append(f"  --config.{path}={option.default if option.default != '' else repr('')}")
        lines.append(f"      {option.meaning}" + (f" [{option.unit}]" if option.unit else ""))
        if option.choices:
            lines.append(f"      one of: {', '.join(option.choices)}")
    return "\n".join(lines)
