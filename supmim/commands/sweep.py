"""`supmim sweep`: train many members from one file; a rerun trains only what is missing."""

import functools
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from absl.flags import FlagValues

from supmim.config import Config, catalogue
from supmim.errors import ConfigError, Interrupted, SupmimError, counted
from supmim.report import sweep as picture
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.sweeps import archive, local, members, slurm, table
from supmim.sweeps.members import Cost, Member
from supmim.workdir import files, lock
from supmim.workdir.writer import read_metrics

Keep = Callable[[Sequence[Member]], None]  # keeps results of those that have finished


def run(config: Config | None, flags: FlagValues) -> None:
    ACTIONS[flags.action](paths.path(flags.folder), flags)


def plan(folder: Path, flags: FlagValues) -> None:
    """Validate every member, print its cost and write its config; train nothing."""
    found = members_of(folder, flags)
    with lock.hold(folder, "--folder"):
        print(cost_table(found, write_costed(found, folder)))
    print(f"next: supmim sweep run --folder={folder}")


def train(folder: Path, flags: FlagValues) -> None:
    """Train the members that are not finished, after all have been checked."""
    engine = ENGINES.get(flags.engine)
    if engine is None:
        raise ConfigError(f"--engine={flags.engine} is not known; it takes {', '.join(ENGINES)}")
    found = members_of(folder, flags)
    with lock.hold(folder, "--folder"):
        if flags.sweep:
            write_costed(found, folder)
        keep = functools.partial(archive.keep, members=found)
        try:
            engine(archive.to_train(found), folder, flags, keep)
        finally:
            keep(found)


def status(folder: Path, flags: FlagValues) -> None:
    """Print the state of every member, and the last logged step of the unfinished ones."""
    found = members_of(folder, flags)
    states = {member: member.state for member in found}
    for member, state in states.items():
        logged = read_metrics(member.workdir / "metrics.jsonl") if state != "finished" else []
        progress = f"step {logged[-1]['step']:,}" if logged else ""
        print(f"{state:<16}{member.name:<48}{progress}".rstrip())
    counts = Counter(states.values())
    of_each = ", ".join(f"{n} {state}" for state, n in counts.items())
    print(f"{counted(len(found), 'member')}: {of_each}")


def results(folder: Path, flags: FlagValues) -> None:
    """Print the table; write it as table.csv and table.png."""
    found = members_of(folder, flags)
    rows = table.rows(found, flags.metric)
    print(table.format_table(rows, flags.metric, flags.versus))
    for member in found:
        if (state := member.state) != "finished":
            print(f"missing: {member.name} ({state})")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "table.csv", table.csv_text(rows))
    drawn = [
        (row.labels[0], row.values(flags.metric), table.format_mean(row, flags.metric))
        for row in rows
    ]
    picture.draw(folder / "table.png", drawn, flags.metric)
    print(f"see {folder / 'table.csv'} and {folder / 'table.png'}")


ACTIONS = {"plan": plan, "run": train, "status": status, "table": results}


def members_of(folder: Path, flags: FlagValues) -> list[Member]:
    if flags.sweep:
        path = Path(catalogue.resolved(flags.sweep, catalogue.FOLDER / "sweeps"))
        found = members.expand(path, folder)
    else:
        found = members.read(folder)
    return archive.attached(found, Path(flags.results)) if flags.results else found


def write_costed(found: Sequence[Member], folder: Path) -> list[Cost]:
    """Return the costs of the members; write them into the folder if all of them have one."""
    from supmim.sweeps import cost  # imports JAX: only after all checks that need none

    costs = cost.costs(found)
    members.freeze(found, folder)
    return costs


