"""The mesh, and the placement of every array on it."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from supmim.config import Config
from supmim.errors import ConfigError, counted

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the batch is split over both

# The first match wins; all else is replicated. Paths of moments and averages have the same ends.
RULES = (
    (r"(query|key|value)/kernel$", ("fsdp", "tensor", None)),  # [D, heads, head]
    (r"(query|key|value)/bias$", ("tensor", None)),  # [heads, head]
    (r"attention/out/kernel$", ("tensor", None, "fsdp")),  # [heads, head, D]
    (r"mlp/up/kernel$", ("fsdp", "tensor")),  # [D, 4D]
    (r"mlp/up/bias$", ("tensor",)),  # [4D]
    (r"mlp/down/kernel$", ("tensor", "fsdp")),  # [4D, D]
    (r"embedding/kernel$", (None, "fsdp")),  # [F, D]
    (r"(head|representation)/kernel$", ("fsdp", "tensor")),  # [D, classes, codes or rep_size]
    (r"(head|representation)/bias$", ("tensor",)),  # [classes, codes or rep_size]
    (r"positions$", (None, "fsdp")),  # [N, D], learned
)


def make_mesh(data: int, fsdp: int, tensor: int, devices: list | None = None) -> Mesh:
    """Return a mesh over all devices; an axis of -1 takes the rest. ConfigError if they do not fit.

    Neighbours along `tensor` and `fsdp` are near each other. `data` is outermost: it alone crosses
    the slow links between slices of TPUs, and between hosts where the others fit into one.
    """
    devices = jax.devices() if devices is None else devices
    sizes: dict[str, int] = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1 or known < 1 or len(devices) % known:
        raise ConfigError(
            f"{asked} does not fit {counted(len(devices), 'device')}: at most one axis may be "
            "-1, and the product of the others must divide the number of devices"
        )
    for axis in rest:
        sizes[axis] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(
            f"{asked} uses {known} of {counted(len(devices), 'device')}; set one axis to -1 for "
            "the rest"
        )
    return Mesh(arrange(sizes, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def arrange(sizes: dict[str, int], devices: list) -> np.ndarray:
    """Return the devices as an array [data, fsdp, tensor], arranged by the links between them."""
    shape = tuple(sizes.values())
    if devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(shape, devices)  # in order: host after host
    # TPUs that are only described are one slice; they have no slice number.
    slices = len({device.slice_index for device in devices if hasattr(device, "slice_index")}) or 1
    if sizes["data"] % slices:
        raise ConfigError(
            f"mesh.data={sizes['data']} does not divide over {slices} slices of TPUs, and no other "
            f"axis may cross the slow links between them; set --config.mesh.data={slices} or a "
            "multiple"
        )
    # A mesh axis of 16 chips must split a side of an 8 x 8 x 8 pod.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, **split)
    inside = (sizes["data"] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, **split)


def check_divides(name: str, batch_size: int, mesh: Mesh, parts: int = 1, group: int = 1) -> None:
    """Raise ConfigError unless each part of a batch splits evenly over the batch axes.

    group: Config.row_group, which must divide the rows of a part on each device.
    """
    shards = batch_shards(mesh) * parts * group
    if batch_size % shards:
        below = batch_size // shards * shards
        nearest = " or ".join(str(n) for n in (below, below + shards) if n)
        raise ConfigError(
            f"config.{name}={batch_size} does not divide over "
            + counted(batch_shards(mesh), "device")
            + (f" in {parts} parts" if parts > 1 else "")
            + (f" of whole groups of {group}, for mim.row_share" if group > 1 else "")
            + f"; nearest: {nearest}"
        )


def check_batches(config: Config, mesh: Mesh) -> None:
    """Raise ConfigError unless the images of a step, of either kind, split evenly over the mesh."""
    parts = config.accumulation_steps
    check_divides("batch_size", config.batch_size, mesh, parts, config.row_group)
    check_divides("data.unlabelled_batch", config.unlabelled_rows, mesh, parts)


def batch_shards(mesh: Mesh) -> int:
    """Return the number of devices that a batch is split over."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """Return the sharding that splits the leading axis over `data` and `fsdp`.

    stacked: split the second axis, of batches of several steps.
    """
    return NamedSharding(mesh, PartitionSpec(None, BATCH) if stacked else PartitionSpec(BATCH))


class Group(NamedTuple):
    """Processes that share rows of a batch, and all rows that they hold, in order."""

    processes: list[int]
    rows: np.ndarray


def batch_groups(batch_size: int, mesh: Mesh) -> list[Group]:
    """Return all processes of a run, in order, in groups that share no row of a batch."""
    placement = batch_sharding(mesh).devices_indices_map((batch_size,))
    return grouped((at.process_index, range(batch_size)[rows]) for at, (rows,) in placement.items())


def grouped(held: Iterable[tuple[int, Iterable[int]]]) -> list[Group]:
    """Return the groups of (process, rows of one of its devices)."""
    groups: list[tuple[set[int], set[int]]] = []
    for process, own in held:
        processes, rows = {process}, set(own)
        for group in [g for g in groups if g[0] & processes or g[1] & rows]:
            processes, rows = processes | group[0], rows | group[1]
            groups.remove(group)
        groups.append((processes, rows))
    return sorted((Group(sorted(p), np.array(sorted(r))) for p, r in groups), key=lambda g: g[0])


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def path_name(path: tuple) -> str:
    """Return a pytree path as `encoder/blocks/block_0/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return the spec of the first rule that matches, without axes that do not divide their dim."""
    for pattern, axes in RULES:
        if re.search(pattern, name):
            axes = (None,) * (len(shape) - len(axes)) + axes  # scan stacks blocks in front
            sizes = zip(axes, shape, strict=True)
            fits = [axis and axis if axis and dim % mesh.shape[axis] == 0 else None
                    for axis, dim in sizes]  # fmt: skip
            return PartitionSpec(*fits)
    return PartitionSpec()


def state_sharding(abstract_state: Any, mesh: Mesh, fsdp_splits: str = "state") -> Any:
    """Return a NamedSharding for each leaf of a tree of shapes, by its path.

    fsdp_splits: the whole `state`, or the `optimizer` state alone (ZeRO-1, arXiv 1910.02054).
    """

    def place(path, leaf):
        name = path_name(path)
        spec = partition_spec(name, leaf.shape, mesh)
        if fsdp_splits == "optimizer" and not name.startswith("opt_state"):
            spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def of(tree: Any) -> Any:
    """Return the sharding of each leaf of a tree of arrays or placed shapes."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keep x [B, ...] split over the batch axes; outside a mesh or in a shard_map, return x itself.

    Without it the partitioner replicates the activations of a scan over sharded parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH) <= set(mesh.axis_names) - set(mesh.manual_axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH))
