"""The workdir of a run: the first host writes for all, and an error there ends all hosts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clu import parameter_overview

from supmim.config import Config
from supmim.data.bad_records import BadRecords
from supmim.runtime import hosts
from supmim.storage.growing import Growing
from supmim.workdir import files, model


class Workdir:
    """The files of one run, shared by all of its hosts. growing: those that grow line by line."""

    def __init__(self, path: Path) -> None:
        self.path, self.growing = path, Growing(path)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self.growing.close()

    def bad_records(self, log: Callable[[str], None]) -> BadRecords:
        """Return this host's list of images that cannot be read."""
        name = hosts.own_file("bad_records.jsonl")
        return BadRecords(self.growing.file(name), log, self.path / name)

    def check_config(self, config: Config) -> None:
        """Raise ConfigError if the folder holds a run of another config."""
        hosts.on_first(lambda: files.check_config(self.path, config))

    def results(self) -> dict[str, float]:
        """Return the results of a finished run; empty if it is not finished."""
        return hosts.on_first(lambda: files.read_results(self.path))

    def begin_run(self, config: Config, origin: dict[str, Any], about: model.About) -> None:
        """Freeze the config, and what is known about the model; mark the run as not finished.

        origin: see files.begin_run.
        """

        def write() -> None:
            files.begin_run(self.path, config, origin)
            model.write(self.path, about)

        hosts.on_first(write)

    def write_parameters(self, params: Any) -> None:
        """Write parameters.txt: path, shape and PartitionSpec of every parameter."""

        def write() -> None:
            table = parameter_overview.get_parameter_overview(params, include_stats="sharding")
            files.write_text(self.path / "parameters.txt", table + "\n")

        hosts.on_first(write)
