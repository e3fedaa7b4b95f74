"""Members as processes of this host, some at a time; a signal is passed on to them."""

import collections
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from supmim.sweeps.members import Member, was_interrupted
from supmim.workdir import files, lock

POLL = 0.2  # seconds between two looks at the processes


def command(member: Path) -> list[str]:
    """Starts the training of a frozen config, or goes on with it."""
    return [sys.executable, "-m", "supmim", "train", f"--workdir={member}"]


def start(member: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """The process; it adds to log.txt. A Ctrl-C at the terminal reaches it through us only."""
    (member / "exit.json").unlink(missing_ok=True)
    with (member / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command(member), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip


def note_end(member: Path, code: int) -> None:
    """Writes down how the last attempt ended."""
    files.write_json(member / "exit.json", {"exit_code": code})


class Local:
    """`run()` trains members until none is left, or a signal came and all have saved.

    codes: exit code of each that ended. tell: takes a line when a member starts and when it ends.
    """

    def __init__(
        self, members: Sequence[Member], jobs: int, environment: Mapping[str, str],
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.waiting = collections.deque(members)
        self.jobs, self.environment, self.log = jobs, environment, log
        self.running: dict[Member, tuple[subprocess.Popen, float]] = {}
        self.codes: dict[Member, int] = {}
        self.signals = self.passed_on = 0
        self.elsewhere: set[str] = set()

    def run(self) -> None:
        """A first signal lets the members save; a second ends them at once."""
        with self.counting_signals():
            while self.running or (self.waiting and not self.signals):
                self.pass_on()
                self.reap()
                self.fill()
                time.sleep(POLL)

    @contextlib.contextmanager
    def counting_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM are counted here instead of ending the process."""

        def count(*_: object) -> None:
            self.signals += 1

        previous = {n: signal.signal(n, count) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def pass_on(self) -> None:
        """Signals that came since the last look go to every member."""
        if self.signals > self.passed_on:
            self.passed_on = self.signals
            self.log(f"stopping    {len(self.running)} members save; again to end them at once")
            for child, _ in self.running.values():
                child.terminate()

    def reap(self) -> None:
        """Members that ended."""
        for member, (child, began) in list(self.running.items()):
            if (code := child.poll()) is not None:
                del self.running[member]
                self.codes[member] = code
                note_end(member.workdir, code)
                self.told(ending(code), member, f"{time.monotonic() - began:.0f} s")

    def fill(self) -> None:
        """Starts members while there is room; one that another process trains has to wait."""
        for _ in range(len(self.waiting)):
            if len(self.running) == self.jobs or self.signals:
                return
            member = self.waiting.popleft()
            if lock.held(member.workdir):
                self.waiting.append(member)
                if member.name not in self.elsewhere:
                    self.told("waits for", member, "another process trains it")
                self.elsewhere.add(member.name)
            elif member.results:
                self.codes[member] = 0
                self.told("finished", member, "elsewhere")
            else:
                child = start(member.workdir, self.environment)
                self.running[member] = child, time.monotonic()
                self.told("start", member, "")

    def told(self, what: str, member: Member, how: str) -> None:
        """One line of at most 80 columns, with how many are left."""
        left = f"{len(self.waiting) + len(self.running)} left"
        self.log(f"{what:<12}{member.name:<48} {', '.join(filter(None, (how, left)))}"[:80])


def ending(code: int) -> str:
    """What an exit code means for a member, in a word or two."""
    if code and not was_interrupted(code):
        return f"failed {code}"
    return "interrupted" if code else "finished"
