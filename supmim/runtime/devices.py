"""Which devices JAX uses, and which it should have used."""

import os
from pathlib import Path

import jax

from supmim.errors import DeviceError

INSTALL = {"gpu": "pip install -e '.[cuda]'", "tpu": "pip install -e '.[tpu]'"}


def visible_accelerator(root: Path = Path("/")) -> str:
    """`gpu`, `tpu` or nothing: what the operating system shows, whatever JAX can use."""
    if any((root / "dev").glob("nvidia[0-9]*")):
        return "gpu"
    google = "0x1ae0"
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    if any((root / "dev").glob("accel[0-9]*")) or any(
        vendor.read_text().strip() == google for vendor in vendors
    ):
        return "tpu"
    return ""


def check(root: Path = Path("/")) -> list[jax.Device]:
    """JAX's devices; DeviceError if it fell back to the CPU beside an accelerator."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise DeviceError(f"JAX found no usable device: {error}. See: supmim doctor") from error
    accelerator = visible_accelerator(root)
    consent = "cpu" in os.environ.get("JAX_PLATFORMS", "")
    if devices[0].platform == "cpu" and accelerator and not consent:
        raise DeviceError(
            f"this machine has a {accelerator}, but JAX would train on the CPU. Install its "
            f"support: {INSTALL[accelerator]}\n"
            "or say that you mean it: JAX_PLATFORMS=cpu supmim ..."
        )
    return devices