def train_here(left: Sequence[Member], folder: Path, flags: FlagValues, keep: Keep) -> None:
    """Train on this host; SupmimError if members fail, Interrupted if any can be continued."""
    if not flags.jobs.isdecimal() or not int(flags.jobs):
        raise ConfigError(f"--jobs={flags.jobs} is not a number of members")
    environment = dict(os.environ)
    if not on_bucket(folder):
        cache = folder.absolute() / "compiled"  # programs that one compiles, the next one loads
        cache.mkdir(exist_ok=True)
        cache.chmod(0o700)  # its files are executed
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    tell = functools.partial(print, flush=True)
    runner = local.Local(left, int(flags.jobs), environment, tell, keep)
    runner.run()
    again = f"continue them with: supmim sweep run --folder={folder}"
    failed = [m for m, code in runner.codes.items() if code and not members.was_interrupted(code)]
    if failed:
        lines = [f"  exit {runner.codes[m]}  {m.workdir / 'log.txt'}" for m in failed]
        lines += [f"  left out  {m.name}: {one.name} failed" for m, one in runner.orphans.items()]
        error = SupmimError("\n".join([f"{len(failed)} of {len(left)} failed:", *lines, again]))
        error.exit_code = runner.codes[failed[0]]
        raise error
    if missing := [member for member in left if runner.codes.get(member) != 0]:
        raise Interrupted(f"{len(missing)} of {counted(len(left), 'member')} not finished; {again}")
    print(f"all finished; see: supmim sweep table --folder={folder}")


def submit_to_slurm(left: Sequence[Member], folder: Path, flags: FlagValues, _: Keep) -> None:
    if on_bucket(folder):
        raise ConfigError(f"--engine=slurm needs a --folder on a disk for its files, not {folder}")
    idle = [m for m in left if m.state != "running" and not members.begins_after(m, left)]
    jobs = slurm.submit(idle, folder, flags.slurm) if idle else []
    for member, job in zip(idle, jobs, strict=True):
        print(f"{member.name:<48} job {job}")
    print(f"{len(jobs)} submitted; see: supmim sweep status --folder={folder}")
    if waiting := sum(members.begins_after(m, left) is not None for m in left):
        told = counted(waiting, "member waits", "members wait")
        print(f"{told} for others: give the same command again when those have finished")


def print_commands(left: Sequence[Member], folder: Path, flags: FlagValues, _: Keep) -> None:
    """Print one command per member, for xpk, SkyPilot, parallel and the like to run.

    Members that begin with the encoder of one that is not finished are comments.
    """
    for member in left:
        line = shlex.join(["supmim", "train", f"--workdir={member.workdir}"])
        first = members.begins_after(member, left)
        print(f"# after {first.name}: {line}" if first else line)


ENGINES = {"local": train_here, "slurm": submit_to_slurm, "commands": print_commands}


def cost_table(found: Sequence[Member], costs: Sequence[Cost]) -> str:
    """Return the table of costs, with the total of the unfinished members."""
    width = max(len("member"), *(len(name) for member in found for name in member.names))
    lines = [f"{'member':<{width}}{'params':>8}{'steps':>8}{'images':>8}{'FLOPs':>8}"]
    for member, cost in zip(found, costs, strict=True):
        numbers = (cost.parameters, cost.steps, cost.images, cost.flops)
        lines.append(f"{member.name:<{width}}" + "".join(f"{short(n):>8}" for n in numbers))
        lines += [f"  = {name}" for name in member.names[1:]]
    missing = [cost for member, cost in zip(found, costs, strict=True) if not member.results]
    lines.append(
        f"{counted(len(found), 'member')}, {len(missing)} missing: "
        f"{short(sum(c.images for c in missing))} "
        f"images, {short(sum(c.flops for c in missing))} FLOPs in training steps"
    )
    return "\n".join(lines)


def short(number: float) -> str:
    """Return three digits with a decimal prefix: 5.25k, 193k, 85.6M."""
    prefixes = iter("kMGTPEZY")
    prefix = ""
    while number >= 999.5:
        number, prefix = number / 1000, next(prefixes)
    return f"{number:.3g}{prefix}"
