"""Names of objects in buckets."""

import os

SCHEMES = ("gs://", "s3://")


def on_bucket(path: str | os.PathLike) -> bool:
    """Return whether a path is that of an object in a bucket: gs://... or s3://..."""
    return os.fspath(path).startswith(SCHEMES)
