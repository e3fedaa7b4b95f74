"""Python files that a user names, presets and sweeps; faults in them are reported by line."""

import contextlib
import importlib.util
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from supmim.config import catalogue
from supmim.errors import ConfigError, SupmimError


def load(path: Path) -> ModuleType:
    """Run the file as a module and return it; ConfigError if it cannot be read."""
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"{path} is not a Python file that can be read")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # as for every .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preset(folder: Path, spec: str) -> ConfigDict:
    """Return the config of `NAME[:arguments]` or `FILE.py[:arguments]`, relative to `folder`."""
    file, _, arg = spec.partition(":")
    if catalogue.is_path(file):
        file = str(folder / file)
    path = Path(catalogue.resolved(file))
    with faults_reported(path):
        config = load(path).get_config(*[arg] if arg else [])
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config() of {path} returned {type(config).__name__}; it must return the config "
            "that supmim.config.get_config() gave it"
        )
    return config


@contextlib.contextmanager
def faults_reported(path: Path) -> Iterator[None]:
    """Turn whatever the code of `path` raises inside into a ConfigError."""
    try:
        yield
    except SupmimError:
        raise
    except Exception as error:
        raise ConfigError(fault(error, str(path)) or f"{path}: {error}") from error


def fault(error: BaseException, path: str) -> str:
    """Return `FILE, line N: what`, or an empty string if it happened in no file named `path`."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg}"
    cause: BaseException | None = error
    while path and cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        if inside := [frame for frame in frames if frame.filename.endswith(path)]:
            where = f"{inside[-1].filename}, line {inside[-1].lineno}"
            return f"{where}: {type(cause).__name__}: {cause.args[0] if cause.args else ''}"
        cause = cause.__cause__ or cause.__context__
    return ""
