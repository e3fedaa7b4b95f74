"""The accelerator of this machine, before JAX is imported."""

import os
from pathlib import Path

GOOGLE = "0x1ae0"  # PCI vendor and device ids, as JAX knows them
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")


def visible(root: Path = Path("/")) -> str:
    """Return `gpu`, `tpu` or "" as the operating system shows it, even if JAX cannot use it."""
    if any((root / "dev").glob("nvidia[0-9]*")):
        return "gpu"
    functions = (root / "sys/bus/pci/devices").glob("*")
    if any((root / "dev").glob("accel[0-9]*")) or any(map(_is_tpu, functions)):
        return "tpu"
    return ""


def _is_tpu(function: Path) -> bool:
    try:
        vendor, device = ((function / name).read_text().strip() for name in ("vendor", "device"))
    except OSError:
        return False
    return vendor == GOOGLE and device in TPUS  # Google's network cards share the vendor id


def cpu_is_asked_for() -> bool:
    """Return whether the environment lets JAX use the CPU whatever else there is."""
    return "cpu" in os.environ.get("JAX_PLATFORMS", "")
