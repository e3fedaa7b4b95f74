"""Timing of programs that take turns, so that their ratios hold on a machine that is shared."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

TURN_SECONDS = 0.3  # a turn repeats a fast program for this long


@dataclasses.dataclass
class Contestant:
    """A program that takes turns with others.

    advance: runs it once and returns what to wait for. images: number in one run. seconds: of one
        run, for each turn.
    """

    name: str
    advance: Callable[[], Any]
    flops: float = 0.0
    temp_bytes: int = 0
    images: int = 0
    repeats: int = 1
    seconds: list[float] = dataclasses.field(default_factory=list)

    def turn(self) -> float:
        """Run the program `repeats` times and return the seconds of one run."""
        last, began = None, time.perf_counter()
        for _ in range(self.repeats):
            last = self.advance()
        jax.block_until_ready(last)
        return (time.perf_counter() - began) / self.repeats

    def median(self) -> float:
        """Return the median seconds of one run."""
        return statistics.median(self.seconds)

    def rate(self) -> float:
        """Return the FLOPs per second of the median run."""
        return self.flops / self.median()

    def ratio(self, other: "Contestant") -> float:
        """Return the median, over rounds, of this program's seconds to those of the other."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / its for mine, its in pairs)


def take_turns(contestants: Sequence[Contestant], rounds: int) -> None:
    """Warm up each program with one turn, then time `rounds` rounds in which each has a turn."""
    for one in contestants:
        one.turn()
        one.repeats = max(1, round(TURN_SECONDS / one.turn()))
    for _ in range(rounds):
        for one in contestants:
            one.seconds.append(one.turn())
