"""Buckets by fsspec: gcsfs and s3fs with more patience, and paths in them by etils.

A request that fails for a temporary reason (too many of them, a server that is down, a connection
that breaks) is repeated for PATIENCE seconds, with a line a minute.
"""

import asyncio
import base64
import contextlib
import errno
import functools
import hashlib
import logging
import math
import os
import random
import re
import time
import types
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from etils.epath import backend, gpath

from supmim.errors import BucketError, ConfigError, counted
from supmim.runtime.progress import tell

PATIENCE = 600.0  # seconds
TELL_EVERY = 60.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries
SILENCE = 60.0  # seconds without a byte after which a request is made again
BLOCK = 2**26  # bytes that one request reads
PARALLEL = 16  # objects that are read, written or deleted at the same time
AT_ONCE = 2**27  # bytes of a file that one request writes

EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
ADVICE = {
    "gs": (
        "log in with `gcloud auth application-default login`, or give the service account of this "
        "machine roles/storage.objectAdmin on it",
        "create it with `gcloud storage buckets create gs://{}`",
    ),
    "s3": (
        "log in with `aws configure` or set AWS_PROFILE, with permission to list, get, "
        "put and delete objects",
        "create it with `aws s3 mb s3://{}`",
    ),
}


_last_line = [-math.inf]  # when a line was printed: many requests may wait at the same time


async def patiently(request: Callable[[], Awaitable[Any]], passes: Callable[..., bool]) -> Any:
    """Return what a request returns, making it again while it fails for a reason that passes."""
    began, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return await request()
        except (BucketError, FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            now, why = time.monotonic(), _first_line(error)
            waited = now - began
            if not passes(error):
                raise BucketError(f"a bucket refuses a request: {why}", fault="R27") from error
            if waited >= PATIENCE:
                minutes = counted(round(waited / 60), "minute")
                told = f"a bucket could not be reached for {minutes}: {why}"
                raise BucketError(told, fault="R26") from error
            if waited >= TELL_EVERY and now - _last_line[0] >= TELL_EVERY:
                _last_line[0] = now
                minutes = counted(round(waited / 60), "minute")
                tell(f"a bucket has not answered for {minutes}; trying again: {why}")
        await asyncio.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE)


@functools.cache
def filesystem(scheme: str) -> Any:
    """Return the file system of gs or s3; ConfigError if its packages are missing."""
    extra, package = EXTRAS[scheme]
    try:
        kind = _google() if scheme == "gs" else _amazon()
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs {package}; install it with: pip install -e '.[{extra}]'"
        ) from error
    for name in {scheme, package.removesuffix("fs")}:  # for Orbax too, by etils
        fsspec.register_implementation(name, kind, clobber=True)
    return fsspec.filesystem(scheme)


def _google() -> type:
    import aiohttp
    from gcsfs import core, retry
    from google.auth.exceptions import GoogleAuthError, TransportError

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints traces of repeated requests
    once = core.GCSFileSystem._request.__wrapped__  # without its own repeats, which end after 60 s
    broken = (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.TimeoutError)

    def passes(error: Exception) -> bool:
        for one in (error, error.__cause__):  # gcsfs makes 401 of a token that it cannot fetch
            if isinstance(one, GoogleAuthError):
                return isinstance(one, TransportError) or one.retryable
        if isinstance(error, retry.HttpError):
            return int(error.code or 0) in (408, 429) or int(error.code or 0) >= 500
        return isinstance(error, broken) or retry.is_retriable(error)

    class GoogleBuckets(core.GCSFileSystem):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            timeout = aiohttp.ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE)
            ours = {"use_listings_cache": False, "requests_timeout": timeout}
            super().__init__(*args, **ours | kwargs)

        async def _request(self, *args: Any, **kwargs: Any) -> Any:
            return await patiently(lambda: once(self, *args, **kwargs), passes)

    return GoogleBuckets


