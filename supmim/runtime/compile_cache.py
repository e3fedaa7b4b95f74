"""A cache of compiled programs on disk, so that a second start of a run need not compile again."""

import hashlib
import os
import platform
from pathlib import Path

OFF = "none"
MAX_BYTES = 2**31  # beyond it, the least recently used programs are deleted
MIN_SECONDS = 0.1  # programs that compile faster are not kept


def environment(folder: str) -> dict[str, str]:
    """Return the variables that make JAX keep its programs; empty if it should not or cannot.

    folder: empty for the default one, OFF for none. The programs are code, so only the user may
    read or write the folder, and another user's folder is not used. JAX_COMPILATION_CACHE_DIR
    applies unless a folder is given.
    """
    if folder == OFF:
        return {"JAX_COMPILATION_CACHE_DIR": ""}
    if not folder and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return {}
    path = Path(folder) if folder else default_folder()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_uid != os.getuid():
            return {}
        path.chmod(0o700)
    except OSError:
        return {}
    return {
        "JAX_COMPILATION_CACHE_DIR": str(path.absolute()),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(MAX_BYTES),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(MIN_SECONDS),
    }


def default_folder() -> Path:
    """Return a folder for this user and this kind of processor: others may not run its code."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
    return base / "supmim" / f"{platform.machine()}-{digest}"
