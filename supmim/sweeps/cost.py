"""The cost of members, from their configs and the length of their data; nothing is compiled."""

import functools
from collections.abc import Sequence

import jax

from supmim import assemble, optimizer, sharding, step
from supmim import config as config_lib
from supmim.config import Config
from supmim.data import pipeline, run_sources
from supmim.errors import SupmimError, counted
from supmim.planning import flops
from supmim.sweeps.members import Cost, Member, without_seeds
from supmim.tasks.registry import TASKS


def costs(members: Sequence[Member]) -> list[Cost]:
    """Return the cost of every member; one error lists all members that cannot be trained, and why.

    Programs are traced on the CPU, which leaves accelerators to the members.
    """
    jax.config.update("jax_platforms", "cpu")
    found, problems = [], []
    for member in members:
        try:
            found.append(cost(without_seeds(member.config)))
        except SupmimError as error:
            problems.append((member.name, error))
    if problems:
        lines = [f"{name}: {error}" for name, error in problems]
        told = f"{len(lines)} of {counted(len(members), 'member')}"
        raise type(problems[0][1])(f"{told} cannot be trained:\n" + "\n".join(lines))
    return found


@functools.cache
def cost(config: Config) -> Cost:
    """Return the cost of a config; raise what `train` would raise before its first step."""
    config, source, _ = run_sources.load(config)
    total_steps = assemble.steps_of(config, source)
    # This attention has the same FLOPs and can be traced on every device.
    portable = config_lib.replaced(config, {"encoder.attention": "xla"})
    task = TASKS[config.task].abstract(portable)
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, total_steps))
    rng = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(step.create_state, task=task, tx=tx), rng)
    batch = pipeline.abstract_batch(config, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    prepared = jax.eval_shape(
        lambda frozen, batch: task.prepare(task.tokenize(frozen, batch)), task.frozen, batch
    )
    train_step = functools.partial(step.train_step, task=task, tx=tx)
    flops_per_step = flops.count(task.tokenize, task.frozen, batch)
    taken = config.mim.step_share
    flops_per_step += flops.count(train_step, state, prepared, rng, taken=taken)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    images = total_steps * config.step_images
    return Cost(parameters, total_steps, images, total_steps * flops_per_step)
