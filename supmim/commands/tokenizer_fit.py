"""`supmim tokenizer fit`: codes of patches, or of features, of the training images of a config."""

from pathlib import Path
from typing import Any

import flax.linen as nn
from absl.flags import FlagValues

from supmim import tokenizers
from supmim.commands import tokenizer_import, tokenizer_score
from supmim.config import Config
from supmim.data import images, run_sources
from supmim.errors import ConfigError
from supmim.interop import load
from supmim.report import terminal
from supmim.report import tokenizer as report
from supmim.runtime import devices
from supmim.tokenizers import feature_codes, fitting, small_cnn


def run(config: Config, flags: FlagValues) -> None:
    """Fit a tokenizer, write its folder, print statistics of its codes and how to use it."""
    devices.check()
    out, model, kind = Path(flags.out), flags.model, config.tokenizer.name
    check(config, model)
    config, source, eval_source = run_sources.load(config)
    second = images.second_of(config)._replace(made=True)
    seen = images.training(source, config.data, second)
    network, what = None, "patches"
    if model:
        network, what = network_of(config, model), f"features of {model}"
    elif kind == feature_codes.KIND:
        learned = small_cnn.train(config, seen)
        network, what = learned.frozen(config.tokenizer_dtype), "features of a small network"
        top1 = learned.top1(images.evaluation(eval_source, config.data, second))
        print(f"network     its own top-1 on {eval_source.name}: {100 * top1:.2f} %")
    tokenizer = fitting.fit(config, seen, network)
    origin = f"{what}, of {source.name}"
    written = tokenizer_import.write(tokenizer, out, origin, config.tokenizer_dtype)
    report.print_folder(tokenizer, out, "written" if written else "unchanged")
    found = tokenizer_score.score(tokenizer, config, eval_source)
    terminal.print_results(found, f"statistics of its codes on {eval_source.name}:")


def check(config: Config, model: str) -> None:
    """Raise ConfigError for a tokenizer that is not fitted, or options that it does not take."""
    name = config.tokenizer.name
    if name not in tokenizers.FITTED:
        raise ConfigError(
            f"config.tokenizer.name={name} is trained, not fitted: see supmim tokenizer train; or "
            "set config.tokenizer.name=feature_codes or patch_vq"
        )
    if model and name == "patch_vq":
        raise ConfigError(
            "--model gives the features of feature_codes: set config.tokenizer.name=feature_codes"
        )
    if config.tokenizer.path:
        raise ConfigError(
            f"config.tokenizer.path={config.tokenizer.path} names a tokenizer that exists: leave "
            "it out to fit a new one, or see supmim tokenizer score"
        )
    if not config.facts.has_labels:
        raise ConfigError(f"supmim tokenizer fit takes a config of task=supmim, not {config.task}")


def network_of(config: Config, model: str) -> tuple[nn.Module, Any]:
    """Return a model's encoder and its parameters; ConfigError for other patches or channels."""
    found = load.load(model)
    theirs, data, sizes = found.config, config.data, config.tokenizer
    pairs = {
        "tokenizer.patch_size": (sizes.patch_size, theirs.encoder.patch_size),
        "data.channels": (data.channels, theirs.data.channels),
    }
    for name, (here, there) in pairs.items():
        if here != there:
            raise ConfigError(
                f"--model={model} has {name.partition('.')[2]} {there}, but config.{name} is "
                f"{here}: set --config.{name}={there}"
            )
    network = feature_codes.of_encoder(theirs.encoder, theirs.grid, config.tokenizer_dtype)
    return network, found.params["encoder"]
