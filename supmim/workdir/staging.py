"""The place where Orbax writes a checkpoint, and the way from there to its folder."""

from pathlib import Path

import jax

from supmim.errors import ConfigError
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.workdir.digests import file_digests


class Staging:
    """The way of checkpoints to the folder that holds one for each step.

    On a disk, Orbax writes there. For a bucket, it writes to a local folder that is uploaded in the
    background, since it would ask the bucket several times before it copies the arrays. With
    several processes, each with some of the arrays, Orbax writes to gs:// itself. It cannot write
    to s3://: ConfigError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.in_bucket = on_bucket(folder)
        self.uploads = self.in_bucket and jax.process_count() == 1
        if self.in_bucket and not self.uploads and str(folder).startswith("s3://"):
            raise ConfigError(
                f"several processes cannot save checkpoints in {folder}: Orbax writes arrays to a "
                "disk or to gs:// only. Mount the bucket on all hosts, and name that folder"
            )
        self._local: Path | None = None

    def target(self, step: int) -> Path:
        """Return the folder that Orbax writes a step to."""
        if not self.uploads:
            return self.folder / str(step)
        if self._local is None:
            self._local = paths.temporary_folder(self)
        return self._local / str(step)

    def publish(self, step: int) -> dict[str, str]:
        """Move a step that is written to its folder; return {relative name: SHA-256}."""
        written, path = self.target(step), self.folder / str(step)
        if not self.uploads:
            with paths.local_copy(path) as copy:
                return file_digests(copy)
        found = file_digests(written)
        try:
            paths.delete(path)  # what a killed upload left
            paths.upload(written, path)
        finally:
            paths.delete(written)
        return found

    def verify(self) -> None:
        """End this process if another has taken over its workdir in a bucket."""
        if self.in_bucket:
            from supmim.storage import claim

            claim.verify()
