"""Totals with their counts, so that padding, batches and hosts add up exactly."""

import functools
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average, Metric

Metrics = dict[str, Metric]


def mean(values: jax.Array, valid: jax.Array) -> Average:
    """Weighted mean of [B] values; a value that is not valid is not read, be it NaN."""
    return Average(total=jnp.where(valid > 0, values * valid, 0).sum(), count=valid.sum())


def scalar(value: jax.Array) -> Average:
    """One value of a step."""
    return Average(total=value, count=jnp.ones(()))


@flax.struct.dataclass
class Last(Metric):
    """The value of the last step, for what is a total already; value: ()."""

    value: jax.Array

    def merge(self, other: "Last") -> "Last":
        """Forgets what was before."""
        return other

    def compute(self) -> jax.Array:
        """The value."""
        return self.value


@flax.struct.dataclass
class Sum(Metric):
    """What adds up over parts; value: a tree of arrays."""

    value: Any

    def merge(self, other: "Sum") -> "Sum":
        """Adds leaf to leaf."""
        return Sum(jax.tree.map(jnp.add, self.value, other.value))

    def compute(self) -> Any:
        """The sums."""
        return self.value


@flax.struct.dataclass
class Psnr(Average):
    """Of a mean squared error of values in [0, 1], in dB."""

    def compute(self) -> jax.Array:
        """Of the mean of all errors, not the mean of PSNRs."""
        return -10 * jnp.log10(super().compute())


@flax.struct.dataclass
class CodeUsage(Metric):
    """Share of the codes that were seen at all; counts: [K]."""

    counts: jax.Array

    def merge(self, other: "CodeUsage") -> "CodeUsage":
        """Adds the counts."""
        return self.replace(counts=self.counts + other.counts)

    def compute(self) -> jax.Array:
        """In [0, 1]."""
        return (self.counts > 0).mean()


@flax.struct.dataclass
class CodePerplexity(CodeUsage):
    """exp(entropy) of the codes seen: how many of them carry the images."""

    def compute(self) -> jax.Array:
        """In [1, K]."""
        share = self.counts / self.counts.sum()
        return jnp.exp(-(share * jnp.log(jnp.where(share > 0, share, 1))).sum())


def code_metrics(target_ids: jax.Array, codebook_size: int, valid: jax.Array) -> Metrics:
    """Codebook usage and perplexity of [B, N] ids; padding is not counted."""
    weights = jnp.broadcast_to(valid[:, None], target_ids.shape)
    counts = jnp.zeros(codebook_size).at[target_ids].add(weights)
    return {"code_usage": CodeUsage(counts), "code_perplexity": CodePerplexity(counts)}


def merge(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of all parts together."""
    return {
        name: functools.reduce(lambda a, b: a.merge(b), [part[name] for part in parts])
        for name in parts[0]
    }


def summarize(steps: Sequence[Metrics]) -> dict[str, float]:
    """Fetches the metrics of several steps and merges each over the steps."""
    fetched = jax.device_get(list(steps))
    return {name: float(np.asarray(metric.compute())) for name, metric in merge(fetched).items()}
