"""The output of Orbax and TensorStore for a failed save, which supmim reports in one line."""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any


def silence() -> None:
    """Drop this output from now on: a full disk causes hundreds of lines, in three ways."""
    logging.getLogger("absl").addFilter(lambda log: not (log.exc_info and "orbax" in log.pathname))
    warnings.filterwarnings("ignore", "coroutine '(OrbaxLayout|async_serialize)", RuntimeWarning)
    sys.unraisablehook = _hook


def _hook(unraisable: Any, before: Callable[[Any], None] = sys.unraisablehook) -> None:
    """Drop what TensorStore says for each array when Orbax's loop is closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)
