"""The terminal: names of others reach it escaped, in any encoding, and nobody has to read it."""

import io
import os
import subprocess
import sys

import pytest

from supmim.runtime import streams

HOSTILE = "a\x1b]8;;http://x\x07b\x9b31mc\rd\u202ee\u200bf\udcffg"
ESCAPED = "a\\x1b]8;;http://x\\x07b\\x9b31mc\\rd\\u202ee\\u200bf\\udcffg"


def supmim(*args, reader=True, **environ):
    """Run the command line, by a pipe that is read to the end or by nobody."""
    with subprocess.Popen(
        [sys.executable, "-m", "supmim", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | environ,
    ) as process:  # fmt: skip
        if not reader:
            process.stdout.close()
        error = process.stderr.read()
    return error, process.returncode


def stream(encoding="utf-8"):
    plain = io.TextIOWrapper(io.BytesIO(), encoding)
    return streams.Stream(plain), plain.buffer


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_is_not_printable_is_written_as_escapes(encoding):
    out, written = stream(encoding)
    print(HOSTILE, "一é\tend", file=out, flush=True)
    shown = "一é".encode(encoding, "backslashreplace")
    assert written.getvalue() == ESCAPED.encode() + b" " + shown + b"\tend\n"


def test_a_name_on_one_line_has_no_line_end_and_keeps_its_letters():
    assert streams.printable("école\nb\u2028c") == "école\\nb\\u2028c"
    assert streams.printable("一 b") == "一 b"


def test_a_console_on_a_terminal_sends_its_own_codes_and_no_others(monkeypatch):
    monkeypatch.setattr(streams.Stream, "isatty", lambda self: True)
    out, written = stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    with streams.Live(streams.Console(), lambda width: "\x1b[31mtask") as live:
        live.refresh()
        print(HOSTILE)  # by way of Rich, which draws the line anew below
    text = written.getvalue().decode()
    assert ESCAPED in text and "\\x1b[31m" in text
    assert "\x1b[2K" in text and "\x1b[31m" not in text
    assert not {"\x07", "\x9b", "\u202e", "\u200b", "\udcff"} & set(text)


def test_a_console_writes_no_codes_into_a_file_whatever_the_environment_says(monkeypatch):
    out, written = stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("FORCE_COLOR", "1")
    streams.Console().print("[b]text[/b] 1")
    assert written.getvalue() == b"text 1\n"


def test_the_command_line_speaks_ascii_where_it_must():
    error, code = supmim("né\x1b[31m", PYTHONIOENCODING="ascii:strict")
    assert code == 2 and error.startswith(rb"supmim: 'n\xe9\x1b[31m' is not a verb of supmim")


@pytest.mark.parametrize(("args", "code"), [(("train", "--help"), 0), (("trian",), 2)])
def test_a_reader_that_is_gone_changes_neither_the_exit_code_nor_the_errors(args, code):
    assert supmim(*args, reader=False) == supmim(*args) and supmim(*args)[1] == code
