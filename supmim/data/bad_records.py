"""Unreadable images: list and count them, and stop the run when there are too many."""

import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from supmim.data.images import Bad
from supmim.data.sources.base import Source, printable
from supmim.errors import DataError, counted
from supmim.workdir.files import read_json_lines, write_text


def excess(count: int, length: int, share: float, kind: str, name: str) -> str:
    """Return why a source has too many unreadable images, `count`, or "" if it does not.

    The share is rounded up: one damaged file does not end a run on a small folder, and a share of 0
    allows none. kind: "image" or "pair"; name: that of the source, which has `length` of them.
    """
    most = math.ceil(round(share * length, 6))  # 0.07 * 100 is a little more than 7
    if count <= most:
        return ""
    return (
        f"{count:,} of {counted(length, kind)} of {name} can't be read, more than the {most:,} "
        f"that --config.data.bad_share={share:g} allows"
    )


class BadRecords:
    """The file bad_records.jsonl of a workdir: source, index, name and fault of each bad record.

    told_as: the place of the file in messages, if it is uploaded from `path`.
    Every host lists the records that it met itself, once each, and passes a line for each new one
    to `log`. Records from previous starts are neither listed again nor counted until they are met
    again: they may have been repaired.
    """

    def __init__(self, path: Path, log: Callable[[str], None], told_as: Path | None = None) -> None:
        self.path, self.log, self.told_as = path, log, told_as or path
        found = read_json_lines(path)
        if path.is_file():  # else the next line would be joined to one that a kill cut short
            write_text(path, "".join(json.dumps(line) + "\n" for line in found))
        self.listed = {(line.get("source"), line.get("name")) for line in found}
        self.met: set[tuple[str, int]] = set()

    def of(self, source: Source, limit: float) -> Callable[[Iterable[Bad]], None]:
        """Return a function that records bad records of a source.

        It raises DataError once they are more than `limit`, a share of the source, allows.
        """
        return functools.partial(self._record, source.name, len(source), limit)

    def _record(self, source: str, length: int, limit: float, met: Iterable[Bad]) -> None:
        for bad in met:
            self.met.add((source, bad.index))
            if (source, bad.name) in self.listed:
                continue
            self.listed.add((source, bad.name))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"source": source, **bad._asdict()}) + "\n")
            self.log(f"unreadable  {printable(bad.name)}: {printable(bad.why)}")
        count = sum(name == source for name, _ in self.met)
        if why := excess(count, length, limit, "image", source):
            raise DataError(
                f"{why}. They are listed in {self.told_as}; repair or remove them, or raise "
                "--config.data.bad_share",
                fault="I1",
            )
