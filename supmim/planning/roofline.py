"""How long a step takes at least: what it computes, moves and sends, over what a chip can do."""

from collections.abc import Sequence
from typing import NamedTuple

from supmim.planning.hlo import Collective
from supmim.planning.topology import LINK_SHARE, Chip

MFUS = (0.4, 0.5, 0.6)


class Roofline(NamedTuple):
    """Seconds of one step on one chip, for each of the three alone, each at its full rate."""

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """If the other two hide behind the longest."""
        return max(self)

    @property
    def serial(self) -> float:
        """If nothing overlaps."""
        return sum(self)


def sent(collective: Collective) -> float:
    """Bytes that a chip sends for one collective, all its turns, by the ring algorithms.

    Of S bytes over n chips: all-reduce 2 S (n-1)/n, a permute S, the others S (n-1)/n.
    """
    share = (collective.devices - 1) / collective.devices if collective.devices else 1.0
    turns = {"all-reduce": 2 * share, "collective-permute": 1.0}
    return collective.bytes * collective.times * turns.get(collective.kind, share)


def estimate(
    chip: Chip, flops: float, traffic: float, collectives: Sequence[Collective]
) -> Roofline | None:
    """flops: executed per chip and step; traffic: bytes to and from the memory. None for a CPU."""
    if not chip.flops:
        return None
    network = sum(map(sent, collectives)) / (chip.link * LINK_SHARE)
    return Roofline(flops / chip.flops, traffic / chip.bandwidth, network)
