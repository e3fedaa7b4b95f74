"""`tfds:NAME:SPLIT`, or plain NAME:SPLIT: data sets of TensorFlow Datasets, as ArrayRecord.

NAME may include a config and a version (imagenet_resized/32x32:0.1.0) or be the folder of a
prepared data set; SPLIT may be part of one (train[:99%]). The import of TFDS takes half a second,
so it happens in functions; TensorFlow is never needed.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.config import options
from supmim.data import sources
from supmim.data.sources import base
from supmim.data.sources.base import Record, Source
from supmim.data.sources.records import damaged
from supmim.errors import DataError, counted, suggestion
from supmim.storage import copy_once
from supmim.storage.schemes import on_bucket

SPEC = re.compile(r"(?P<name>.+?):(?P<split>[^:\[\]]+(\[[^\]]*\])?(\+.+)?)")
FORMAT = "array_record"
INFO = "dataset_info.json"  # marks the folder of a prepared data set
HELD_OUT_SPLITS = ("validation", "test")
NAME_FEATURES = ("file_name", "filename", "image/filename", "image_id", "id")
# file -> bytes of data sets whose download needs an account
MANUAL_FILES = {
    "imagenet2012": {
        "ILSVRC2012_img_train.tar": 147_897_477_120,
        "ILSVRC2012_img_val.tar": 6_744_924_160,
    }
}


class Fields(NamedTuple):
    """Names of the features that are read; `name` is "" if there is none."""

    image: str
    label: str
    name: str


class Split(Source):
    """A split of a prepared data set, opened on first use, as reader processes get a copy."""

    def __init__(self, builder: Any, split: str, fields: Fields) -> None:
        info = builder.info
        self.directory, self.split, self.fields = str(builder.data_dir), split, fields
        self.name = f"tfds:{info.full_name}:{split}"
        self.class_names = tuple(info.features[fields.label].names) if fields.label else ()
        pieces = info.splits[split].file_instructions
        self.files = [str(piece.filename) for piece in pieces]
        self.skips = [piece.skip for piece in pieces]
        self.ends = np.cumsum([piece.take for piece in pieces])

    @functools.cached_property
    def reader(self) -> Any:
        """TFDS's reader, which leaves images encoded."""
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self.directory)
        left_encoded = {name: tfds.decode.SkipDecoding() for name in image_features(builder)}
        return builder.as_data_source(self.split, decoders=left_encoded, file_format=FORMAT)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "reader"}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def example(self, index: int) -> dict[str, Any]:
        """Return TFDS's example; DataError, which names the shard, if it is damaged."""
        try:
            return self.reader[int(index)]
        except RuntimeError as error:
            shard = int(np.searchsorted(self.ends, index, side="right"))
            start = self.ends[shard - 1] if shard else 0
            position = self.skips[shard] + index - start
            raise damaged(self.files[shard], error, position) from error

    def name_of(self, index: int, example: dict[str, Any]) -> str:
        """Return the name of a record in messages."""
        if not self.fields.name:
            return f"{self.name}, record {index}"
        name = example[self.fields.name]
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def __getitem__(self, index: int) -> Record:
        example = self.example(index)
        label = int(example[self.fields.label])
        return Record(example[self.fields.image], label, self.name_of(index, example))

    def fingerprint(self) -> dict[str, Any]:
        sizes = [Path(file).stat().st_size for file in self.files]
        return {"name": self.name, "length": len(self), "file_bytes": sizes}

    def identities(self) -> np.ndarray:
        takes = np.diff(self.ends, prepend=0)
        pieces = zip(self.files, self.skips, takes, strict=True)
        return np.concatenate([base.numbered(f, skip + take)[skip:] for f, skip, take in pieces])


def load(where: str, part: str, data: options.Data) -> Split:
    """Return a split; DataError, with the next command, if it is unknown or not prepared."""
    builder, split = open_split(where, part, data)
    return checked(Split(builder, split, labelled_fields(builder)))


def parsed(where: str) -> re.Match | None:
    """Match NAME:SPLIT in two groups; None for anything else, such as gs://BUCKET/FOLDER."""
    found = SPEC.fullmatch(where)
    return found if found and not found["split"].startswith("//") else None


def open_split(where: str, part: str, data: options.Data) -> tuple[Any, str]:
    """Return the builder of a prepared data set, and the split for one part of NAME:SPLIT.

    What NAME:SPLIT holds out is validation or else test; NothingHeldOut if there is neither, or if
    one of them is in SPLIT.
    """
    found = parsed(where)
    if not found:
        raise DataError(f"tfds:{where} names no split; write tfds:{where}:train")
    builder = prepared(here(found["name"], data), data.tfds_dir)
    name, splits = builder.info.full_name, builder.info.splits
    used = re.sub(r"\[[^\]]*\]", "", found["split"]).split("+")
    for split in used:
        base.check_name(split, splits, f"{name} has no split {{}}")
    if part != base.HELD_OUT:
        return builder, found["split"]
    held_out = [split for split in HELD_OUT_SPLITS if split in splits]
    if not held_out or set(held_out) & set(used):
        raise base.NothingHeldOut(
            f"{name}:{found['split']} holds nothing out: its splits are {', '.join(splits)}; set "
            "--config.data.eval=tfds:NAME:SPLIT"
        )
    return builder, held_out[0]


def here(name: str, data: options.Data) -> str:
    """Return the name of a data set or, if it is in a bucket, the path of its local copy."""
    if on_bucket(data.tfds_dir) and not on_bucket(name) and not is_folder(name):
        name = folder_of(name, data.tfds_dir)
    return copy_once.local(name, data.local_copy)


