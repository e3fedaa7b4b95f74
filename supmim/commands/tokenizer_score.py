"""`supmim tokenizer score`: statistics of a tokenizer's codes, by which to choose a target."""

import jax
import numpy as np
from absl.flags import FlagValues

from supmim import tokenizers
from supmim.config import Config
from supmim.data import images, run_sources
from supmim.data.augment import views
from supmim.data.sources.base import Source
from supmim.errors import ConfigError
from supmim.evaluators.lib import code_statistics
from supmim.report import terminal
from supmim.runtime import devices
from supmim.runtime.progress import doing
from supmim.tokenizers import inputs
from supmim.tokenizers.folder import HOW_TO_MAKE_ONE


def run(config: Config, flags: FlagValues) -> None:
    """Print the statistics of the tokenizer in config.tokenizer.path on the evaluation images."""
    devices.check()
    if not config.tokenizer.path:
        raise ConfigError(f"--config.tokenizer.path is missing: {HOW_TO_MAKE_ONE}")
    tokenizer = tokenizers.load(config)
    config, _, eval_source = run_sources.load(config)
    found = score(tokenizer, config, eval_source)
    terminal.print_results(found, f"{config.tokenizer.path}, on {eval_source.name}:")


def score(tokenizer: tokenizers.Tokenizer, config: Config, eval_source: Source) -> dict[str, float]:
    """Return the statistics of its ids of the evaluation images, in their central views."""
    seen = images.evaluation(eval_source, config.data, images.second_of(config)._replace(made=True))
    encode = jax.jit(lambda tokenizer, image: tokenizer.encode(views.to_float(image)))
    size, ids, label = config.tokenizer.microbatch, [], []
    with doing("scoring the codes", len(seen)) as advance:
        for start in range(0, len(seen), size):
            batch = seen.read_valid(np.arange(start, min(start + size, len(seen))))
            image = inputs.crops(batch)
            padded = np.pad(image, [(0, size - len(image)), (0, 0), (0, 0), (0, 0)])
            ids.append(np.asarray(encode(tokenizer, padded))[: len(image)])
            label.append(batch["label"])
            advance(size)
    codebook_size = config.tokenizer.codebook_size
    return code_statistics.of(np.concatenate(ids), np.concatenate(label), codebook_size)
