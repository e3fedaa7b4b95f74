"""Training of members as processes on this host, a few at a time; signals are passed on."""

import collections
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from supmim.errors import counted
from supmim.storage.growing import Growing
from supmim.sweeps.members import Member, begins_after, was_interrupted
from supmim.workdir import files, lock

LOG = "log.txt"
POLL_SECONDS = 0.2  # between two looks at the processes


def command(member: Path) -> list[str]:
    """Return the command that starts or continues the training of a member."""
    return [sys.executable, "-m", "supmim", "train", f"--workdir={member}"]


def start(member: Path, log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a member, whose output is appended to log_file; Ctrl-C does not reach it directly."""
    (member / "exit.json").unlink(missing_ok=True)
    with log_file.open("ab") as log:
        return subprocess.Popen(
            command(member),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def write_exit_code(member: Path, code: int) -> None:
    files.write_json(member / "exit.json", {"exit_code": code})


class Local:
    """Trains members until none is left, or until all have saved after a signal.

    A member that begins with the encoder of another waits for it. codes: the exit code of each
    member that ended. orphans: those not started because the other failed. log: receives
    a line when one starts or ends. keep: keeps the results of one that finished.
    """

    def __init__(
        self,
        members: Sequence[Member],
        jobs: int,
        environment: Mapping[str, str],
        log: Callable[[str], None],
        keep: Callable[[Sequence[Member]], None],
    ) -> None:
        self.waiting = collections.deque(members)
        self.jobs, self.environment = jobs, environment
        self.log, self.keep = log, keep
        self.running: dict[Member, tuple[subprocess.Popen, float, Growing]] = {}
        self.codes: dict[Member, int] = {}
        self.orphans: dict[Member, Member] = {}
        self.first = {member: begins_after(member, members) for member in members}
        self.signals = self.passed_on = 0
        self.trained_elsewhere: set[str] = set()  # names

    def run(self) -> None:
        """Train; a first signal lets the members save, a second ends them at once."""
        with self.counting_signals():
            while self.running or (self.waiting and not self.signals):
                self.pass_on_signals()
                self.reap()
                self.fill()
                time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def counting_signals(self) -> Iterator[None]:
        """Count SIGINT and SIGTERM instead of ending the process."""

        def count(*_: object) -> None:
            self.signals += 1

        previous = {n: signal.signal(n, count) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def pass_on_signals(self) -> None:
        if self.signals > self.passed_on:
            self.passed_on = self.signals
            members = counted(len(self.running), "member saves", "members save")
            self.log(f"stopping    {members}; repeat the signal to end them at once")
            for child, _, _ in self.running.values():
                child.terminate()

    def reap(self) -> None:
        """Take up the exit codes of members that ended."""
        for member, (child, began, logs) in list(self.running.items()):
            if (code := child.poll()) is not None:
                del self.running[member]
                self.codes[member] = code
                logs.close()
                write_exit_code(member.workdir, code)
                if not code:
                    self.keep([member])
                failed = code and not was_interrupted(code)
                ending = f"failed {code}" if failed else "interrupted" if code else "finished"
                self.log_member(ending, member, f"{time.monotonic() - began:.0f} s")

    def fill(self) -> None:
        """Start members while there is room; one that another process trains has to wait."""
        for _ in range(len(self.waiting)):
            if len(self.running) == self.jobs or self.signals:
                return
            member = self.waiting.popleft()
            first = self.first[member]
            if first and (first in self.orphans or self.codes.get(first)):
                self.orphans[member] = first
                self.log_member("left out", member, f"{first.name} failed")
            elif first and first not in self.codes:
                self.waiting.append(member)
            elif lock.held(member.workdir):
                self.waiting.append(member)
                if member.name not in self.trained_elsewhere:
                    self.log_member("waits for", member, "another process trains it")
                self.trained_elsewhere.add(member.name)
            elif member.results:
                self.codes[member] = 0
                self.log_member("finished", member, "elsewhere")
            else:
                logs = Growing(member.workdir)
                child = start(member.workdir, logs.file(LOG), self.environment)
                self.running[member] = child, time.monotonic(), logs
                self.log_member("start", member, "")

    def log_member(self, event: str, member: Member, detail: str) -> None:
        left = f"{len(self.waiting) + len(self.running)} left"
        details = ", ".join(filter(None, (detail, left)))
        self.log(f"{event:<12}{member.name:<48} {details}"[:80])
