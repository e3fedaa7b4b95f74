"""Signs of life between the processes of a run: who is gone, and who keeps the others waiting.

Every few seconds each process leaves a note with JAX's coordination service and reads those of the
others. The service is in process 0. If that is gone, JAX aborts the others; see `aborted`.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax
from jax._src import distributed

from supmim.errors import DeviceError, Interrupted, StallError

EVERY = 2.0  # seconds between two notes
SILENT = 60.0  # seconds without a new note after which a process counts as gone
AFTER_END = 15.0  # seconds that the others have to end by themselves after one process has failed
PAUSED = 10.0  # a longer gap, in seconds, between two looks: this process was suspended
GOODBYE = 5.0  # seconds for the last note
ENDED = "ended with exit code "
NOTES = "supmim/notes/"  # keys in the coordination service


class Life:
    """The notes of all processes, and the threads that exchange and watch them.

    note: what this process says of itself.
    """

    def __init__(self) -> None:
        self.note, self._beats = "starting", 0
        self._seen: dict[str, tuple[str, float]] = {}  # process -> its last text, since when
        self._heard = 0.0  # when the service last answered
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()
        self._ended.set()  # until there are others

    def start(self) -> None:
        """Begin to exchange notes, and tell the others when this program ends."""
        self._ended.clear()
        # A handler in Python would run in the main thread, which never gets there.
        ctypes.CDLL(None).signal(signal.SIGABRT, aborted)
        self._exchange()
        for work in (self._talk, self._watch):
            threading.Thread(target=work, daemon=True).start()
        atexit.register(self.end, 0)

    def end(self, code: int) -> None:
        """Say goodbye, unless nobody answers."""
        if not self._ended.is_set():
            self._ended.set()
            self.note = f"{ENDED}{code}"
            goodbye = threading.Thread(target=self._try_to_exchange, daemon=True)
            goodbye.start()
            goodbye.join(GOODBYE)

    def others(self) -> dict[str, tuple[str, float]]:
        """Return name -> (note, seconds since its last sign of life) of all processes."""
        now = time.monotonic()
        found = {}
        for number, (text, since) in sorted(self._seen.items(), key=lambda item: int(item[0])):
            host, note, _ = json.loads(text)
            found[f"process {number} on {host}"] = note, now - since
        return found

    def _exchange(self) -> None:
        """Write this process's note and read all; JaxRuntimeError if the service is gone."""
        with self._one_at_a_time:
            self._beats += 1
            client: Any = distributed.global_state.client  # it has no public name
            text = json.dumps([socket.gethostname(), self.note, self._beats])
            client.key_value_set(f"{NOTES}{jax.process_index()}", text, allow_overwrite=True)
            found = client.key_value_dir_get(NOTES)
            self._heard = now = time.monotonic()
            for key, text in found:
                number = key.rpartition("/")[2]
                if self._seen.get(number, ("", 0.0))[0] != text:
                    self._seen[number] = text, now

    def _try_to_exchange(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._exchange()

    def _talk(self) -> None:
        """Exchange notes; a call may wait for ever, which `_watch` notices."""
        while not self._ended.wait(EVERY):
            self._try_to_exchange()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(EVERY):
            now = time.monotonic()
            if now - last > PAUSED:  # this process was suspended, not the others
                self._heard = now
                self._seen = {number: (text, now) for number, (text, _) in self._seen.items()}
            last = now
            if now - self._heard > SILENT:
                told = f"has not answered for {now - self._heard:.0f} s"
                self.lost(f"process 0, which coordinates the others, {told}")
            for name, (note, silence) in self.others().items():
                if note.startswith(ENDED):
                    code = int(note.removeprefix(ENDED))
                    if code and silence > AFTER_END:
                        self.lost(f"{name} {note}", code)
                elif silence > SILENT:
                    self.lost(f"{name} has given no sign of life for {silence:.0f} s")

    def wait(self, error: Exception) -> None:
        """Wait until `_watch` knows which process is gone, if that can be the cause of an error."""
        if isinstance(error, jax.errors.JaxRuntimeError) and not self._ended.is_set():
            print(f"supmim: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            time.sleep(SILENT + 2 * EVERY)

    def lost(self, gone: str, code: int = DeviceError.exit_code) -> None:
        """End this process with an exit code; `gone` says which other process is gone, and how."""
        advice = "Its own output says why"
        if code in (DeviceError.exit_code, StallError.exit_code, Interrupted.exit_code):
            advice += ". Start all processes again: the run continues from its newest checkpoint"
        if code == StallError.exit_code:  # the others could not see what this one does
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        error = DeviceError(f"{gone}. {advice}", fault="R5")
        print(f"supmim: {error}", file=sys.stderr, flush=True)
        if jax.process_index() == 0:
            time.sleep(GOODBYE)  # without it the others are aborted
        os._exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def aborted(_: int) -> None:
    """End a process that JAX's C++ aborts, which it does as soon as process 0 is gone."""
    LIFE.lost(
        "JAX aborted this process, as the lines above say. Most likely process 0, which "
        "coordinates the others, is gone"
    )


LIFE = Life()
