"""Unreadable images: list and count them, and stop the run when there are too many."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from supmim.data.images import Bad
from supmim.data.sources.base import Source, printable
from supmim.errors import DataError
from supmim.workdir.files import read_json_lines, write_text


class BadRecords:
    """The file bad_records.jsonl of a workdir: source, index, name and fault of each bad record.

    Every host lists the records that it met itself, once each, and passes a line for each new one
    to `log`. Records from previous starts are neither listed again nor counted until they are met
    again: they may have been repaired.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self.path, self.log = path, log
        found = read_json_lines(path)
        if path.is_file():  # else the next line would be joined to one that a kill cut short
            write_text(path, "".join(json.dumps(line) + "\n" for line in found))
        self.listed = {(line.get("source"), line.get("name")) for line in found}
        self.met: set[tuple[str, int]] = set()

    def of(self, source: Source, limit: float) -> Callable[[Iterable[Bad]], None]:
        """Return a function that records bad records of a source.

        It raises DataError once they are more than the share `limit` of the source.
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
        if count > limit * length:
            raise DataError(
                f"{count} of the {length} images of {source} can't be read, more than "
                f"config.data.bad_share={limit:g} allows. They are listed in {self.path}; repair "
                "or remove them, or raise --config.data.bad_share"
            )
