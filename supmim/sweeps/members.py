"""The members of a sweep: their configs, expanded from a sweep file, and their states.

FOLDER/index.json      the names of every member, in order
FOLDER/members/NAME/   a workdir: config.json, log.txt, exit.json, and the files of its training
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from supmim import config as config_lib
from supmim.config import Config, pyfile
from supmim.errors import ConfigError, Interrupted, counted, suggestion
from supmim.grid import arm_of
from supmim.storage import paths
from supmim.workdir import files, lock

SCHEMA_VERSION = 1
MEMBER = "member:"  # begins config.init.model in a sweep file
MAX_NAME_LENGTH = 48  # a name stands in the rows of a table of 80 columns


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a sweep, with the names of all entries that resolve to its config.

    arms: the names without their seeds, see grid.seeds. archive: a file that holds the results if
    the member was finished elsewhere, see sweeps.archive.
    """

    names: tuple[str, ...]
    arms: tuple[str, ...]
    workdir: Path
    config: Config
    archive: Path | None = None

    @property
    def name(self) -> str:
        """The first name, which is also that of its folder."""
        return self.names[0]

    @property
    def results(self) -> dict[str, float]:
        """Its results; empty until it is finished."""
        found = files.read_results(self.workdir)
        if found or not self.archive or not self.archive.is_file():
            return found
        return files.read_object(self.archive, "delete it to train again")["results"]

    @property
    def state(self) -> str:
        """One of finished, running, waiting, interrupted, or failed with an exit code."""
        if self.results:
            return "finished"
        if lock.held(self.workdir):
            return "running"
        code = exit_code(self.workdir)
        if code is None:
            return "interrupted" if files.holds_run(self.workdir) else "waiting"
        return "interrupted" if was_interrupted(code) else f"failed, exit {code}"


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one member.

    parameters: trained ones, decoder included. steps, images: of all training. flops: of matrix
    products and convolutions in `tokenize` and `train_step` over all steps, without evaluation.
    """

    parameters: int
    steps: int
    images: int
    flops: float


def without_seeds(config: Config) -> Config:
    """Return the config at seed 0, which members that differ only in their seeds share."""
    return config_lib.replaced(config, {"seed": 0, "data.seed": 0})


def was_interrupted(code: int) -> bool:
    """Return whether a run with this exit code continues when it is started again."""
    return code == Interrupted.exit_code or code < 0  # negative: ended by a signal


def exit_code(member: Path) -> int | None:
    """Return the exit code of the last attempt in a workdir, negative for a signal."""
    path = member / "exit.json"
    try:
        return int(files.read_json(path)["exit_code"]) if path.is_file() else None
    except (ValueError, KeyError, TypeError):  # treated as an attempt that has not ended
        return None


def expand(path: Path, folder: Path) -> list[Member]:
    """Return the validated members of a sweep file; one ConfigError lists all that is wrong.

    The file has PRESET, the path of a preset relative to the file, with `:arg` if any, and
    get_sweep(), which returns name -> overrides. Entries that resolve to one config are one member.
    """
    with pyfile.faults_reported(path):
        module = pyfile.load(path)
        entries = module.get_sweep()
        preset = pyfile.preset(path.parent, module.PRESET)
    sound = isinstance(entries, dict) and all(
        isinstance(name, str) and isinstance(overrides, dict) for name, overrides in entries.items()
    )
    if not sound or not entries:
        raise ConfigError(f"{path}: get_sweep() must return a dict, name -> dict of overrides")
    merged: dict[Config, list[str]] = {}
    workdirs: dict[str, str] = {}
    problems = []
    for name, overrides in entries.items():
        try:
            config = resolve(name, preset, begun_from(name, overrides, workdirs))
            merged.setdefault(config, []).append(name)
            workdirs[name] = str(folder / "members" / merged[config][0])
        except ConfigError as error:
            problems.append(f"{name}: {error}")
    if problems:
        told = f"{len(problems)} of {counted(len(entries), 'member')}"
        raise ConfigError(f"{path}: {told} cannot be trained:\n" + "\n".join(problems))
    return [
        Member(tuple(names), tuple(map(arm_of, names)), folder / "members" / names[0], config)
        for config, names in merged.items()
    ]


def begun_from(name: str, overrides: dict[str, Any], workdirs: dict[str, str]) -> dict[str, Any]:
    """Return the overrides of an entry with the workdir of the member that its encoder comes from.

    init.model=member:NAME means the entry NAME or, where `seeds` made both, its member of the same
    seed. workdirs: those of the entries before this one.
    """
    kind, _, wanted = str(overrides.get("init.model", "")).partition(MEMBER)
    if kind or not wanted:
        return overrides
    for other in (wanted, name.replace(arm_of(name), wanted, 1)):
        if other in workdirs:
            return overrides | {"init.model": workdirs[other]}
    raise ConfigError(
        f"init.model={MEMBER}{wanted} names no entry before this one{suggestion(wanted, workdirs)}"
    )


def begins_after(member: Member, others: Iterable[Member]) -> Member | None:
    """Return the member whose encoder `member` begins with; None if there is none."""
    if not (model := member.config.init.model):
        return None
    place = paths.absolute(paths.path(model))
    return next((other for other in others if paths.absolute(other.workdir) == place), None)


def resolve(name: str, preset: ConfigDict, overrides: dict[str, Any]) -> Config:
    if not re.fullmatch(rf"\w[\w.,=+-]{{0,{MAX_NAME_LENGTH - 1}}}", name, re.ASCII):
        raise ConfigError(
            f"a name has up to {MAX_NAME_LENGTH} letters, digits and any of _ . , = + -, "
            "since it names a folder"
        )
    return config_lib.validate(config_lib.flatten(preset) | config_lib.flatten(overrides))


def freeze(members: Sequence[Member], folder: Path) -> None:
    """Write the index, and the config of every member that is not finished in its workdir.

    ConfigError, before anything is written, if a folder holds a run of another config.
    """
    for member in members:
        if lines := files.differences(member.workdir, member.config):
            raise ConfigError(
                f"{member.workdir} holds a run of another config:\n  "
                + "\n  ".join(lines)
                + "\nChoose another --folder, or delete this member's folder"
            )
    for member in members:
        member.workdir.mkdir(parents=True, exist_ok=True)
        if not files.read_results(member.workdir):
            text = config_lib.to_json(member.config)
            files.write_text(member.workdir / "config.json", text)
    index = {
        "schema_version": SCHEMA_VERSION,
        "members": [list(member.names) for member in members],
        "arms": [list(member.arms) for member in members],
    }
    files.write_json(folder / "index.json", index)


def read(folder: Path) -> list[Member]:
    """Return the members that were frozen in a folder; ConfigError if there are none."""
    path = folder / "index.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no sweep (no index.json); plan one with:\n"
            f"  supmim sweep plan --sweep=FILE.py --folder={folder}"
        )
    try:
        index = files.read_json(path)
        version, names = index["schema_version"], index["members"]
        entries = [
            tuple(map(tuple, both)) for both in zip(names, index.get("arms", names), strict=True)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); plan the sweep again") from error
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {version}, but this supmim reads {SCHEMA_VERSION}: use the "
            "supmim that wrote it, or plan the sweep in a new --folder"
        )
    workdirs = [folder / "members" / names[0] for names, _ in entries]
    return [
        Member(names, arms, workdir, files.read_config(workdir))
        for (names, arms), workdir in zip(entries, workdirs, strict=True)
    ]
