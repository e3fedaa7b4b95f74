"""The devices that JAX uses, and those that it should use."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from supmim.errors import ConfigError, DeviceError
from supmim.runtime import accelerator

# Programs of the CPU compile in 0.6 x the time. Only for jaxlib 0.10: others end the process.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
INSTALL = {"gpu": "pip install -e '.[cuda]'", "tpu": "pip install -e '.[tpu]'"}


def prepare(fake_devices: str, deterministic: bool, quick: bool = False) -> None:
    """Set up pretend CPU devices and the compiler; call it before JAX finds its devices.

    deterministic: choose kernels of a GPU that always add in the same order. quick: on a CPU,
    compile in less time, see also compiling_quickly. ConfigError if fake_devices is neither empty
    nor a number from 1 to 999.
    """
    if fake_devices:
        if not re.fullmatch("[1-9][0-9]{0,2}", fake_devices):
            raise ConfigError(f"--fake-devices={fake_devices} is not a number from 1 to 999")
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(fake_devices))
    known = metadata.version("jaxlib").startswith("0.10.") and not accelerator.visible()
    added = ["--xla_gpu_deterministic_ops=true"] * deterministic + [QUICK] * (quick and known)
    if added:
        users = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = " ".join([users, *added]).strip()


@contextlib.contextmanager
def compiling_quickly(enabled: bool) -> Iterator[None]:
    """If enabled, skip most compiler optimisations inside; for programs that run rarely."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", enabled or before)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def on_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Return whether programs of a mesh run on CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def initialised(init: Callable[[jax.Array], Any], rng: jax.Array, where: Any) -> Any:
    """Return init(rng), placed on devices as `where`, a tree of shardings, says.

    On a CPU, the compiler's optimisations are skipped, since they take longer than all else.
    """
    with compiling_quickly(on_cpu(jax.tree.leaves(where)[0].mesh)):
        return jax.jit(init, out_shardings=where)(rng)


def check(root: Path = Path("/")) -> list[Any]:
    """Return JAX's devices. DeviceError if there are none, or if an accelerator is left unused."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise DeviceError(f"JAX found no usable device: {error}. See: supmim doctor") from error
    unused = "" if accelerator.cpu_is_asked_for() else accelerator.visible(root)
    if devices[0].platform == "cpu" and unused:
        raise DeviceError(
            f"this machine has a {unused}, but JAX would train on the CPU. Install JAX's "
            f"support for it: {INSTALL[unused]}\n"
            "or choose the CPU explicitly: JAX_PLATFORMS=cpu supmim ...",
            fault="M3",
        )
    return devices
