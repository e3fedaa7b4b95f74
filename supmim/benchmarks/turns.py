"""Programs that take turns in one run, so that their ratios hold on a machine that is shared."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

TURN_SECONDS = 0.3  # a turn repeats a fast program for this long


@dataclasses.dataclass
class Contestant:
    """One program that takes turns; `advance` runs it once and returns what to wait for."""

    name: str
    advance: Callable[[], Any]
    repeats: int = 1
    seconds: list[float] = dataclasses.field(default_factory=list)

    def turn(self) -> float:
        """Seconds of one run, of as many in a row as make up a turn."""
        began = time.perf_counter()
        for _ in range(self.repeats):
            last = self.advance()
        jax.block_until_ready(last)
        return (time.perf_counter() - began) / self.repeats

    def median(self) -> float:
        """Seconds of one run."""
        return statistics.median(self.seconds)

    def ratio(self, other: "Contestant") -> float:
        """Median of this one's seconds to the other's of the same round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / its for mine, its in pairs)


def take_turns(all_of_them: Sequence[Contestant], rounds: int) -> None:
    """A turn each to warm up, then `rounds` rounds in which every one has a turn."""
    for one in all_of_them:
        one.turn()
        one.repeats = max(1, round(TURN_SECONDS / one.turn()))
    for _ in range(rounds):
        for one in all_of_them:
            one.seconds.append(one.turn())
