"""The least time that a step takes: its work divided by the rates of the chip."""

from collections.abc import Sequence
from typing import NamedTuple

from supmim.planning.hlo import Collective
from supmim.planning.topology import LINK_SHARE, Chip

MFUS = (0.4, 0.5, 0.6)


class Roofline(NamedTuple):
    """Seconds that one step takes on one chip for each of the three alone, at its full rate."""

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """Seconds of a step in which the three overlap completely."""
        return max(self)

    @property
    def serial(self) -> float:
        """Seconds of a step in which nothing overlaps."""
        return sum(self)


def sent(collective: Collective) -> float:
    """Return the bytes that a chip sends for all runs of a collective by the ring algorithms.

    For S bytes on n chips: all-reduce 2 S (n-1)/n, permute S, the others S (n-1)/n.
    """
    share = (collective.devices - 1) / collective.devices if collective.devices else 1.0
    shares = {"all-reduce": 2 * share, "collective-permute": 1.0}
    return collective.bytes * collective.times * shares.get(collective.kind, share)


def estimate(
    chip: Chip, flops: float, traffic: float, collectives: Sequence[Collective]
) -> Roofline | None:
    """Return the roofline of a step; None for a CPU.

    flops: executed on one chip. traffic: bytes that one chip reads from and writes to its memory.
    """
    if not chip.flops:
        return None
    network = sum(map(sent, collectives)) / (chip.link * LINK_SHARE)
    return Roofline(flops / chip.flops, traffic / chip.bandwidth, network)
