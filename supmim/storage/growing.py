"""Files of a workdir that grow line by line, which an object in a bucket cannot.

In a bucket's workdir they are written on this machine and uploaded whole: with each save, before
the checkpoint counts as complete, and at the end.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from supmim.storage import paths
from supmim.storage.schemes import on_bucket


class Growing:
    """The growing files of a workdir. log: receives a message if they cannot be uploaded."""

    def __init__(self, workdir: Path, log: Callable[[str], None] = print) -> None:
        self.workdir, self.log = workdir, log
        self.remote = on_bucket(workdir)
        self.folder = Path(tempfile.mkdtemp(prefix="supmim-")) if self.remote else workdir
        self._uploaded: dict[Path, tuple[int, int]] = {}  # file -> size, time of the last change
        self._one_at_a_time = threading.Lock()

    def file(self, name: str) -> Path:
        """Return the local path of a file, with what earlier starts of the run left in it."""
        path, uploaded = self.folder / name, self.workdir / name
        if self.remote and not path.exists() and uploaded.exists():
            with paths.whole(path) as part:  # half of it must not be uploaded
                paths.download(uploaded, part)
            self._uploaded[path] = _state(path)
        return path

    def upload(self) -> None:
        """Upload the files that have changed since they were last uploaded."""
        if not self.remote:
            return
        with self._one_at_a_time:
            for path in paths.files_below(self.folder):
                state = _state(path)
                if self._uploaded.get(path) != state:
                    with tempfile.TemporaryDirectory(prefix="supmim-") as still:  # it may grow
                        copy = Path(shutil.copy(path, still))
                        paths.upload(copy, self.workdir / path.relative_to(self.folder))
                    self._uploaded[path] = state

    def close(self) -> None:
        """Upload them a last time, and delete them here; they stay here if that fails."""
        if not self.remote:
            return
        try:
            self.upload()
            shutil.rmtree(self.folder, ignore_errors=True)
        except OSError as error:
            self.log(f"{self.workdir} lacks its last lines, which are in {self.folder}: {error}")


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
