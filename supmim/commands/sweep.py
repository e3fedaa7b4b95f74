"""`supmim sweep`: many trainings from one file; a rerun does only what is missing."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl.flags import FlagValues

from supmim.config import Config
from supmim.errors import ConfigError, Interrupted, SupmimError
from supmim.report import sweep as picture
from supmim.sweeps import local, members, slurm, table
from supmim.sweeps.members import Member
from supmim.workdir import files, lock
from supmim.workdir.writer import read_metrics


def run(config: Config, flags: FlagValues) -> None:
    """The verb."""
    ACTIONS[flags.action](Path(flags.folder), flags)


# The actions.


def plan(folder: Path, flags: FlagValues) -> None:
    """Validates, costs and freezes every member; trains nothing."""
    found = members_of(folder, flags)
    with lock.hold(folder, "--folder"):
        print(cost_table(found, freeze(found, folder)))
    print(f"next: supmim sweep run --folder={folder}")


def train(folder: Path, flags: FlagValues) -> None:
    """Trains what is missing, once all members are known to be sound."""
    engine = ENGINES.get(flags.engine)
    if engine is None:
        raise ConfigError(f"--engine={flags.engine} is not known; it takes {', '.join(ENGINES)}")
    found = members_of(folder, flags)
    with lock.hold(folder, "--folder"):
        if flags.sweep:
            freeze(found, folder)
        engine([member for member in found if not member.results], folder, flags)


def status(folder: Path, flags: FlagValues) -> None:
    """Where every member stands."""
    found = members_of(folder, flags)
    states = {member: member.state for member in found}
    for member, state in states.items():
        print(f"{state:<16}{member.name:<48}{progress(member, state)}".rstrip())
    counts = Counter(states.values())
    print(f"{len(found)} members: " + ", ".join(f"{n} {state}" for state, n in counts.items()))


def results(folder: Path, flags: FlagValues) -> None:
    """The table, as text, as table.csv and as table.png."""
    found = members_of(folder, flags)
    rows = table.rows(found, flags.metric)
    print(table.text(rows, flags.metric))
    for member in found:
        if (state := member.state) != "finished":
            print(f"missing: {member.name} ({state})")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "table.csv", table.csv_text(rows))
    drawn = [
        (row.labels[0], row.values(flags.metric), table.shown(row, flags.metric)) for row in rows
    ]
    picture.draw(folder / "table.png", drawn, flags.metric)
    print(f"see {folder / 'table.csv'} and {folder / 'table.png'}")


ACTIONS = {"plan": plan, "run": train, "status": status, "table": results}


def members_of(folder: Path, flags: FlagValues) -> list[Member]:
    """Those of the sweep file, or else those that the folder holds."""
    return members.expand(Path(flags.sweep), folder) if flags.sweep else members.read(folder)


def freeze(found: Sequence[Member], folder: Path) -> list[Any]:
    """The costs of the members, which are written into the folder when all of them have one."""
    from supmim.sweeps import cost  # JAX: after all that can be told without it

    costs = cost.costs(found)
    members.freeze(found, folder)
    return costs


# Engines: what trains members that are not finished.


def here(left: Sequence[Member], folder: Path, flags: FlagValues) -> None:
    """On this host. Errors: the members that failed; Interrupted, if any can go on."""
    if not flags.jobs.isdigit() or not int(flags.jobs):
        raise ConfigError(f"--jobs={flags.jobs} is not a number of members")
    trained = local.Local(left, int(flags.jobs), environment(folder), log)
    trained.run()
    again = f"the same again goes on: supmim sweep run --folder={folder}"
    failed = [m for m, code in trained.codes.items() if code and not members.was_interrupted(code)]
    if failed:
        lines = [f"  exit {trained.codes[m]}  {m.workdir / 'log.txt'}" for m in failed]
        error = SupmimError("\n".join([f"{len(failed)} of {len(left)} failed:", *lines, again]))
        error.exit_code = trained.codes[failed[0]]
        raise error
    if missing := [member for member in left if trained.codes.get(member) != 0]:
        raise Interrupted(f"{len(missing)} of {len(left)} members are not finished; {again}")
    print(f"all finished; see: supmim sweep table --folder={folder}")


def on_slurm(left: Sequence[Member], folder: Path, flags: FlagValues) -> None:
    """As jobs in Slurm's queue."""
    idle = [member for member in left if member.state != "running"]
    jobs = slurm.submit(idle, folder, flags.slurm) if idle else []
    for member, job in zip(idle, jobs, strict=True):
        print(f"{member.name:<48} job {job}")
    print(f"{len(jobs)} submitted; see: supmim sweep status --folder={folder}")


def as_commands(left: Sequence[Member], folder: Path, flags: FlagValues) -> None:
    """One line per member, for whatever starts commands: xpk, SkyPilot, parallel."""
    lines = [shlex.join(["supmim", "train", f"--workdir={member.workdir}"]) for member in left]
    print("\n".join(lines))


ENGINES = {"local": here, "slurm": on_slurm, "commands": as_commands}


def environment(folder: Path) -> dict[str, str]:
    """The members': programs that one has compiled, the next one loads."""
    cache = folder.absolute() / "compiled"
    cache.mkdir(exist_ok=True)
    cache.chmod(0o700)  # what lies there is run
    return {"JAX_COMPILATION_CACHE_DIR": str(cache)} | os.environ


# What is printed.


def log(line: str) -> None:
    """A line that is seen at once, also through a pipe."""
    print(line, flush=True)


def progress(member: Member, state: str) -> str:
    """The last step that an unfinished member has logged."""
    rows = read_metrics(member.workdir / "metrics.jsonl") if state != "finished" else []
    return f"step {rows[-1]['step']:,}" if rows else ""


def cost_table(found: Sequence[Member], costs: Sequence[Any]) -> str:
    """What the members cost, and all that is missing together."""
    width = max(len("member"), *(len(name) for member in found for name in member.names))
    lines = [f"{'member':<{width}}{'params':>8}{'steps':>8}{'images':>8}{'FLOPs':>8}"]
    for member, cost in zip(found, costs, strict=True):
        numbers = (cost.parameters, cost.steps, cost.images, cost.flops)
        lines.append(f"{member.name:<{width}}" + "".join(f"{short(n):>8}" for n in numbers))
        lines += [f"  = {name}" for name in member.names[1:]]
    missing = [cost for member, cost in zip(found, costs, strict=True) if not member.results]
    lines.append(
        f"{len(found)} members, {len(missing)} missing: {short(sum(c.images for c in missing))} "
        f"images, {short(sum(c.flops for c in missing))} FLOPs in training steps"
    )
    return "\n".join(lines)


def short(number: float) -> str:
    """Three digits with a decimal prefix: 5.25k, 193k, 85.6M."""
    prefixes = iter("kMGTPEZY")
    prefix = ""
    while number >= 999.5:
        number, prefix = number / 1000, next(prefixes)
    return f"{number:.3g}{prefix}"
