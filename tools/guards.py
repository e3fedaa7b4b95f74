"""What the guards of a run cost: in the program, by its compiler's count, and on the host.

    python tools/guards.py --config=digits

In the program: skipping of updates that are not finite, and counting of spikes. On the host, at
each call of the program: the stop signal, faults on purpose, the watchdog, and the check of the
last call's gradients; the median over 2,000 calls of one step, without any wait for devices.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from supmim import assemble, metrics
from supmim import config as config_lib
from supmim.config import catalogue, pyfile
from supmim.planning import program
from supmim.runtime import faults, numerics
from supmim.runtime.preemption import StopSignal
from supmim.runtime.watchdog import Watchdog
from supmim.updates import spikes

CALLS = 2_000


class Bare(NamedTuple):
    """The state of a transformation without a guard, with what the step reads of guards."""

    inner_state: Any
    notfinite_count: int = 0
    total_notfinite: int = 0
    spikes: int = 0
    left_out: bool = False


def bare(inner: optax.GradientTransformation) -> Any:
    """Return a transformation without a guard, in place of one with it."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Bare:
        return Bare(inner.init(params))

    def update(updates: Any, state: Bare, params: Any = None, **extra: Any) -> Any:
        extra.pop("loss", None)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        zero, none = jnp.zeros((), jnp.int32), jnp.array(False)
        return updates, Bare(inner_state, zero, zero, zero, none)

    return optax.GradientTransformationExtraArgs(init, update)


def cost(config: config_lib.Config) -> dict[str, float]:
    """Return FLOPs and bytes of the compiled train steps, on one device."""
    mesh = assemble.mesh_of(config)
    with jax.set_mesh(mesh):
        built = program.build(config, mesh)
        counted: Any = built.train_steps.lower(*built.arguments).compile().cost_analysis()
    return {"FLOPs": counted["flops"], "bytes": counted["bytes accessed"]}


def host_seconds() -> dict[str, float]:
    """Return the median time of each guard at one call."""
    count = jnp.zeros(1, jnp.int32)
    totals: metrics.Metrics = {
        "skipped_in_a_row": metrics.Last(count), "spikes": metrics.Last(count),
    }  # fmt: skip
    index = jnp.zeros((1, 64), jnp.int32)
    watch = numerics.NumericsWatch(Path(), lambda step: {})
    parts: dict[str, list[float]] = {}

    def timed(name: str, work: Any) -> None:
        began = time.perf_counter()
        work()
        parts.setdefault(name, []).append(time.perf_counter() - began)

    with StopSignal() as stop, Watchdog(10.0, lambda: "", print) as watchdog:
        for step in range(1, CALLS + 1):
            steps = range(step, step + 1)
            timed("stop signal", stop.asked)
            timed("faults on purpose", lambda steps=steps: faults.reached("step", steps))
            timed("watchdog", lambda step=step: watchdog.step_begins(step))
            timed("gradients", lambda steps=steps: watch.add(steps, index, totals))
            timed("watchdog, done", lambda step=step: watchdog.step_done(step))
    return {name: statistics.median(seconds) for name, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits")
    preset = pyfile.preset(Path(), catalogue.resolved(parser.parse_args().config))
    config = config_lib.validate(preset)
    classes = config.classifier.num_classes or 10
    config = config_lib.replaced(config, {"mesh.data": 1, "classifier.num_classes": classes})
    with_guards = cost(config)
    with mock.patch.object(spikes, "watched", lambda inner, *_: bare(bare(inner))):
        without = cost(config)
    for name, guarded in with_guards.items():
        print(
            f"{name:<20}{without[name]:>14,.0f} -> {guarded:>14,.0f}: {guarded / without[name]:.4f}"
        )
    seconds = host_seconds()
    for name, each in (seconds | {"all on the host": sum(seconds.values())}).items():
        print(f"{name:<20}{1e6 * each:>10.1f} us a call")


if __name__ == "__main__":
    main()
