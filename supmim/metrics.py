"""Totals with their counts, so that padding, batches and hosts add up exactly."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average, Metric
from flax import struct

Metrics = dict[str, Metric]


def mean(values: jax.Array, valid: jax.Array) -> Average:
    """Return the weighted mean of values [B]; invalid ones are ignored, even if they are NaN."""
    return average(jnp.where(valid > 0, values * valid, 0).sum(), valid.sum())


def scalar(value: jax.Array) -> Average:
    """Return one value of a step as a mean of count 1."""
    return average(value, jnp.ones(()))


def average(total: jax.Array, count: jax.Array) -> Average:
    """Return the mean total / count, both ()."""
    return Average(total=total, count=count)  # pyright: ignore[reportCallIssue]


@struct.dataclass
class Last(Metric):
    """The value () of the last step, for metrics that are running totals already."""

    value: jax.Array

    def merge(self, other: "Last") -> "Last":
        return other

    def compute(self) -> jax.Array:
        return self.value


@struct.dataclass
class Sum(Metric):
    """A tree of arrays that adds up over the parts of a batch."""

    value: Any

    def merge(self, other: "Sum") -> "Sum":
        return Sum(jax.tree.map(jnp.add, self.value, other.value))

    def compute(self) -> Any:
        return self.value


@struct.dataclass
class Psnr(Average):
    """The peak signal-to-noise ratio, in dB, of the mean error over all images in [0, 1]."""

    def compute(self) -> jax.Array:
        return -10 * jnp.log10(super().compute())


def psnr(error: Average) -> Metric:
    """Return the PSNR of a mean squared error."""
    return Psnr(error.total, error.count)  # pyright: ignore[reportCallIssue]


@struct.dataclass
class CodeUsage(Metric):
    """The share, in [0, 1], of the codes that were used at all. counts: [K]."""

    counts: jax.Array

    def merge(self, other: "CodeUsage") -> "CodeUsage":
        return type(self)(self.counts + other.counts)

    def compute(self) -> jax.Array:
        return (self.counts > 0).mean()


@struct.dataclass
class CodePerplexity(CodeUsage):
    """exp(entropy) of the use of the codes, in [1, K]: the effective number of codes."""

    def compute(self) -> jax.Array:
        share = self.counts / self.counts.sum()
        return jnp.exp(-(share * jnp.log(jnp.where(share > 0, share, 1))).sum())


def code_metrics(target_ids: jax.Array, codebook_size: int, valid: jax.Array) -> Metrics:
    """Return usage and perplexity of the codebook for ids [B, N]; padding is not counted."""
    weights = jnp.broadcast_to(valid[:, None], target_ids.shape)
    counts = jnp.zeros(codebook_size).at[target_ids].add(weights)
    return {"code_usage": CodeUsage(counts), "code_perplexity": CodePerplexity(counts)}


def merge(parts: Sequence[Metrics]) -> Metrics:
    """Return the metrics of all parts together."""
    return {
        name: functools.reduce(lambda a, b: a.merge(b), [part[name] for part in parts])
        for name in parts[0]
    }


def summarize(steps: Sequence[Metrics]) -> dict[str, float]:
    """Fetch the metrics of several steps, and merge each over the steps that measured it."""
    merged = merge(jax.device_get(list(steps)))
    known = {name: metric for name, metric in merged.items() if has_counted(metric)}
    return {name: float(np.asarray(metric.compute())) for name, metric in known.items()}


def has_counted(metric: Metric) -> bool:
    """Return whether anything was counted; a metric that no step measured has no mean."""
    if isinstance(metric, Average):
        return bool(np.any(metric.count))
    return not isinstance(metric, CodeUsage) or bool(np.any(metric.counts))


def each(stacked: Metrics, count: int) -> list[Metrics]:
    """Fetch the metrics of a call, and return those of each of its `count` steps."""
    fetched = jax.device_get(stacked)
    return [jax.tree.map(lambda x, i=i: x[i], fetched) for i in range(count)]


def ready(stacked: Metrics, count: int, names: Sequence[str]) -> dict[str, float]:
    """Return some metrics of the last step of a call, or nothing while it is being computed."""
    found = {name: stacked[name] for name in names if name in stacked}
    is_ready = all(leaf.is_ready() for leaf in jax.tree.leaves(found))
    return summarize(each(found, count)[-1:]) if found and is_ready else {}
