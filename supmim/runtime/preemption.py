"""SIGTERM, SIGHUP and Ctrl-C: the first asks a run to save and stop, the second ends it at once.

Before its first step there is nothing to save, and after the last all is saved: the first signal
then ends the run too. Python's handlers wait for XLA, which may compile for minutes; so a thread
sees each signal at once.

With several processes, JAX's preemption service owns SIGTERM and stops all of them at one step. It
gets the signal only once there is something to save. Before that, a process that is stopped ends,
and the others end after it (see life.py).
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from supmim.errors import Interrupted
from supmim.runtime import hosts

GRACE = 3.0  # seconds that Python has to end a run which has nothing to save
NOTHING = str(
    Interrupted("stopped before the first step of this start: nothing is lost", fault="U2")
)


class StopSignal:
    """A request to stop: within `with StopSignal() as stop`, check `stop.asked()`.

    ends: message of Interrupted if a signal comes while there is nothing to save. If it is empty,
    the run goes on until it asks.
    """

    def __init__(self, ends: str = "") -> None:
        self.requested, self.ends = False, ends
        self._times, self._over = 0, False
        self._late: threading.Timer | None = None
        self._alone = jax.process_count() == 1
        self._previous: dict[int, Any] = {}
        self._jaxs: int | None = None  # JAX's handler of SIGTERM, while it is not in use

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python takes signals in its main thread, whose handlers stay as they are
        if self._owns_jaxs():
            self._jaxs = handler_of_sigterm(None)
        for number in self._numbers():
            self._previous[number] = signal.signal(number, self._handle)
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def _numbers(self) -> list[signal.Signals]:
        """Return the signals that are handled here; `nohup` has SIGHUP ignored already."""
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        own = [signal.SIGTERM] if self._alone or self._owns_jaxs() else []
        return [signal.SIGINT, *own, *([] if ignored else [signal.SIGHUP])]

    def _owns_jaxs(self) -> bool:
        """Return whether SIGTERM is handled here although JAX would pass it on to the others."""
        return not self._alone and bool(self.ends)

    def _give_back(self) -> None:
        """Give SIGTERM back to JAX if it was taken here, which only happens in the main thread."""
        if self._owns_jaxs() and signal.SIGTERM in self._previous:
            signal.signal(signal.SIGTERM, self._previous.pop(signal.SIGTERM))
            handler_of_sigterm(self._jaxs)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._over = True
        if self._late:
            self._late.cancel()
        if self._previous:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writer)  # which ends the thread
        self._give_back()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Return whether any process got a signal; the answer is the same on all processes.

        All processes must ask equally often.
        """
        if self._alone:
            return self.requested
        self._times += 1
        return multihost_utils.reached_preemption_sync_point(self._times)

    def begin(self) -> None:
        """Note that there is something to save from now on; Interrupted if a signal came before."""
        if self.requested and self.ends:
            raise Interrupted(self.ends)
        self._give_back()
        self.ends = ""

    def all_is_saved(self, ends: str) -> None:
        """Let the next signal raise Interrupted(ends), since nothing is left to save.

        With several processes it changes nothing: they finish together.
        """
        self.ends = ends if self._alone else ""

    def _watch(self, reader: int) -> None:
        """Answer each signal as it comes, whatever the main thread does."""
        with open(reader, "rb", buffering=0) as coming:
            while number := coming.read(1):
                if number[0] in self._previous:
                    self._came(number[0])

    def _came(self, number: int) -> None:
        if self._over or (self.requested and number == signal.SIGHUP):
            return  # a terminal that closes sends SIGHUP twice
        if number == signal.SIGHUP:
            leave_terminal()
        if self.requested:
            self._end(128 + number, "\n")  # below a line of progress
        self.requested, ends = True, self.ends
        if not self._alone and not ends:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes it on to the other processes
        name = signal.Signals(number).name
        doing = "ending" if ends else "finishing the step and saving"
        _write(f"\nsupmim: {name}: {doing}; repeat the signal to exit at once\n")
        if ends:
            message = f"supmim: {ends}\n"
            self._late = threading.Timer(GRACE, self._end, (Interrupted.exit_code, message))
            self._late.daemon = True
            self._late.start()

    def _handle(self, *_: int | FrameType | None) -> None:
        """End the main thread, if it runs Python, once a signal has been answered."""
        if self.ends:
            raise Interrupted(self.ends)

    def _end(self, code: int, message: str) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        _write(message)
        if not self._alone:
            hosts.leave(code)
        os._exit(code)


def handler_of_sigterm(handler: int | None) -> int | None:
    """Set the C handler of SIGTERM, None for the system's, and return the previous one."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return libc.signal(signal.SIGTERM, handler)


def leave_terminal() -> None:
    """Drop what is written to a terminal that is gone, since it would raise an error."""
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _write(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
        os.write(sys.stderr.fileno(), message.encode())
