"""The two sources of a run, for training and for evaluation: what they share, and their classes."""

from supmim import config as config_lib
from supmim.config import Config, options
from supmim.data import sources
from supmim.data.sources import base, joined
from supmim.errors import ConfigError, DataError, counted
from supmim.runtime import hosts
from supmim.runtime.streams import printable


def load(config: Config) -> tuple[Config, base.Source, base.Source]:
    """Return the config with its number of classes, the training and the evaluation source."""
    source, eval_source = sources.load(config.data, config.facts.has_labels)
    rest = isinstance(source, joined.Joined) and config.data.unlabelled == options.REST
    check_shared(source if rest else joined.labelled(source), eval_source)
    if isinstance(source, joined.Joined):
        joined.check(source, config.unlabelled_rows)
        if not rest:
            check_shared(source.unlabelled, eval_source)
    return with_num_classes(config, source), source, eval_source


def check_shared(source: base.Source, eval_source: base.Source) -> None:
    """Raise DataError if all evaluation images are in a training source; print how many are."""
    told, every = shared_images(source, eval_source)
    if every:
        raise DataError(
            f"{told}, so that results would be those of training images; set --config.data.eval to "
            "other images, or leave it empty for what the training source holds out"
        )
    if told and hosts.is_first():
        print(f"warning     {told}")


def shared_images(source: base.Source, eval_source: base.Source) -> tuple[str, bool]:
    """Return a sentence on the evaluation images that are training images, "" if there are none.

    Also return whether all of them are.
    """
    shared, count = sources.num_shared(source, eval_source), len(eval_source)
    of_all = f"{shared:,} of {counted(count, 'image')} of {eval_source.name}"
    told = f"{of_all} {'is' if shared == 1 else 'are'} in {source.name} too"
    return told if shared else "", shared == count


def with_num_classes(config: Config, source: base.Source) -> Config:
    """Return the config with the number of classes of its source.

    ConfigError if the config asks for another number; DataError if there are fewer than two.
    """
    if not config.facts.has_labels:
        return config
    found = len(source.class_names)
    if not found:
        raise DataError(
            f"nothing says how many classes the masks of {source.name} have: write their names "
            "into classes.txt in its folder, one per line, or set --config.data.mask_classes=N"
        )
    if found < 2:
        raise DataError(
            f"{source.name} has images of one class, {printable(source.class_names[0])}; at least "
            "two are needed"
        )
    if config.classifier.num_classes not in (0, found):
        raise ConfigError(
            f"{source.name} has {counted(found, 'class')}, but config.classifier.num_classes is "
            f"{config.classifier.num_classes}; set --config.classifier.num_classes={found}, or 0 "
            "for those of the source"
        )
    if config.classifier.num_classes == found:
        return config
    return config_lib.replaced(config, {"classifier.num_classes": found})


def settled(config: Config) -> Config:
    """Return the config with its number of classes, opening its sources only if it is unknown."""
    known = config.classifier.num_classes or not config.facts.has_labels
    return config if known else load(config)[0]
