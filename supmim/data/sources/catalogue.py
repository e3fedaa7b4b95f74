"""`tfds:NAME:SPLIT`, or plain NAME:SPLIT: data sets of TensorFlow Datasets, kept as ArrayRecord.

NAME may carry a config and a version (imagenet_resized/32x32:0.1.0) or be the folder of a prepared
data set; SPLIT may be a part of one (train[:99%]). TFDS takes half a second to import, so functions
do; TensorFlow is never needed.
"""

import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supmim.config import options
from supmim.data import sources
from supmim.data.sources import base
from supmim.data.sources.base import Record
from supmim.data.sources.records import damaged
from supmim.errors import DataError

SPEC = re.compile(r"(?P<name>.+?):(?P<split>[^:\[\]]+(\[[^\]]*\])?(\+.+)?)")
FORMAT = "array_record"
HELD_OUT_SPLITS = ("validation", "test")
NAME_FEATURES = ("file_name", "filename", "image/filename", "image_id", "id")
# Data sets that can't be downloaded without an account: file -> bytes.
MANUAL_FILES = {
    "imagenet2012": {
        "ILSVRC2012_img_train.tar": 147_897_477_120,
        "ILSVRC2012_img_val.tar": 6_744_924_160,
    }
}


class Fields(NamedTuple):
    """Names of the features that are read; `name` is "" where there is none."""

    image: str
    label: str
    name: str


class Split:
    """A split of a prepared data set. Opened when first read: reader processes get the folder."""

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
        """TFDS's own, that leaves images encoded."""
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.directory)
        left_encoded = {name: tfds.decode.SkipDecoding() for name in image_features(builder)}
        return builder.as_data_source(self.split, decoders=left_encoded, file_format=FORMAT)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "reader"}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def example(self, index: int) -> dict[str, Any]:
        """What TFDS gives for a record; DataError, naming the shard, if it is damaged."""
        try:
            return self.reader[int(index)]
        except RuntimeError as error:
            shard = int(np.searchsorted(self.ends, index, side="right"))
            start = self.ends[shard - 1] if shard else 0
            position = self.skips[shard] + index - start
            raise damaged(self.files[shard], error, position) from error

    def name_of(self, index: int, example: dict[str, Any]) -> str:
        """What messages call a record."""
        if not self.fields.name:
            return f"{self.name}, record {index}"
        name = example[self.fields.name]
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def __getitem__(self, index: int) -> Record:
        example = self.example(index)
        label = int(example[self.fields.label])
        return Record(example[self.fields.image], label, self.name_of(index, example))

    def __getitems__(self, index: Sequence[int]) -> list[Record]:
        return [self[i] for i in index]  # see Records

    def fingerprint(self) -> dict[str, Any]:
        """Name, version, split and the sizes of its files, not their place."""
        sizes = [Path(file).stat().st_size for file in self.files]
        return {"name": self.name, "length": len(self), "file_bytes": sizes}


def load(where: str, part: str, data: options.Data) -> Split:
    """DataError, with the next command, for what TFDS does not have or has not prepared."""
    builder, split = open_split(where, part, data.tfds_dir)
    return checked(Split(builder, split, labelled_fields(builder)))


def open_split(where: str, part: str, tfds_dir: str) -> tuple[Any, str]:
    """The builder of a prepared data set, and the split that is this part of NAME:SPLIT."""
    found = SPEC.fullmatch(where)
    if not found:
        raise DataError(f"tfds:{where} names no split; write tfds:{where}:train")
    builder = prepared(found["name"], tfds_dir)
    asked = found["split"]
    for split in re.sub(r"\[[^\]]*\]", "", asked).split("+"):
        base.known(split, list(builder.info.splits), f"{builder.info.full_name} has no split {{}}")
    if part == base.HELD_OUT:
        return builder, held_out(builder, asked)
    return builder, asked


def held_out(builder: Any, asked: str) -> str:
    """validation or else test; NothingHeldOut if one of them was asked for, or none is there."""
    there = [name for name in HELD_OUT_SPLITS if name in builder.info.splits]
    if not there or set(there) & set(re.sub(r"\[[^\]]*\]", "", asked).split("+")):
        raise base.NothingHeldOut(
            f"{builder.info.full_name}:{asked} holds nothing out: its splits are "
            f"{', '.join(builder.info.splits)}; set --config.data.eval=tfds:NAME:SPLIT"
        )
    return there[0]


def checked(split: Split) -> Split:
    """DataError if a shard is missing, or nothing is left of the split."""
    for file in split.files:
        if not Path(file).is_file():
            raise damaged(file, "it is missing")
    if not len(split):
        raise DataError(f"{split.name} has no images")
    return split


