"""The output of Orbax and TensorStore for a failed save, which supmim reports in one line."""

import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

NEVER_AWAITED = "(OrbaxLayout|async_serialize)"  # coroutines that a failed save leaves behind


def silence() -> None:
    """Drop this output from now on: a full disk causes hundreds of lines, in four ways."""
    logging.getLogger("absl").addFilter(lambda log: not (log.exc_info and "orbax" in log.pathname))
    warnings.filterwarnings("ignore", f"coroutine '{NEVER_AWAITED}", RuntimeWarning)
    sys.unraisablehook = _hook


def _hook(unraisable: Any, before: Callable[[Any], None] = sys.unraisablehook) -> None:
    """Drop the errors of a closed event loop, one for each array, and of Orbax's coroutines.

    Python cannot warn of a coroutine that was never awaited if it is collected inside the
    constructor of a named tuple, which has no builtins: it reports a KeyError instead.
    """
    source = unraisable.object
    never_awaited = inspect.iscoroutine(source) and re.match(NEVER_AWAITED, source.__qualname__)
    if not never_awaited and str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)
