"""Records without a readable image: listed, counted, and too many of them end the run."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from supmim.data.images import Bad
from supmim.data.sources.base import Source, printable
from supmim.errors import DataError


class BadRecords:
    """bad_records.jsonl of a workdir: source, index, name and fault of each record, once.

    Every host lists those that it met itself; `tell` is handed a line for each new one. Those of
    earlier starts are not listed again, but do not count: they may have been mended.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self.path, self.log = path, log
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = map(json.loads, text.splitlines())
        self.listed = {(line["source"], line["name"]) for line in found}
        self.met: set[tuple[str, int]] = set()

    def of(self, source: Source, limit: float) -> Callable[[Iterable[Bad]], None]:
        """What notes the bad records of a source; DataError above so large a share of it."""
        return functools.partial(self.add, source.name, len(source), limit)

    def add(self, source: str, length: int, limit: float, met: Iterable[Bad]) -> None:
        """Notes what a batch met."""
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
                f"config.data.bad_share={limit:g} allows. They are listed in {self.path}: mend or "
                "remove them, or allow more"
            )
