"""The members of a sweep: from a sweep file to frozen configs, and what became of each.

FOLDER/index.json      the names of every member, in order
FOLDER/members/NAME/   its workdir: config.json, log.txt, exit.json, and what training leaves there
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from supmim import config as config_lib
from supmim.config import Config, pyfile
from supmim.errors import ConfigError, Interrupted
from supmim.workdir import files, lock

SCHEMA_VERSION = 1
LONGEST_NAME = 48  # it names a folder, and a row of a table of 80 columns


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a sweep; it has several names where several entries resolve to one config."""

    names: tuple[str, ...]
    workdir: Path
    config: Config

    @property
    def name(self) -> str:
        """The first name, which is its folder's."""
        return self.names[0]

    @property
    def results(self) -> dict[str, float]:
        """What it has reached; empty until it is finished."""
        return files.read_results(self.workdir)

    @property
    def state(self) -> str:
        """finished, running, waiting, interrupted, or failed with its exit code."""
        if self.results:
            return "finished"
        if lock.held(self.workdir):
            return "running"
        code = exit_code(self.workdir)
        if code is None:
            return "interrupted" if files.holds_run(self.workdir) else "waiting"
        return "interrupted" if was_interrupted(code) else f"failed, exit {code}"


def without_seeds(config: Config) -> Config:
    """The same config at seed 0: what members that differ in their seeds have in common."""
    return config_lib.replaced(config, {"seed": 0, "data.seed": 0})


def was_interrupted(code: int) -> bool:
    """Whether a run that ended so goes on when it is started again: exit 75 or a signal."""
    return code == Interrupted.exit_code or code < 0


def exit_code(member: Path) -> int | None:
    """The exit code that the last attempt in a workdir left, negative for a signal."""
    path = member / "exit.json"
    return json.loads(path.read_text(encoding="utf-8"))["exit_code"] if path.is_file() else None


def expand(path: Path, folder: Path) -> list[Member]:
    """The members of a sweep file, validated; one ConfigError lists what is wrong with any.

    The file has PRESET, a preset's path from the file's own folder (with `:arg`, if any), and
    get_sweep(), which returns name -> overrides. Entries that resolve to one config are one member.
    """
    with pyfile.told(path):
        module = pyfile.load(path)
        entries = module.get_sweep()
        preset = base_config(path.parent, module.PRESET)
    check_entries(path, entries)
    merged: dict[Config, list[str]] = {}
    problems = []
    for name, overrides in entries.items():
        try:
            merged.setdefault(resolve(name, preset, overrides), []).append(name)
        except ConfigError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ConfigError(f"{path}, {len(problems)} of {len(entries)}:\n" + "\n".join(problems))
    return [
        Member(tuple(names), folder / "members" / names[0], config)
        for config, names in merged.items()
    ]


def check_entries(path: Path, entries: Any) -> None:
    """ConfigError unless get_sweep() returned names -> overrides."""
    sound = isinstance(entries, dict) and all(
        isinstance(name, str) and isinstance(overrides, dict) for name, overrides in entries.items()
    )
    if not sound or not entries:
        raise ConfigError(f"{path}: get_sweep() must return a dict, name -> dict of overrides")


def base_config(folder: Path, preset: str) -> ConfigDict:
    """The config of a preset, `FILE.py[:arg]` as seen from `folder`."""
    file, _, arg = preset.partition(":")
    path = folder / file
    with pyfile.told(path):
        config = pyfile.load(path).get_config(*[arg] if arg else [])
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config() of {path} returned {type(config).__name__}, no config")
    return config


def resolve(name: str, preset: ConfigDict, overrides: dict[str, Any]) -> Config:
    """The validated config of one entry."""
    if not re.fullmatch(rf"\w[\w.,=+-]{{0,{LONGEST_NAME - 1}}}", name, re.ASCII):
        raise ConfigError(
            f"a name has up to {LONGEST_NAME} letters, digits and any of _ . , = + -, "
            "since it names a folder"
        )
    return config_lib.validate(config_lib.flatten(preset) | config_lib.flatten(overrides))


def freeze(members: list[Member], folder: Path) -> None:
    """Writes the index and the config of every member that is not finished.

    ConfigError, before anything is written, if a folder holds a run of another config.
    """
    for member in members:
        if files.holds_run(member.workdir):
            stored = files.read_config(member.workdir)
            if lines := config_lib.resume_differences(stored, member.config):
                raise ConfigError(
                    f"{member.workdir} holds a run of another config:\n  "
                    + "\n  ".join(lines)
                    + "\nChoose another --folder, or delete this member's folder"
                )
    for member in members:
        member.workdir.mkdir(parents=True, exist_ok=True)
        if not member.results:
            text = config_lib.to_json(member.config)
            files.write_text(member.workdir / "config.json", text)
    index = {"schema_version": SCHEMA_VERSION, "members": [list(m.names) for m in members]}
    files.write_json(folder / "index.json", index)


def read(folder: Path) -> list[Member]:
    """The members that were frozen in a folder; ConfigError if there are none."""
    path = folder / "index.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no sweep (no index.json); plan one with:\n"
            f"  supmim sweep plan --sweep=FILE.py --folder={folder}"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version, entries = index["schema_version"], [tuple(names) for names in index["members"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); plan the sweep again") from error
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{path} has schema version {version}, this supmim {SCHEMA_VERSION}")
    workdirs = [folder / "members" / names[0] for names in entries]
    return [
        Member(names, path, files.read_config(path))
        for names, path in zip(entries, workdirs, strict=True)
    ]