def _amazon() -> type:
    import aiohttp
    import s3fs
    from botocore import exceptions, parsers

    logging.getLogger("s3fs").setLevel(logging.CRITICAL)
    lost = (
        *(aiohttp.ClientError, exceptions.HTTPClientError, parsers.ResponseParserError),
        *(exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError),
        *(exceptions.ProxyConnectionError, exceptions.IncompleteReadError),
        *(exceptions.FlexibleChecksumError, ConnectionError, TimeoutError, asyncio.TimeoutError),
    )

    def passes(error: Exception) -> bool:
        if isinstance(error, lost):
            return True
        status = status_of(error)
        return status in (408, 409, 429) or status >= 500

    def status_of(error: Exception) -> int:
        cause = error.__cause__
        is_answer = isinstance(cause, exceptions.ClientError)
        return cause.response["ResponseMetadata"]["HTTPStatusCode"] if is_answer else 0

    class AmazonBuckets(s3fs.S3FileSystem):
        retries = 1

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            once = {"retries": {"total_max_attempts": 1}}
            ours = {"use_listings_cache": False, "config_kwargs": once}
            super().__init__(*args, **ours | kwargs)

        async def _call_s3(self, *args: Any, **kwargs: Any) -> Any:
            call = super()._call_s3

            async def once() -> Any:
                try:
                    return await call(*args, **kwargs)
                except OSError as error:
                    if "IfNoneMatch" in kwargs and status_of(error) == 412:
                        raise FileExistsError(kwargs["Key"]) from error
                    raise

            return await patiently(once, passes)

        async def _cat_file(self, *args: Any, **kwargs: Any) -> bytes:
            cat = super()._cat_file
            return await patiently(lambda: cat(*args, **kwargs), passes)

    return AmazonBuckets


class BucketPath(gpath.PosixGPath):
    """A path in a bucket, with pathlib's methods; a folder exists as soon as it holds something."""

    @property
    def _backend(self) -> Any:
        return backend.fsspec_backend  # also where TensorFlow is installed

    @property
    def files(self) -> Any:
        """The file system."""
        return filesystem(os.fspath(self)[:2])

    def read_text(self, encoding: str | None = None, errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors)

    def read_bytes(self) -> bytes:
        return self.files.cat_file(os.fspath(self))

    def stat(self) -> Any:
        return types.SimpleNamespace(st_size=int(self.files.info(os.fspath(self))["size"]))

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def exists(self) -> bool:
        return bool(self._kind())

    def _kind(self) -> str:
        """Return file, directory, or "" if there is nothing; fsspec takes any error for nothing."""
        try:
            return self.files.info(os.fspath(self))["type"]
        except FileNotFoundError:
            return ""

    def iterdir(self) -> Iterator["BucketPath"]:
        for name in self.files.ls(os.fspath(self), detail=False):
            if found := os.path.basename(name):
                yield self / found

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: a bucket has no folders."""

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def rename(self, target: Any) -> Any:
        """Copy this object, or everything below it, then delete it."""
        for name in (names := list(sizes(self))):
            self.files.cp_file(name, os.fspath(target) + name.removeprefix(os.fspath(self)))
        self._remove(names)
        return target

    replace = rename

    def rmtree(self, missing_ok: bool = False) -> None:
        """Delete everything below this path."""
        if names := list(sizes(self)):
            self._remove(names)
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "there is nothing", os.fspath(self))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete this object, if it is there: a request whose answer was lost finds it gone."""
        self._remove([os.fspath(self)])

    def _remove(self, names: list[str]) -> None:
        """Delete objects by name; fsspec's `rm` takes * and ? for patterns, and hides errors."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(name)

        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(remove, names))


def path(name: str | os.PathLike) -> Any:
    """Return the path of an object or of a folder in a bucket."""
    text = os.fspath(name)
    scheme, _, rest = text.partition("://")
    bucket = rest.partition("/")[0]
    if not bucket or bucket != bucket.strip():
        raise ConfigError(f"{text} names no bucket; write {scheme}://BUCKET/FOLDER")
    filesystem(scheme)
    return BucketPath(text)


def put(source: Path, to: Any) -> None:
    """Upload one local file, from memory, since a half-read file cannot be sent again."""
    if source.stat().st_size < AT_ONCE:
        to.files.pipe_file(os.fspath(to), source.read_bytes())
    else:
        one_part = {"max_concurrency": 1} if os.fspath(to).startswith("s3") else {}
        to.files.put_file(str(source), os.fspath(to), **one_part)  # each part from memory


def get(
    source: Any, to: Path, size: int, advance: Callable[[int], None] = lambda count: None
) -> None:
    """Download one object of `size` bytes by blocks. advance: called with each block's size."""
    with to.open("wb") as file:
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            file.write(source.files.cat_file(os.fspath(source), start=start, end=stop))
            advance(stop - start)
    if to.stat().st_size != size:
        raise BucketError(f"{source} has changed while it was read")


