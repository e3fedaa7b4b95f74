"""The verbs of `supmim`: a table of what each does and takes. help.py formats it."""

import dataclasses
from pathlib import Path

# As defaults: the flag names a file or folder, in which `~` is the home folder.
PATH = Path()
PLACE = Path("gs:")  # or one in a bucket, gs:// or s3://


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    flags: name -> (default, meaning); a default of False makes a switch, PATH or PLACE a path, a
    number a whole number from 1, several words a choice whose default is the first. actions: the
    words that may follow the verb -> what they do. argument: name of the word that must follow the
    action, if any; forms: what a SOURCE may look like.
    """

    summary: str
    usage: str
    flags: dict[str, tuple[str | bool | int | Path | tuple[str, ...], str]] = dataclasses.field(
        default_factory=dict
    )
    required: tuple[str, ...] = ()
    takes_config: bool = False
    actions: dict[str, str] = dataclasses.field(default_factory=dict)
    argument: str = ""
    forms: str = ""


WORKDIR = (PLACE, "folder of the run: config, metrics, checkpoints, pictures, report")

MODEL = (PLACE, "workdir, exported folder, folder of timm, or big_vision's .npz")
IMAGES = ("", "SOURCE of images")
SOURCE = """\
DIR with images, at any depth and without classes; FILE; 'DIR/*.jpg', in
      quotes; or what trains too: folder:DIR, records:DIR, NAME:SPLIT"""

# Flags that a short help leaves out.
RARE = (
    *("coordinator", "num_processes", "process_id", "one_host"),
    *("profile", "deterministic", "fake_devices", "allow_data_change"),
    "compile_cache",
)
HOSTS = {
    "coordinator": ("", "HOST:PORT of process 0; Slurm and TPU pods find it themselves"),
    "num_processes": ("", "number of processes; 1: this one runs alone"),
    "process_id": ("", "index of this process, from 0"),
    "one_host": (False, "all processes are on this machine"),
}

CACHE = {
    "compile_cache": (PATH, "folder of compiled programs; none: compile anew; default: the user's"),
}

TRAIN = {
    "workdir": WORKDIR,
    "resume": (PLACE, "checkpoint to continue from: a STEP or a PATH"),
    "profile": ("", "START:STOP, steps to trace for xprof into WORKDIR/profile"),
    "allow_data_change": (False, "continue although data, seed or batch have changed"),
    "print_config": (False, "print the config with all overrides, as JSON; train nothing"),
    "debug": (False, "train 2 blocks on small images for 20 steps; NaNs end it"),
    "deterministic": (False, "use GPU kernels with bit-identical results; slower"),
    "fake_devices": ("", "train on this many pretend CPU devices"),
    **CACHE,
    **HOSTS,
}

VERBS = {
    "train": Verb(
        "train, evaluate and draw; continue a run that was stopped",
        "supmim train --config=digits --workdir=runs/digits",
        TRAIN,
        required=("workdir",),
        takes_config=True,
    ),
    "evaluate": Verb(
        "run evaluators on a checkpoint, or on any model",
        "supmim evaluate --workdir=runs/digits --evaluators=knn",
        {
            "workdir": WORKDIR,
            "model": (PLACE, "evaluate this instead: exported or timm folder, big_vision npz"),
            "out": (PLACE, "with --model: folder for results, pictures and report"),
            "step": (PLACE, "checkpoint to evaluate: a STEP or a PATH; default: the newest"),
            "evaluators": ("", "names separated by commas, or all; default: those of the config"),
            "fake_devices": ("", "evaluate on this many pretend CPU devices"),
            **CACHE,
            **HOSTS,
        },
    ),
    "embed": Verb(
        "write embeddings of images, or of their patches, to a file",
        "supmim embed --model=runs/digits --images=digits:test --out=digits.npz",
        {
            "model": MODEL,
            "images": IMAGES,
            "out": (PLACE, "FILE.npz with the arrays embedding, path and model (its digest)"),
            "features": (("embedding", "patches"), "one vector per image, or a grid of them"),
            "dtype": (("float32", "float16"), "type of the numbers in the file"),
            **CACHE,
        },
        required=("model", "images", "out"),
        forms=SOURCE,
    ),
    "search": Verb(
        "find the nearest images of a file of embeddings",
        "supmim search --model=runs/x --embeddings=photos.npz --query=cat.jpg",
        {
            "model": (PLACE, "the model that made the embeddings, by the same path or another"),
            "embeddings": (PATH, "FILE.npz of supmim embed"),
            "query": (PATH, "file of an image"),
            "top": (10, "how many images to show"),
            "picture": (PATH, "FILE.png to draw them to, beside the query"),
            **CACHE,
        },
        required=("model", "embeddings", "query"),
    ),
    "predict": Verb(
        "print the most probable classes of images",
        "supmim predict --model=runs/digits --images=digits:test --top=3",
        {
            "model": MODEL,
            "images": IMAGES,
            "top": (5, "how many classes of each image"),
            "json": (False, "print a JSON object per line"),
            **CACHE,
        },
        required=("model", "images"),
        forms=SOURCE,
    ),
    "draw": Verb(
        "draw what the decoder fills in, and components of patches",
        "supmim draw --model=runs/digits --images=digits:test --out=pictures",
        {
            "model": (PLACE, "workdir of a run with a decoder; with an empty --ratios=: any model"),
            "images": IMAGES,
            "out": (PATH, "folder for filled_in.png and patches.png"),
            "ratios": (
                "0.25,0.5,0.75",
                "patches to hide; default: 0.25,0.5,0.75; empty: only patches.png",
            ),
            **CACHE,
        },
        required=("model", "images", "out"),
        forms=SOURCE,
    ),
    "export": Verb(
        "write the encoder and its head for other programs",
        "supmim export --model=runs/digits --to=timm --out=exported",
        {
            "model": MODEL,
            "to": (("timm", "big_vision", "stablehlo"), "format; transformers reads timm's too"),
            "out": (PLACE, "new folder for weights, config and model card"),
        },
        required=("model", "out"),
    ),
    "sweep": Verb(
        "train every member of a sweep file: plan, run, status, table",
        "supmim sweep run --sweep=mim_gain --folder=sweeps/mim_gain",
        {
            "folder": (PLACE, "folder of the sweep: index, a workdir per member, table"),
            "sweep": (
                PATH,
                "name of a sweep, or FILE.py with PRESET and get_sweep()",
            ),
            "results": (PATH, "folder of small files with the results of finished members"),
            "engine": ("local", "run: local, slurm (submitit), or commands (only print them)"),
            "jobs": ("1", "run, local: members at a time; they share this host's devices"),
            "slurm": ("", "run, slurm: submitit's parameters, e.g. nodes=2,slurm_partition=gpu"),
            "metric": ("knn/recall_at_1", "table: result to sort by, higher is better"),
            "versus": ("", "table: arm whose differences to all others are shown"),
        },
        required=("folder",),
        actions={
            "plan": "list the members and their cost",
            "run": "train the members that are not finished",
            "status": "show the progress of each member",
            "table": "write results over the seeds, as text and as a picture",
        },
    ),
    "data": Verb(
        "check, prepare (TFDS) or convert images before training",
        "supmim data check folder:photos",
        {
            "out": (PATH, "convert: folder to write the store to"),
            "size": ("", "convert: shrink larger images to this short side, in pixels"),
            "quality": ("", "convert, with --size: quality of the JPEGs, 1 to 100; default: 90"),
            "raw": (False, "convert: store pixels instead of files"),
            "holdout": ("", "share of a folder held out for evaluation; default: config's"),
            "tfds_dir": (PATH, "folder of TFDS's datasets; default: TFDS's own"),
            "local_copy": (PATH, "folder where a SOURCE that is in a bucket is copied once"),
            "json": (False, "check: print JSON"),
            "mask_classes": ("", "check pairs: as config.data.mask_classes; default: classes.txt"),
            "ignore_label": ("", "check pairs: as config.data.ignore_label; default: none"),
        },
        actions={
            "check": "decode all images; report contents and what training refuses",
            "prepare": "download a TFDS dataset and write it as ArrayRecord",
            "convert": "write any source as a store that reads faster",
        },
        argument="SOURCE",
        forms="folder:DIR, records:DIR, NAME:SPLIT; prepare: NAME; check: pairs:DIR",
    ),
    "data tokens": Verb(
        "compute target ids once, for all runs that share them",
        "supmim data tokens --config=digits --out=ids",
        {
            "out": (PATH, "folder for them; a run reads it with --config.data.targets=DIR"),
            "deterministic": (False, "use GPU kernels with bit-identical results; slower"),
            "fake_devices": ("", "compute on this many pretend CPU devices"),
            **CACHE,
            **HOSTS,
        },
        required=("config", "out"),
        takes_config=True,
    ),
    "tokenizer import": Verb(
        "turn published tokenizer weights into a folder",
        "supmim tokenizer import --from=imagenet256.msgpack --out=tokenizers/maskgit",
        {
            "from": (PATH, "safetensors, or the Flax blob of MaskGIT; never a pickle"),
            "out": (PATH, "folder to write the tokenizer to"),
        },
        required=("from", "out"),
    ),
    "tokenizer train": Verb(
        "train a tokenizer, then write its folder",
        "supmim tokenizer train --config=FILE.py --workdir=runs/tokenizer",
        TRAIN,
        required=("workdir",),
        takes_config=True,
    ),
    "tokenizer fit": Verb(
        "fit codes of patches, or of a network's features",
        "supmim tokenizer fit --config=digits --out=codes",
        {
            "model": (PLACE, "model whose features get codes; default: a small network"),
            "out": (PATH, "folder to write the tokenizer to"),
            **CACHE,
        },
        required=("config", "out"),
        takes_config=True,
    ),
    "tokenizer score": Verb(
        "print statistics of a tokenizer's codes on the images",
        "supmim tokenizer score --config=digits --config.tokenizer.path=codes",
        {**CACHE},
        required=("config",),
        takes_config=True,
    ),
    "benchmark": Verb(
        "time step, input, tokenizer, knn, embed or a whole job",
        "supmim benchmark step --config=digits",
        {
            "rounds": ("", "how often each is timed; the median counts; default: 10, job: 1"),
            "queries": ("", "knn: number of query images; default: what fits"),
            "bank": ("", "knn: number of images searched; default: what fits"),
            "neighbours": ("20", "knn: neighbours of each query"),
            "json": (False, "print JSON instead of a table"),
        },
        required=("config",),
        takes_config=True,
        actions={
            "step": "the train step, whole and in parts",
            "input": "reading, decoding and augmenting",
            "tokenizer": "ids, and the step with and without them",
            "knn": "exact search, compared with scikit-learn and NumPy",
            "embed": "embeddings of data.train, compared with their parts",
            "job": "a whole training, cold and warm, and where its time went",
        },
    ),
    "plan": Verb(
        "check whether the train step fits a pod, and how fast it is",
        "supmim plan --config=imagenet_l14 --topology=v5e:16x16",
        {
            "topology": ("", "GENERATION:SIZE, e.g. v5e:16x16, v5p:8x8x8, h200:8, cpu:8"),
            "images": ("", "training images, for the hours; default: the source's"),
            "largest_batch": (False, "find the largest batch that fits, in a few compiles"),
            "json": (False, "print JSON instead of a table"),
            "table": (PATH, "FILE.md to write: all ImageNet presets on five pods"),
        },
        takes_config=True,
    ),
    "configs": Verb("list the presets and sweeps that come with supmim", "supmim configs"),
    "replay": Verb(
        "repeat the steps that ended a run with exit code 5",
        "supmim replay --postmortem=runs/digits/postmortem.json",
        {
            "postmortem": (PLACE, "postmortem.json in the folder of the run, which stays as it is"),
            "deterministic": (False, "use GPU kernels with bit-identical results; slower"),
            **CACHE,
        },
        required=("postmortem",),
    ),
    "doctor": Verb(
        "print versions, devices, memory, disk and known problems",
        "supmim doctor",
        {
            "workdir": (PLACE, "also write, list, read and delete a small file there, timed"),
            "json": (False, "print JSON instead of text"),
        },
    ),
}

# First words that are no verb by themselves.
FAMILIES = {"tokenizer": "make a tokenizer, for --config.tokenizer.path"}


def subverbs(name: str) -> dict[str, str]:
    """Return the second words of the verbs that begin with `name` -> what they do."""
    found = (verb for verb in VERBS if verb.startswith(f"{name} "))
    return {verb.removeprefix(f"{name} "): VERBS[verb].summary for verb in found}
