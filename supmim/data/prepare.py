"""Downloads a data set of TFDS and writes it as ArrayRecord, without TensorFlow."""

import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from supmim.data import tensorflow_stand_in
from supmim.data.sources import catalogue
from supmim.errors import DataError, Interrupted
from supmim.workdir import lock

OPEN_FILES = 4096  # TFDS shuffles through a thousand files
LAST_WORDS = 3  # seconds that an interrupted download gets to end by itself
# Bytes written. TFDS knows those of the others, where it can ask for them.
BYTES = {"imagenet2012": 160_000_000_000}


def prepare(name: str, tfds_dir: str, log: Callable[[str], None]) -> Any:
    """The builder of a data set that is ready to be read.

    DataError if files that are fetched by hand are missing, the disk is too small, or TFDS fails;
    Interrupted after Ctrl-C: what was downloaded stays.
    """
    builder = catalogue.builder_of(name, tfds_dir)
    if catalogue.is_prepared(builder):
        return catalogue.prepared(name, tfds_dir)
    check_manual(builder, name, tfds_dir)
    check_disk(builder)
    with lock.hold(Path(builder.data_dir).parent, "--tfds-dir"):
        remove_leftovers(builder)
        log(f"preparing   {builder.info.full_name} in {builder.data_dir}")
        with Interruptible(name):
            run(builder, name)
    return catalogue.prepared(name, tfds_dir)


def check_manual(builder: Any, name: str, tfds_dir: str) -> None:
    """DataError if a file that is fetched by hand is not there, whole."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    folder = catalogue.manual_folder(builder)
    states = catalogue.manual_states(folder, catalogue.MANUAL_FILES.get(builder.name, {}))
    empty = not folder.is_dir() or not any(folder.iterdir())
    if empty or any(state != "there" for _, _, state in states):
        raise DataError(catalogue.not_prepared(builder, name, tfds_dir))


def check_disk(builder: Any) -> None:
    """DataError if the data set does not fit."""
    info = builder.info
    known = 2 * (info.download_size or 0) + (info.dataset_size or 0)  # archives, extracted, written
    needed = BYTES.get(builder.name, known)
    folder = Path(builder.data_dir_root).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} has {free / 1e9:.0f} GB free; preparing {info.full_name} takes up to "
            f"{needed / 1e9:.0f} GB; free some, or choose another --tfds-dir"
        )


def remove_leftovers(builder: Any) -> None:
    """Folders that a killed preparation of this version has left; the caller holds the lock."""
    folder = Path(builder.data_dir)
    for path in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(path)


def run(builder: Any, name: str) -> None:
    """TFDS's own download_and_prepare; DataError for whatever it raises."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with tensorflow_stand_in.in_place():
            builder.download_and_prepare(file_format=catalogue.FORMAT, download_config=options)
    except tensorflow_stand_in.NeedsTensorFlow as error:
        raise DataError(
            f"TFDS's code for {name} asks TensorFlow for {error}. Where TensorFlow is installed, "
            f"once: tfds build {name} --file_format={catalogue.FORMAT}; reading needs none"
        ) from error
    except Exception as error:  # TFDS and the builders raise anything
        raise DataError(f"{name} can't be prepared: {type(error).__name__}: {error}") from error


class Interruptible:
    """Within it Ctrl-C becomes Interrupted, and ends the process even if a download goes on."""

    def __init__(self, name: str) -> None:
        self.name, self.interrupted = name, False

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        signal.signal(signal.SIGINT, self.before)
        if self.interrupted:
            raise Interrupted(
                f"{self.name} is not prepared; the same command goes on: what was downloaded "
                "stays, writing starts anew"
            ) from error

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.interrupted = True
        os.write(sys.stderr.fileno(), b"\nsupmim: ending the preparation\n")
        end = threading.Timer(LAST_WORDS, os._exit, [Interrupted.exit_code])
        end.daemon = True
        end.start()
        raise KeyboardInterrupt
