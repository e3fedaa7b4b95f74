"""Which devices JAX uses, and which it should have used."""

import os
from pathlib import Path

import jax

from supmim.errors import ConfigError, DeviceError

GOOGLE = "0x1ae0"  # PCI vendor and device ids, as JAX knows them
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
INSTALL = {"gpu": "pip install -e '.[cuda]'", "tpu": "pip install -e '.[tpu]'"}


def visible_accelerator(root: Path = Path("/")) -> str:
    """`gpu`, `tpu` or nothing: what the operating system shows, whatever JAX can use."""
    if any((root / "dev").glob("nvidia[0-9]*")):
        return "gpu"
    functions = (root / "sys/bus/pci/devices").glob("*")
    if any((root / "dev").glob("accel[0-9]*")) or any(map(_is_tpu, functions)):
        return "tpu"
    return ""


def _is_tpu(function: Path) -> bool:
    """Google's network cards share the vendor id: the device id decides."""
    try:
        vendor, device = ((function / name).read_text().strip() for name in ("vendor", "device"))
    except OSError:
        return False
    return vendor == GOOGLE and device in TPUS


def prepare(fake_devices: str, deterministic: bool) -> None:
    """Before JAX looks for devices: pretend CPU devices, kernels that give the same bits again."""
    if fake_devices:
        if not fake_devices.isdigit() or fake_devices == "0":
            raise ConfigError(f"--fake-devices={fake_devices} is not a number, e.g. 8")
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(fake_devices))
    if deterministic:
        known = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{known} --xla_gpu_deterministic_ops=true".strip()


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
