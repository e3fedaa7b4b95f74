"""Time the training steps of every arm in the docs, and write them to results/times.json.

python tools/arm_times.py

The arms of a table take turns in one process, so that their ratios hold on a machine that is
shared. A step includes the tokenizer; the images are noise. Run it beside the folder cifar10 that
tools/cifar10_folders.py makes.
"""

from pathlib import Path

import jax

from results import RESULTS, SWEEPS, TABLES, TIMES, Table
from supmim import assemble
from supmim.benchmarks.tokenizer import training_step
from supmim.benchmarks.turns import take_turns
from supmim.data import run_sources
from supmim.sweeps import members
from supmim.workdir import files

ROUNDS = 15


def main() -> None:
    found = {}
    for name, asked in TABLES.items():
        if asked.equal:
            found[name] = times(asked)
            files.write_json(RESULTS / TIMES, found)
            print(f"timed       {len(found[name])} arms of {name}", flush=True)


def times(asked: Table) -> dict[str, float]:
    """Return the time of an arm's training steps, in units of that of `asked.equal`."""
    configs = {}
    for member in reversed(members.expand(SWEEPS / f"{asked.sweep}.py", Path("nowhere"))):
        configs |= {arm: member.config for arm in member.arms if arm in asked.arms}
    steps, made = {}, {}
    for arm, config in configs.items():
        config, source, _ = run_sources.load(config)
        steps[arm] = assemble.steps_of(config, source)
        with jax.set_mesh(mesh := assemble.mesh_of(config)):
            made[arm] = training_step(arm, config, mesh)
    with jax.set_mesh(mesh):
        take_turns(list(made.values()), ROUNDS)
    equal = made[asked.equal], steps[asked.equal]
    return {arm: one.ratio(equal[0]) * steps[arm] / equal[1] for arm, one in made.items()}


if __name__ == "__main__":
    main()
