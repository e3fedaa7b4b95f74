"""Time the training steps of the arms in the docs, and write them to results/times.json.

python tools/arm_times.py [SWEEP ...]

The arms of a sweep take turns in one process, so that their ratios hold on a machine that is
shared. A step includes the tokenizer; the images are noise. The time of an arm includes that of the
encoder it begins with. Without a SWEEP all are timed; the others keep what they have. Run it beside
the folder cifar10 that tools/cifar10_folders.py makes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from results import RESULTS, SWEEPS, TABLES, TIMES
from supmim import assemble
from supmim import config as config_lib
from supmim.benchmarks.tokenizer import training_step
from supmim.benchmarks.turns import Contestant, take_turns
from supmim.data import run_sources
from supmim.sweeps import members
from supmim.workdir import files

ROUNDS = 15
WITHOUT_EFFECT = {  # on the time of a step
    "seed", "total_epochs", "total_steps", "data.seed", "data.labels", "data.labelled_classes",
    "data.eval_classes", "eval.all_labels", "eval.evaluators", "init.model",
}  # fmt: skip


def main(sweeps: Sequence[str]) -> None:
    found = files.read_json(RESULTS / TIMES)
    for sweep in sweeps or sorted({asked.sweep for asked in TABLES.values() if asked.equal}):
        found[sweep] = times(sweep)
        files.write_json(RESULTS / TIMES, found)
        print(f"timed       {len(found[sweep])} arms of {sweep}", flush=True)


def times(sweep: str) -> dict[str, float]:
    """Return the time of an arm's training steps, in units of a step of the first arm."""
    wanted = {arm for asked in TABLES.values() if asked.sweep == sweep for arm in asked.arms}
    found = members.expand(SWEEPS / f"{sweep}.py", Path("nowhere"))
    arms = {arm: one for one in found for arm in one.arms if arm in wanted}
    made: dict[str, Contestant] = {}
    trainings = {}
    for arm, member in arms.items():
        trainings[arm] = []
        for one in filter(None, (member, members.begins_after(member, found))):
            config, source, _ = run_sources.load(one.config)
            values = config_lib.flatten(config).items()
            step = str([value for value in values if value[0] not in WITHOUT_EFFECT])
            with jax.set_mesh(mesh := assemble.mesh_of(config)):
                made[step] = made.get(step) or training_step(arm, config, mesh)
            trainings[arm].append((assemble.steps_of(config, source), made[step]))
    with jax.set_mesh(mesh):
        take_turns(list(made.values()), ROUNDS)
    unit = next(iter(made.values()))
    return {
        arm: sum(steps * step.ratio(unit) for steps, step in parts)
        for arm, parts in trainings.items()
    }


if __name__ == "__main__":
    main(sys.argv[1:])
