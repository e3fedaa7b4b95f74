"""NVIDIA H200s that are not installed, described to the compiler of JAX's CUDA plugin.

A program compiled for them shows the kernels, traffic, memory and collectives of the real step.
Autotuning and Triton products need a GPU and are off, so the choice of library kernels is unknown.
"""

import os
from typing import Any

import jax
from jax.experimental import topologies

from supmim.errors import ConfigError, DeviceError

GPUS_PER_HOST = 8
# Pass these to `Lowered.compile`: without a GPU, the compiler cannot try out kernels.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
CUDNN = (9, 10, 0)

# NVIDIA's H200 datasheet (memory and its bandwidth) and CUDA's limits for compute capability 9.0.
DESCRIPTION = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 141000000000 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
"""


def devices(num_gpus: int) -> list[Any]:
    """Return H200 devices, 8 to a host, to compile for with COMPILER_OPTIONS.

    ConfigError if they do not fill whole hosts, DeviceError if the compiler is not installed.
    """
    hosts, left = divmod(num_gpus, GPUS_PER_HOST)
    if num_gpus < 1 or (hosts and left):
        raise ConfigError(
            f"{num_gpus} H200s do not fill hosts of 8; ask for 1 to 8, or for a multiple of 8"
        )
    shape = f"1x{hosts}x{GPUS_PER_HOST}" if hosts else f"1x1x{num_gpus}"
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the check asks a driver
    jax.devices("cpu")  # makes JAX look for its plugins
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology=shape, target_config=DESCRIPTION
        )
    except Exception as error:  # the type of the error for an unknown platform depends on jaxlib
        raise DeviceError(
            f"the compiler for H200s did not start ({error}). It is part of JAX's CUDA plugin and "
            f"needs no GPU; install it with:\n  pip install jax-cuda12-plugin=={jax.__version__} "
            f"jax-cuda12-pjrt=={jax.__version__}"
        ) from error
    # The only use of JAX's internals in supmim: to lower cuDNN's attention, JAX asks a driver, and
    # there is no public way to answer for a device that is not installed.
    from jax._src.cudnn import fused_attention_stablehlo as attention

    major, minor, patch = CUDNN
    attention.check_cudnn_version = lambda: major * 10_000 + minor * 100 + patch
    attention.check_compute_capability = lambda capability: float(capability) <= 9.0
    attention.is_cuda_compute_capability_equal = lambda capability: capability == "9.0"
    return topology.devices
