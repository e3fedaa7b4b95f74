"""Standard output and error: every character that reaches a terminal can be seen there."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rich import console, live
from rich.file_proxy import FileProxy
from rich.text import Text

STANDARD = ("stdout", "stderr")


def printable(text: str, keep: str = "") -> str:
    """Return text whose characters are all printable, those in `keep` apart; others are escaped.

    The others are control codes, line ends, characters that change the direction of text,
    invisible ones, and bytes of file names that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


class Stream(io.TextIOWrapper):
    """A standard stream that escapes what is not printable, or not in its encoding.

    Once its reader is gone, as in `supmim ... | head`, it drops what is written to it.
    """

    def __init__(self, plain: io.TextIOWrapper) -> None:
        super().__init__(
            plain.buffer,
            plain.encoding,
            errors="backslashreplace",
            line_buffering=plain.line_buffering,
            write_through=plain.write_through,
        )
        plain.flush()
        plain.reconfigure(errors="backslashreplace")
        self.plain = plain

    def write(self, text: str) -> int:
        try:
            super().write(printable(text, keep="\n\t"))
        except BrokenPipeError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def protect() -> None:
    """Replace standard output and error by a Stream; a closed one by a file that drops all."""
    for name in STANDARD:
        stream = vars(sys)[name] or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, Stream(stream) if isinstance(stream, io.TextIOWrapper) else stream)


def plain(stream: TextIO) -> TextIO:
    """Return the stream that takes control codes, for progress bars on a terminal."""
    return stream.plain if isinstance(stream, Stream) and stream.isatty() else stream


class Console(console.Console):
    """A console of Rich whose own control codes reach a terminal, while those of texts do not.

    It neither colours nor wraps: a long path can be copied from a terminal.
    """

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        stream = sys.stderr if stderr else sys.stdout
        taken = plain(stream)
        super().__init__(
            file=None if taken is stream else taken,
            stderr=stderr,
            force_terminal=stream.isatty(),
            highlight=False,
            soft_wrap=True,
            **options,
        )

    def render(self, renderable: Any, options: Any = None) -> Any:
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=printable(part.text, keep="\n"))

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor visible: a process that is killed could not bring it back."""
        return False


class Lines(FileProxy):
    """A stream whose lines a console prints above its live line, escaped."""

    def write(self, text: str) -> int:
        return super().write(printable(text, keep="\n\t"))


class Live(live.Live):
    """One line at the bottom of a terminal, which stays below everything that is printed.

    text: takes the width and returns the line; it is called by `refresh`.
    """

    def __init__(self, console: console.Console, text: Callable[[int], str]) -> None:
        super().__init__(
            console=console,
            auto_refresh=False,
            get_renderable=lambda: Text(text(console.width), no_wrap=True, overflow="crop"),
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def start(self, refresh: bool = False) -> None:
        super().start(refresh)
        for name in STANDARD:
            if isinstance(stream := vars(sys)[name], FileProxy):
                setattr(sys, name, Lines(self.console, stream.rich_proxied_file))
