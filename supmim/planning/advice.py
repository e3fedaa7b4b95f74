"""Changes to a config whose step does not fit a chip, each with its estimated effect."""

from collections.abc import Iterator

import jax.numpy as jnp

from supmim import sharding
from supmim.planning.program import PlannedStep, chip_bytes, placed
from supmim.report.forecast import size

LARGEST_FSDP = 64  # a larger axis divides too few dimensions of a ViT


def advice(
    planned: PlannedStep, memory: dict[str, int], tokenizer: dict[str, int]
) -> Iterator[dict[str, str]]:
    """Yield the option of each change worth trying and its effect, by arithmetic."""
    config, mesh = planned.config, planned.mesh
    state = memory["parameters"] + memory["optimizer"]
    chips, tensor = mesh.devices.size, mesh.shape["tensor"]
    wider = max(n for n in range(1, LARGEST_FSDP + 1) if not (chips // tensor) % n)
    if wider > mesh.shape["fsdp"]:
        split = sharding.make_mesh(-1, wider, tensor, devices=list(mesh.devices.flat))
        placement = sharding.state_sharding(planned.state, split)
        after = chip_bytes(placed(planned.state, placement))
        yield _change("mesh.fsdp", wider, "parameters and optimizer", state, after)
    if config.optimizer.moment_dtype == "float32":
        after = memory["optimizer"] - memory["parameters"] // 2
        yield _change("optimizer.moment_dtype", "bfloat16", "optimizer", memory["optimizer"], after)
    if config.task == "supmim" and config.encoder.remat != "full":
        effect = f"keeps only the input of each block: {size(_block_input_bytes(planned))}"
        yield {"option": "--config.encoder.remat=full", "effect": effect}
    if tokenizer["temporaries"] > memory["temporaries"] and config.tokenizer.microbatch > 1:
        half, before = config.tokenizer.microbatch // 2, tokenizer["temporaries"]
        yield _change(
            "tokenizer.microbatch", half, "the tokenizer's temporaries", before, before // 2
        )
    parts = 2 * config.accumulation_steps
    temporaries, shards = memory["temporaries"], sharding.batch_shards(mesh)
    if not config.batch_size % (parts * shards):
        yield _change("accumulation_steps", parts, "temporaries", temporaries, temporaries // 2)
    if not config.batch_size % (2 * shards * config.accumulation_steps):
        half = config.batch_size // 2
        yield _change("batch_size", half, "temporaries", temporaries, temporaries // 2)


def _change(option: str, value: str | int, what: str, before: int, after: int) -> dict[str, str]:
    effect = f"{what} {size(before)} -> about {size(after)}"
    return {"option": f"--config.{option}={value}", "effect": effect}


def _block_input_bytes(planned: PlannedStep) -> int:
    """Return the bytes on one chip of the inputs of all encoder blocks, over all passes."""
    config = planned.config
    encoder, images = config.encoder, config.step_images / sharding.batch_shards(planned.mesh)
    two = config.mim_weight and config.mim.passes == "two" and config.classifies
    passes = 2 if two else 1
    itemsize = jnp.dtype(encoder.dtype).itemsize
    kept = passes * config.grid**2 * encoder.width * encoder.depth * itemsize
    return round(kept * images / config.accumulation_steps)