# Finding data sets.


def builder_of(name: str, tfds_dir: str) -> Any:
    """TFDS's builder of a data set, prepared or not; DataError if TFDS has none."""
    import tensorflow_datasets as tfds

    folder = Path(name).expanduser()
    if name.startswith(("/", "~", ".")):
        if not (folder / "dataset_info.json").is_file():
            raise DataError(f"{folder} holds no data set of TFDS (no dataset_info.json)")
        return tfds.builder_from_directory(folder)
    try:
        return tfds.builder(name, data_dir=tfds_dir or None)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise unknown(name) from error
    except (ValueError, RuntimeError, AssertionError) as error:  # a config or version
        raise DataError(f"TFDS has no {name}: {error}") from error


def unknown(name: str) -> DataError:
    """What is said of a name that nobody knows."""
    import tensorflow_datasets as tfds

    names = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(name, [*sources.LOADERS, *names], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    kinds = ", ".join(f"{kind}:" for kind in sources.LOADERS)
    return DataError(f"{name} is no data set of TFDS, nor a kind of source ({kinds}){hint}")


def prepared(name: str, tfds_dir: str) -> Any:
    """The builder of a data set that lies ready as ArrayRecord; else DataError."""
    builder = builder_of(name, tfds_dir)
    if not is_prepared(builder):
        raise DataError(not_prepared(builder, name, tfds_dir))
    formats = {found.value for found in builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise DataError(
            f"{builder.data_dir} is prepared as {', '.join(sorted(formats))}, which can't be "
            f"read at random; prepare it elsewhere: supmim data prepare {name} --tfds-dir=DIR"
        )
    return builder


def is_prepared(builder: Any) -> bool:
    """Whether TFDS has come to the end with it."""
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def not_prepared(builder: Any, name: str, tfds_dir: str) -> str:
    """Lines: what is missing, and the next command."""
    elsewhere = f" --tfds-dir={tfds_dir}" if tfds_dir else ""
    lines = [f"{builder.info.full_name} is not prepared in {builder.data_dir}"]
    if manual := manual_lines(builder):
        lines += [*manual, "When they are there:"]
    return "\n".join([*lines, f"  supmim data prepare {name}{elsewhere}"])


def manual_folder(builder: Any) -> Path:
    """Where TFDS looks for files that a person has to fetch."""
    return Path(builder.data_dir_root) / "downloads" / "manual"


def manual_lines(builder: Any) -> list[str]:
    """What a person has to fetch, and what of it is there; nothing for most data sets."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return []
    folder = manual_folder(builder)
    expected = MANUAL_FILES.get(builder.name)
    if not expected:
        told = builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip().splitlines()
        return [f"Its files are fetched by hand, into {folder}:", *(f"  {s.strip()}" for s in told)]
    lines = [f"Its files are fetched by hand, from https://image-net.org/download, into {folder}:"]
    return lines + [f"  {file}  {size:,} bytes: {state}" for file, size, state in
                    manual_states(folder, expected)]  # fmt: skip


def manual_states(folder: Path, expected: dict[str, int]) -> list[tuple[str, int, str]]:
    """(file, bytes it should have, is it there)."""

    def state(file: str, size: int) -> str:
        path = folder / file
        found = path.stat().st_size if path.is_file() else 0
        return "there" if found == size else f"{found:,} bytes are there" if found else "missing"

    return [(file, size, state(file, size)) for file, size in expected.items()]


# Features.


def image_features(builder: Any) -> list[str]:
    """Names of the features that are images."""
    import tensorflow_datasets as tfds

    return [n for n, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]


def labelled_fields(builder: Any) -> Fields:
    """The image, its label and its name; DataError, with the features, if that is not clear."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    labels = [n for n, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    image, label = only("image", image_features(builder)), only("label", labels)
    if not image or not label:
        missing = "image" if not image else "class label"
        raise DataError(
            f"{builder.info.full_name} has no one {missing}; its features are "
            f"{', '.join(f'{n} ({type(f).__name__})' for n, f in features.items())}"
        )
    return Fields(image, label, name_feature(features))


def only(usual: str, names: Sequence[str]) -> str:
    """The usual name if it is there, or the only one; else ""."""
    if usual in names:
        return usual
    return names[0] if len(names) == 1 else ""


def name_feature(features: Any) -> str:
    """The feature that names an image, or ""."""
    return next((name for name in NAME_FEATURES if name in features), "")
