"""Timing of exact search by cosine similarity: ours, scikit-learn's brute force, NumPy's product
with argpartition, and the product alone. All take turns in one run, on unit rows of noise.

Shapes: Q queries, M bank entries, D width, k neighbours.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FlagValues
from jax.sharding import PartitionSpec
from sklearn.neighbors import NearestNeighbors

from supmim import assemble
from supmim.benchmarks.step import matmul
from supmim.benchmarks.turns import Contestant, take_turns
from supmim.config import Config
from supmim.errors import ConfigError, counted
from supmim.evaluators.lib import ranking

IMAGENET = (50_000, 1_281_167)  # queries and bank: evaluation and training images
DEFAULT_SIZES = {"gpu": IMAGENET, "tpu": IMAGENET, "cpu": (5_000, 50_000)}  # by platform
REFERENCE = 250_000_000  # most similarities that a reference on the host computes in a turn
CLOSE = 1e-5  # difference of cosines that rounding may put in another order
ROW = (
    "{search:29}{queries:9,}{seconds:9.3f}{queries_per_second:12,.0f}{time_to_ours:9.2f}"
    "{share_of_matmul:9.0%}"
)


def run(config: Config, flags: FlagValues) -> dict[str, Any]:
    """Return what `table` prints; width and memory are those of the config's encoder and eval."""
    mesh = assemble.mesh_of(config)
    platform, kind = mesh.devices.flat[0].platform, mesh.devices.flat[0].device_kind
    default = DEFAULT_SIZES[platform]
    count, length = number(flags, "queries", default[0]), number(flags, "bank", default[1])
    k = number(flags, "neighbours", 20)
    if k > length:
        raise ConfigError(
            f"--neighbours={k} is more than --bank={length} holds; set fewer, or a larger --bank"
        )
    queries, rows = noise(count, length, config.encoder.width)
    bank = ranking.Bank(rows, mesh, config.eval.similarity_mib)
    few = queries[: max(1, min(count, REFERENCE // length))]
    brute = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(rows)
    work = 2.0 * length * rows.shape[1]
    ours = Contestant("ours", lambda: bank.nearest(queries, k), work * count)
    theirs = work * len(few)
    searches = [
        ours,
        Contestant("scikit-learn brute force", lambda: brute.kneighbors(few), theirs),
        Contestant("NumPy product, argpartition", lambda: by_numpy(few, rows, k), theirs),
        Contestant("bare product, same blocks", lambda: product(bank, queries), work * count),
    ]
    ceiling = matmul("float32", mesh, mesh.axis_names, "highest")
    take_turns([ceiling, *searches], int(flags.rounds))
    return {
        "device": f"{mesh.size} x {kind}",
        "rounds": int(flags.rounds),
        "bank": length,
        "width": rows.shape[1],
        "neighbours": k,
        "share_of_imagenet": count * length / IMAGENET[0] / IMAGENET[1],
        "block": bank.block,
        "matmul_tflops": ceiling.rate() / 1e12,
        "agreement": agreement(bank, few, rows, k),
        "searches": [search_row(one, ours, work, ceiling.rate()) for one in searches],
    }


def number(flags: FlagValues, name: str, default: int) -> int:
    """Return the value of a flag; ConfigError unless it is a whole number from 1."""
    text = flags[name].value or str(default)
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"--{name}={text} is not a whole number from 1, e.g. --{name}={default}")
    return int(text)


def noise(count: int, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit rows [Q, D] and [M, D], float32."""
    rng = np.random.default_rng(0)
    queries, bank = (rng.standard_normal((n, width), np.float32) for n in (count, length))
    return ranking.unit(queries, "noise"), ranking.unit(bank, "noise")


def by_numpy(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Return the ids [Q, k] of the nearest rows, best first."""
    similarity = queries @ rows.T
    ids = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarity, ids, 1), axis=1)
    return np.take_along_axis(ids, order, 1)


def product(bank: ranking.Bank, queries: np.ndarray) -> jax.Array | None:
    """Compute all similarities, in the chunks of our search, and return those of the last block."""
    last = None
    for first in range(0, len(queries), ranking.QUERIES):
        chunk = queries[first : first + ranking.QUERIES]
        padded = np.pad(chunk, ((0, ranking.QUERIES - len(chunk)), (0, 0)))
        last = jax.block_until_ready(_product(padded, bank.rows, bank.mesh, bank.block))
    return last


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _product(queries, rows, mesh, block):
    """Return similarities [devices, Q, block] with each device's last block, after all others."""
    split = PartitionSpec(mesh.axis_names)

    def share(queries, rows):
        def step(_, part):
            return jnp.matmul(queries, part.T, precision="highest"), None

        nothing = jnp.zeros((len(queries), block))
        return jax.lax.scan(step, nothing, rows.reshape(-1, block, rows.shape[1]))[0][None]

    return jax.shard_map(
        share, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
    )(queries, rows)


def agreement(bank: ranking.Bank, queries: np.ndarray, rows: np.ndarray, k: int) -> float:
    """Return the share of neighbours [Q, k] that our search and NumPy's have in common.

    Neighbours that differ count too if their cosines are equal up to rounding.
    """
    similarity, ids = bank.nearest(queries, k)
    theirs = by_numpy(queries, rows, k)
    cosines = np.stack([rows[some] @ query for query, some in zip(queries, theirs, strict=True)])
    return float(((ids == theirs) | (np.abs(cosines - similarity) < CLOSE)).mean())


def search_row(one: Contestant, ours: Contestant, work: float, peak: float) -> dict[str, Any]:
    """Return the rates of a search; `time_to_ours` is relative to ours for as many queries."""
    queries, own = one.flops / work, ours.flops / work
    return {
        "search": one.name,
        "queries": round(queries),
        "seconds": one.median(),
        "queries_per_second": queries / one.median(),
        "time_to_ours": one.ratio(ours) * own / queries,
        "share_of_matmul": one.rate() / peak,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as text of at most 80 columns."""
    lines = [
        f"{result['device']}, median of {counted(result['rounds'], 'round')}, "
        f"{counted(result['neighbours'], 'neighbour')}, {result['width']} wide",
        f"bank of {result['bank']:,}, {result['block']:,} at once; "
        f"{result['share_of_imagenet']:.2%} of ImageNet's {IMAGENET[0]:,} x {IMAGENET[1]:,}",
        f"matmul ceiling of this run, float32: {result['matmul_tflops']:.3g} TFLOP/s",
        f"neighbours that ours and NumPy share: {result['agreement']:.4%}",
        "",
        f"{'search':29}{'queries':>9}{'s':>9}{'queries/s':>12}{'/ ours':>9}{'matmul':>9}",
    ]
    lines += [ROW.format(**one) for one in result["searches"]]
    legend = "/ ours: time divided by ours for as many queries; matmul: share of the ceiling"
    return "\n".join([*lines, "", legend])
