"""Download a TFDS data set and write it as ArrayRecord, without TensorFlow."""

import contextlib
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from supmim.data import tensorflow_stand_in
from supmim.data.sources import catalogue
from supmim.errors import DataError, Interrupted
from supmim.runtime import streams
from supmim.workdir import lock

OPEN_FILES = 4096  # TFDS shuffles through a thousand files
GRACE_SECONDS = 3  # for an interrupted download to end by itself
# Bytes written; TFDS knows the sizes of other data sets.
BYTES = {"imagenet2012": 160_000_000_000}


def prepare(name: str, tfds_dir: str, log: Callable[[str], None]) -> Any:
    """Prepare a data set if necessary and return its builder, ready for reading.

    DataError if files that must be downloaded by hand are missing, the disk is too small, or TFDS
    fails; Interrupted after Ctrl-C, with downloaded files left in place.
    """
    builder = catalogue.builder_of(name, tfds_dir)
    if catalogue.is_prepared(builder):
        return catalogue.prepared(name, tfds_dir)
    check_manual_files(builder, name, tfds_dir)
    check_data_set_fits(builder)
    folder = Path(builder.data_dir)
    with lock.hold(folder.parent, "--tfds-dir"):
        for path in folder.parent.glob(f"incomplete.*_{folder.name}"):  # of killed preparations
            shutil.rmtree(path)
        log(f"preparing   {builder.info.full_name} in {builder.data_dir}")
        with interruptible(name):
            download_and_prepare(builder, name)
    return catalogue.prepared(name, tfds_dir)


def check_manual_files(builder: Any, name: str, tfds_dir: str) -> None:
    """Raise DataError if a file that must be downloaded by hand is missing or incomplete."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    folder = catalogue.manual_folder(builder)
    states = catalogue.manual_states(folder, catalogue.MANUAL_FILES.get(builder.name, {}))
    empty = not folder.is_dir() or not any(folder.iterdir())
    if empty or any(state != "there" for _, _, state in states):
        raise DataError(catalogue.not_prepared(builder, name, tfds_dir))


def check_data_set_fits(builder: Any) -> None:
    """Raise DataError if the disk is too small for the data set."""
    info = builder.info
    known = 2 * (info.download_size or 0) + (info.dataset_size or 0)  # archives, extracted, written
    needed = BYTES.get(builder.name, known)
    folder = Path(builder.data_dir_root).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} has {free / 1e9:.0f} GB free, but preparing {info.full_name} takes up to "
            f"{needed / 1e9:.0f} GB; free some space or choose another --tfds-dir"
        )


def download_and_prepare(builder: Any, name: str) -> None:
    """Run download_and_prepare of TFDS; DataError for anything that it raises."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        terminal = contextlib.redirect_stderr(streams.plain(sys.stderr))  # of TFDS's progress bars
        with tensorflow_stand_in.in_place(), terminal:
            builder.download_and_prepare(file_format=catalogue.FORMAT, download_config=options)
    except tensorflow_stand_in.NeedsTensorFlow as error:
        raise DataError(
            f"TFDS's code for {name} asks TensorFlow for {error}, which supmim does not provide. "
            f"On a machine with TensorFlow run tfds build {name} --file_format={catalogue.FORMAT} "
            "once; reading the result needs no TensorFlow"
        ) from error
    except Exception as error:  # TFDS and the builders raise anything
        raise DataError(f"{name} can't be prepared: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def interruptible(name: str) -> Iterator[None]:
    """Make Ctrl-C raise Interrupted, and end the process even if a download continues."""
    interrupted = threading.Event()

    def handle(*_: Any) -> None:
        interrupted.set()
        with contextlib.suppress(OSError):  # nobody may read it any more
            os.write(sys.stderr.fileno(), b"\nsupmim: ending the preparation\n")
        end = threading.Timer(GRACE_SECONDS, os._exit, [Interrupted.exit_code])
        end.daemon = True
        end.start()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if interrupted.is_set():
            raise Interrupted(
                f"the preparation of {name} was interrupted; the same command continues it: "
                "downloads are kept, writing starts over"
            )
