"""Times exact search by cosine: ours, scikit-learn's brute force, and NumPy's product with
argpartition, beside the bare product. All take turns in the same run, on unit rows of noise.

Shapes: Q queries, M bank entries, D width, k neighbours.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FlagValues
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.neighbors import NearestNeighbors

from supmim import assemble
from supmim.benchmarks.step import SIDE, Step
from supmim.benchmarks.turns import take_turns
from supmim.config import Config
from supmim.errors import ConfigError
from supmim.evaluators.lib import ranking

IMAGENET = (50_000, 1_281_167)  # images that are evaluated, and searched
FITTING = {"gpu": IMAGENET, "tpu": IMAGENET, "cpu": (5_000, 50_000)}  # by platform
REFERENCE = 250_000_000  # similarities that a reference on the host computes in a turn, at most
CLOSE = 1e-5  # cosines that rounding may put in another order


def run(config: Config, flags: FlagValues) -> dict[str, Any]:
    """Everything that is printed; width of the encoder, memory of config.eval.similarity_mib."""
    mesh = assemble.mesh_of(config)
    default = FITTING[mesh.devices.flat[0].platform]
    count, length = number(flags, "queries", default[0]), number(flags, "bank", default[1])
    k = number(flags, "neighbours", 20)
    if k > length:
        raise ConfigError(f"--neighbours={k} are more than --bank={length} holds")
    queries, rows = noise(count, length, config.encoder.width)
    bank = ranking.Bank(rows, mesh, config.eval.similarity_mib)
    few = queries[: max(1, min(count, REFERENCE // length))]
    brute = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(rows)
    work = 2.0 * length * rows.shape[1]
    contestants = [
        Step("ours", lambda: bank.nearest(queries, k), flops=work * count),
        Step("scikit-learn brute force", lambda: brute.kneighbors(few), flops=work * len(few)),
        Step("NumPy product, argpartition", lambda: by_numpy(few, rows, k), flops=work * len(few)),
        Step("bare product, same blocks", lambda: product(bank, queries), flops=work * count),
    ]
    ceiling = float32_ceiling(mesh)
    take_turns([ceiling, *contestants], int(flags.rounds))
    peak = ceiling.flops / ceiling.median()
    return {
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "rounds": int(flags.rounds), "bank": length, "width": rows.shape[1], "neighbours": k,
        "share_of_imagenet": count * length / IMAGENET[0] / IMAGENET[1],
        "block": bank.block, "matmul_tflops": peak / 1e12,
        "agreement": agreement(bank, few, rows, k),
        "searches": [row(one, contestants[0], work, peak) for one in contestants],
    }  # fmt: skip


def number(flags: FlagValues, name: str, default: int) -> int:
    """A flag that is a number from 1; ConfigError if it is none."""
    text = flags[name].value or str(default)
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"--{name}={text} is no whole number from 1, e.g. --{name}={default}")
    return int(text)


def noise(count: int, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows [Q, D] and [M, D], float32."""
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal((n, width), np.float32) for n in (count, length))
    return tuple(ranking.unit(rows, "noise") for rows in drawn)


def by_numpy(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Ids [Q, k] of the nearest, best first."""
    similarity = queries @ rows.T
    ids = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarity, ids, 1), axis=1)
    return np.take_along_axis(ids, order, 1)


def product(bank: ranking.Bank, queries: np.ndarray) -> jax.Array:
    """All similarities, in our chunks of queries, and nothing kept of them."""
    for first in range(0, len(queries), ranking.QUERIES):
        chunk = queries[first : first + ranking.QUERIES]
        padded = np.pad(chunk, ((0, ranking.QUERIES - len(chunk)), (0, 0)))
        last = jax.block_until_ready(_product(padded, bank.rows, bank.mesh, bank.block))
    return last


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _product(queries, rows, mesh, block):
    """[devices, Q, block]: of each device's last block, after all before it."""
    spread = PartitionSpec(mesh.axis_names)

    def share(queries, rows):
        def step(_, part):
            return jnp.matmul(queries, part.T, precision="highest"), None

        nothing = jnp.zeros((len(queries), block))
        return jax.lax.scan(step, nothing, rows.reshape(-1, block, rows.shape[1]))[0][None]

    return jax.shard_map(
        share, mesh=mesh, in_specs=(PartitionSpec(), spread), out_specs=spread, check_vma=False
    )(queries, rows)


def float32_ceiling(mesh: jax.sharding.Mesh) -> Step:
    """One large square product per device, in what search computes in."""
    side = SIDE[mesh.devices.flat[0].platform]
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    left = jax.device_put(jnp.ones((mesh.size * side, side)), where)
    right = jax.device_put(jnp.ones((side, side)), NamedSharding(mesh, PartitionSpec()))
    multiply = jax.jit(functools.partial(jnp.matmul, precision="highest"), out_shardings=where)
    return Step("matmul", lambda: multiply(left, right), flops=2.0 * mesh.size * side**3)


def agreement(bank: ranking.Bank, queries: np.ndarray, rows: np.ndarray, k: int) -> float:
    """Share of ours and NumPy's neighbours [Q, k] that are the same, or as near to a rounding."""
    similarity, ids = bank.nearest(queries, k)
    theirs = by_numpy(queries, rows, k)
    cosines = np.stack([rows[some] @ query for query, some in zip(queries, theirs, strict=True)])
    return float(((ids == theirs) | (np.abs(cosines - similarity) < CLOSE)).mean())


def row(one: Step, ours: Step, work: float, peak: float) -> dict[str, Any]:
    """Rates of a search; `time_to_ours` is of the same number of queries."""
    queries, own = one.flops / work, ours.flops / work
    return {
        "search": one.name,
        "queries": round(queries),
        "seconds": one.median(),
        "queries_per_second": queries / one.median(),
        "time_to_ours": one.ratio(ours) * own / queries,
        "share_of_matmul": one.flops / one.median() / peak,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text of at most 80 columns."""
    lines = [
        f"{result['device']}, median of {result['rounds']} rounds, "
        f"{result['neighbours']} neighbours, {result['width']} wide",
        f"bank of {result['bank']:,}, {result['block']:,} at once; "
        f"{result['share_of_imagenet']:.2%} of {IMAGENET[0]:,} x {IMAGENET[1]:,}",
        f"matmul ceiling of this run, float32: {result['matmul_tflops']:.3g} TFLOP/s",
        f"neighbours that ours and NumPy share: {result['agreement']:.4%}",
        "",
        f"{'search':29}{'queries':>9}{'s':>9}{'queries/s':>12}{'/ ours':>9}{'matmul':>9}",
    ]
    for one in result["searches"]:
        lines.append(
            f"{one['search']:29}{one['queries']:9,}{one['seconds']:9.3f}"
            f"{one['queries_per_second']:12,.0f}{one['time_to_ours']:9.2f}"
            f"{one['share_of_matmul']:9.0%}"
        )
    return "\n".join([
        *lines, "",
        "/ ours: time of as many queries to ours; matmul: share of the ceiling.",
    ])  # fmt: skip
