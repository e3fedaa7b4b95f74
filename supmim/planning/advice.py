"""What to change in a config whose step does not fit, and what that would do."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from supmim import sharding
from supmim.planning.program import Step, chip_bytes, placed
from supmim.report.forecast import size

LARGEST_FSDP = 64  # a wider axis divides too few of a ViT's sides


def advice(
    real: Step, memory: dict[str, int], tokenizer: dict[str, int]
) -> Iterator[dict[str, str]]:
    """Changes worth trying, each with its effect by arithmetic."""
    config, mesh = real.config, real.mesh
    state = memory["parameters"] + memory["optimizer"]
    chips, tensor = mesh.devices.size, mesh.shape["tensor"]
    wider = max(n for n in range(1, LARGEST_FSDP + 1) if not (chips // tensor) % n)
    if wider > mesh.shape["fsdp"]:
        split = sharding.make_mesh(-1, wider, tensor, devices=list(mesh.devices.flat))
        where = sharding.state_sharding(real.state, split)
        after = chip_bytes(placed(real.state, where))
        yield _change("mesh.fsdp", wider, "parameters and optimizer", state, after)
    if config.optimizer.moment_dtype == "float32":
        after = memory["optimizer"] - memory["parameters"] // 2
        yield _change("optimizer.moment_dtype", "bfloat16", "optimizer", memory["optimizer"], after)
    if config.task == "supmim" and config.encoder.remat != "full":
        effect = f"keeps only the input of each block: {size(block_inputs(real))}"
        yield {"option": "--config.encoder.remat=full", "effect": effect}
    if tokenizer["temporaries"] > memory["temporaries"] and config.tokenizer.microbatch > 1:
        half, after = config.tokenizer.microbatch // 2, tokenizer["temporaries"] // 2
        what = "the tokenizer's temporaries"
        yield _change("tokenizer.microbatch", half, what, tokenizer["temporaries"], after)
    parts = 2 * config.accumulation_steps
    temporaries, shards = memory["temporaries"], sharding.batch_shards(mesh)
    if not config.batch_size % (parts * shards):
        yield _change("accumulation_steps", parts, "temporaries", temporaries, temporaries // 2)
    if not config.batch_size % (2 * shards * config.accumulation_steps):
        half = config.batch_size // 2
        yield _change("batch_size", half, "temporaries", temporaries, temporaries // 2)


def _change(option: str, value: Any, what: str, before: int, after: int) -> dict[str, str]:
    effect = f"{what} {size(before)} -> about {size(after)}"
    return {"option": f"--config.{option}={value}", "effect": effect}


def block_inputs(real: Step) -> int:
    """Bytes of one chip that full remat keeps: the inputs of all encoder blocks, of every pass."""
    config = real.config
    encoder, images = config.encoder, config.batch_size / sharding.batch_shards(real.mesh)
    num_tokens = (config.data.image_size // encoder.patch_size) ** 2
    passes = 2 if config.mim_weight and config.mim.passes == "two" else 1
    itemsize = jnp.dtype(encoder.dtype).itemsize
    kept = passes * num_tokens * encoder.width * encoder.depth * itemsize
    return round(kept * images / config.accumulation_steps)