def sizes(folder: Any) -> dict[str, int]:
    """Return {gs://...: bytes} of the object at a path and of all below it, sorted by name."""
    scheme = os.fspath(folder)[:2]
    return {f"{scheme}://{name}": int(info["size"]) for name, info in _objects(folder)}


def _objects(folder: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return BUCKET/NAME and what is known of each object at a path and below it, sorted."""
    found = folder.files.find(os.fspath(folder), detail=True)
    # Web consoles make an object whose name ends with a slash for a folder.
    return [(name, found[name]) for name in sorted(found) if not name.endswith("/")]


class Stored(NamedTuple):
    """The size of an object, and what its bucket says of its content.

    digest: md5:HEX or crc32c:BASE64; or etag:TEXT, which tells only whether the object changed.
    """

    size: int
    digest: str

    def agrees(self, file: Path) -> bool:
        """Return whether a local file has this size and, if that can be known, this content."""
        kind, _, expected = self.digest.partition(":")
        if file.stat().st_size != self.size or kind == "etag":
            return file.stat().st_size == self.size
        digest = hashlib.md5(usedforsecurity=False) if kind == "md5" else _crc32c()
        with file.open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
        found = digest.digest()
        return expected == (found.hex() if kind == "md5" else base64.b64encode(found).decode())


def _crc32c() -> Any:
    import google_crc32c  # comes with gcsfs

    return google_crc32c.Checksum()


def listed(folder: Any) -> dict[str, Stored]:
    """Return {name below a folder: Stored}, sorted."""
    start = os.fspath(folder).partition("://")[2] + "/"
    return {
        name.removeprefix(start): Stored(int(info["size"]), _digest(info))
        for name, info in _objects(folder)
        if name.startswith(start)
    }


def _digest(info: dict[str, Any]) -> str:
    """Return the best digest that a bucket gives; objects made of parts have no MD5."""
    if md5 := info.get("md5Hash"):
        return f"md5:{base64.b64decode(md5).hex()}"
    if crc32c := info.get("crc32c"):
        return f"crc32c:{crc32c}"
    etag = info["ETag"].strip('"')
    return f"md5:{etag}" if re.fullmatch("[0-9a-f]{32}", etag) else f"etag:{etag}"


def etag_is_md5(path: Any) -> bool:
    """Return whether the digest of an object is of its content; not under all encryptions of S3."""
    scheme, _, rest = os.fspath(path).partition("://")
    if scheme == "gs":
        return True
    bucket, _, key = rest.partition("/")
    head = path.files.call_s3("head_object", Bucket=bucket, Key=key)
    return head.get("ServerSideEncryption", "AES256") == "AES256"


def create(path: Any, text: str) -> None:
    """Write an object that does not exist yet; FileExistsError if it does."""
    path.files.pipe_file(os.fspath(path), text.encode(), mode="create")


def refused(path: Any, error: Exception) -> BucketError:
    """Return the error for a bucket that cannot be used, with what to do."""
    scheme, _, rest = os.fspath(path).partition("://")
    bucket = rest.partition("/")[0]
    log_in, make_it = ADVICE[scheme]
    missing = isinstance(error, FileNotFoundError)
    advice = make_it.format(bucket) + ", or check its name" if missing else log_in
    why = "does not exist" if missing else f"cannot be used ({_first_line(error)})"
    return BucketError(f"the bucket {scheme}://{bucket} {why}: {advice}", fault="R27")


def _first_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