def folder_of(name: str, tfds_dir: str) -> str:
    """Return the folder of a data set in a bucket; DataError unless there is exactly one."""
    top = f"{tfds_dir.rstrip('/')}/{name.replace(':', '/')}"
    found = copy_once.folders_with(INFO, top)
    if len(found) != 1:
        below = ", ".join(folder.removeprefix(f"{top}/") for folder in found)
        raise DataError(
            f"{top} holds several data sets: {below}; name one, as NAME/CONFIG:VERSION"
            if found
            else f"{top} holds no data set of TFDS (it has no {INFO}); check its name, or prepare "
            "it with `supmim data prepare NAME --tfds-dir=DIR` and upload DIR"
        )
    return found[0]


def is_folder(name: str) -> bool:
    """Return whether the name of a data set is the path of its folder."""
    return name.startswith(("/", "~", "."))


def checked(split: Split) -> Split:
    """Return the split; DataError if a shard is missing or the split is empty."""
    for file in split.files:
        if not Path(file).is_file():
            raise damaged(file, "it is missing")
    if not len(split):
        raise DataError(f"{split.name} has no images")
    return split


def builder_of(name: str, tfds_dir: str) -> Any:
    """Return TFDS's builder of a data set, prepared or not; DataError if there is none."""
    import tensorflow_datasets as tfds

    folder = base.expanded(name)
    if is_folder(name):
        if not (folder / INFO).is_file():
            raise DataError(f"{folder} holds no data set of TFDS (it has no {INFO})")
        return tfds.builder_from_directory(folder)
    try:
        return tfds.builder(name, data_dir=tfds_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name) from error
    except (ValueError, RuntimeError, AssertionError) as error:  # a config or version
        raise DataError(f"TFDS has no {name}: {error}") from error


def _unknown(name: str) -> DataError:
    import tensorflow_datasets as tfds

    names = tfds.list_builders(with_community_datasets=False)
    hint = suggestion(name, [*sources.LOADERS, *names])
    kinds = ", ".join(f"{kind}:" for kind in sources.LOADERS)
    return DataError(f"{name} is neither a data set of TFDS nor a kind of source ({kinds}){hint}")


def prepared(name: str, tfds_dir: str) -> Any:
    """Return the builder of a data set; DataError unless it is prepared as ArrayRecord."""
    builder = builder_of(name, tfds_dir)
    if not is_prepared(builder):
        raise DataError(not_prepared(builder, name, tfds_dir))
    formats = {found.value for found in builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise DataError(
            f"{builder.data_dir} is prepared as {', '.join(sorted(formats))}, which has "
            "no random access; to prepare it elsewhere as "
            f"{FORMAT}: supmim data prepare {name} --tfds-dir=DIR"
        )
    return builder


def is_prepared(builder: Any) -> bool:
    """Return whether TFDS has finished preparing the data set."""
    return (Path(builder.data_dir) / INFO).is_file()


def not_prepared(builder: Any, name: str, tfds_dir: str) -> str:
    """Return a message with what is missing and the next command."""
    elsewhere = f" --tfds-dir={tfds_dir}" if tfds_dir else ""
    lines = [f"{builder.info.full_name} is not prepared in {builder.data_dir}"]
    if manual := manual_lines(builder):
        lines += [*manual, "When they are there:"]
    return "\n".join([*lines, f"  supmim data prepare {name}{elsewhere}"])


def manual_folder(builder: Any) -> Path:
    """Return the folder in which TFDS expects files that must be downloaded by hand."""
    return Path(builder.data_dir_root) / "downloads" / "manual"


def manual_lines(builder: Any) -> list[str]:
    """Return lines on the files that must be downloaded by hand; none for most data sets."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return []
    folder = manual_folder(builder)
    expected = MANUAL_FILES.get(builder.name)
    if not expected:
        lines = builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip().splitlines()
        return [f"Download its files by hand into {folder}:", *(f"  {x.strip()}" for x in lines)]
    return [
        f"Download its files by hand from https://image-net.org/download into {folder}:",
        *(
            f"  {name}  {counted(size, 'byte')}: {x}"
            for name, size, x in manual_states(folder, expected)
        ),
    ]


def manual_states(folder: Path, expected: dict[str, int]) -> list[tuple[str, int, str]]:
    """Return (file, expected bytes, whether it is there) of each file."""

    def state(file: str, size: int) -> str:
        path = folder / file
        found = path.stat().st_size if path.is_file() else 0
        if found in (0, size):
            return "there" if found else "missing"
        return counted(found, "byte is there", "bytes are there")

    return [(file, size, state(file, size)) for file, size in expected.items()]


def image_features(builder: Any) -> list[str]:
    """Return the names of the features that are images."""
    import tensorflow_datasets as tfds

    return [n for n, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]


def labelled_fields(builder: Any) -> Fields:
    """Return the features to read; DataError, which lists all, if the choice is ambiguous."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    labels = [n for n, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    image, label = only("image", image_features(builder)), only("label", labels)
    if not image or not label:
        missing = "image" if not image else "class label"
        raise DataError(
            f"{builder.info.full_name} does not have exactly one {missing}; its features are "
            f"{', '.join(f'{n} ({type(f).__name__})' for n, f in features.items())}"
        )
    return Fields(image, label, name_feature(features))


def only(usual: str, names: Sequence[str]) -> str:
    """Return the usual name if it is there, or the only name; else ""."""
    if usual in names:
        return usual
    return names[0] if len(names) == 1 else ""


def name_feature(features: Any) -> str:
    """Return the feature that names an image, or ""."""
    return next((name for name in NAME_FEATURES if name in features), "")
