"""What a member will cost, from its config and the length of its data; nothing is compiled."""

import dataclasses
import functools

import jax

from supmim import assemble, optimizer, sharding, step
from supmim import config as config_lib
from supmim.config import Config
from supmim.data import pipeline
from supmim.errors import SupmimError
from supmim.planning import flops
from supmim.sweeps.members import Member, without_seeds
from supmim.tasks.registry import TASKS


@dataclasses.dataclass(frozen=True)
class Cost:
    """parameters: trained ones, decoder included; images: seen in training; flops: of all steps.

    FLOPs are those of matrix products and convolutions in `tokenize` and `train_step`; evaluation
    is not counted.
    """

    parameters: int
    steps: int
    images: int
    flops: float


def costs(members: list[Member]) -> list[Cost]:
    """The cost of every member; one error lists the members that cannot be trained, and why.

    It traces on the CPU, so that accelerators are left to the members.
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
        raise type(problems[0][1])(f"{len(lines)} of {len(members)}:\n" + "\n".join(lines))
    return found


@functools.cache
def cost(config: Config) -> Cost:
    """Errors: those of `train` before its first step."""
    config, source, _ = assemble.load_sources(config)
    total_steps = assemble.steps_of(config, source)
    task = TASKS[config.task].abstract(anywhere(config))
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, total_steps))
    rng = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(step.create_state, task=task, tx=tx), rng)
    batch = pipeline.abstract_batch(config, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    prepared = jax.eval_shape(
        lambda frozen, batch: task.prepare(task.tokenize(frozen, batch)), task.frozen, batch
    )
    train_step = functools.partial(step.train_step, task=task, tx=tx)
    of_step = flops.count(task.tokenize, task.frozen, batch) + flops.count(
        train_step, state, prepared, rng
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Cost(parameters, total_steps, total_steps * config.batch_size, total_steps * of_step)


def anywhere(config: Config) -> Config:
    """The config with the attention that every device can trace; its products are the same."""
    return config_lib.replaced(config, {"encoder.attention": "xla"})
