"""A file that lets a run go on when the disk is full."""

from collections.abc import Callable
from pathlib import Path

from supmim.errors import counted


class PatientFile:
    """A file to append to: what the disk does not take is kept, and tried again at each `flush`.

    log: receives one message when the disk begins to refuse, and one if the file ends incomplete.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self.path, self.log = path, log
        self._file = path.open("ab", buffering=0)
        self._left, self._refused = bytearray(), False

    def write(self, data: bytes) -> None:
        """Take bytes that the next `flush` writes."""
        self._left += data

    def flush(self) -> None:
        """Write all that is left, as far as the disk takes it."""
        try:
            while self._left:
                del self._left[: self._file.write(self._left)]
            self._refused = False
        except OSError as error:
            if not self._refused:
                self.log(f"{self.path} cannot be written now: {error.strerror}; trying again later")
            self._refused = True

    def close(self) -> None:
        """Write what is left, or tell how much is missing."""
        self.flush()
        if self._left:
            self.log(f"{self.path} lacks its last {counted(len(self._left), 'byte')}")
        self._file.close()


class PatientFiles:
    """Open files for tensorboardX, whose thread dies at the first error and then stops the run.

    tensorboardX calls them `PREFIX:FILE`.
    """

    PREFIX = "patient"

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log

    def directory_check(self, path: str) -> None:
        """Do nothing: the folder is there."""

    def open(self, path: str) -> PatientFile:
        return PatientFile(Path(path.removeprefix(f"{self.PREFIX}:")), self.log)
