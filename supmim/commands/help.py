"""The texts of `--help`, made from the tables of verbs, options and evaluators.

The short help of a verb shows the flags and options that are used most; --help=all shows the rest.
"""

import textwrap
from collections.abc import Iterator

from supmim.commands.verbs import FAMILIES, RARE, VERBS, Verb, subverbs
from supmim.config import OPTIONS, tasks

WIDTH = 80


def two_columns(items: dict[str, str]) -> str:
    """Return names and meanings as lines of at most 80 columns."""
    width = max(map(len, items))
    return "\n".join(
        textwrap.fill(
            meaning,
            WIDTH,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for name, meaning in items.items()
    )


def overview() -> str:
    """Return the help of `supmim` itself."""
    return f"""\
supmim trains image encoders with labels and masked image modelling.

usage: supmim VERB [--flag=value ...]

{two_columns({name: verb.summary for name, verb in VERBS.items()})}

First run, on digits, about three minutes on a laptop:
  supmim train --config=digits --workdir=runs/digits
All flags of a verb:
  supmim VERB --help"""


def family_help(name: str) -> str:
    """Return the help of a first word that is no verb by itself."""
    words = subverbs(name)
    usages = "\n".join(f"  {VERBS[f'{name} {word}'].usage}" for word in words)
    return f"""\
supmim {name}: {FAMILIES[name]}

usage: supmim {name} {"|".join(words)} [--flag=value ...]

{two_columns(words)}

{usages}

All flags of one:
  supmim {name} {next(iter(words))} --help"""


def verb_help(name: str, everything: bool, preset: dict[str, object]) -> str:
    """Return the help of one verb.

    everything: with all flags and options. preset: `group.option` -> value of the preset that the
    command line names, if it does, shown instead of the defaults.
    """
    verb = VERBS[name]
    lines = [f"supmim {name}: {verb.summary}", ""]
    if verb.actions:
        words = " ".join(filter(None, ("|".join(verb.actions), verb.argument)))
        lines += [f"usage: supmim {name} {words} [--flag=value ...]", ""]
    lines += [f"  {verb.usage}", ""]
    if verb.actions:
        lines += [two_columns(verb.actions), ""]
    if verb.forms:
        lines += [f"  {verb.argument or 'SOURCE'}", f"      {verb.forms}", ""]
    if others := subverbs(name):
        lines += [two_columns({f"supmim {name} {w}": does for w, does in others.items()}), ""]
    lines += flag_lines(verb, everything)
    if name == "evaluate":
        lines += ["", "Evaluators, with the options that each takes:", "", evaluators()]
    if verb.takes_config or name == "evaluate":
        lines += option_lines(name, everything, preset)
    if not everything and (verb.takes_config or set(verb.flags) & set(RARE)):
        lines += ["", f"All flags and options: supmim {name} --help=all"]
    return "\n".join(lines)


def flag_lines(verb: Verb, everything: bool) -> Iterator[str]:
    """Yield the flags of a verb with their meanings, the rare ones only if asked."""
    if verb.takes_config:
        yield "  --config=PRESET[:arguments]"
        yield "      name of a preset, see supmim configs, or a Python FILE.py of your own"
    if verb.takes_config and "workdir" in verb.flags:
        yield "      without it the run of the workdir's config.json is continued, with any"
        yield "      --config.option=value on top"
    for flag, (default, meaning) in verb.flags.items():
        if everything or flag not in RARE:
            value = "|".join(default) if isinstance(default, tuple) else ""
            value = str(default) if type(default) is int else value
            dashed = flag.replace("_", "-")
            yield f"  --{dashed}" + ("" if default is False else f"={value}")
            yield f"      {meaning}"


def evaluators() -> str:
    """Return what each evaluator measures and the options that it takes, as lines."""
    lines = []
    for name, (meaning, own) in tasks.EVALUATORS.items():
        lines.append(two_columns({f"{name:<14}": meaning}))
        lines += [f"{'':18}--config.{path}" for path in own]
    return "\n".join(lines)


def option_lines(name: str, everything: bool, preset: dict[str, object]) -> list[str]:
    """Return the options of a verb: the common ones and those that a preset sets, or all."""
    paths = [path for path in OPTIONS if name != "evaluate" or OPTIONS[path].in_evaluation]
    values = {path: preset.get(path, OPTIONS[path].default) for path in paths}
    if not everything:
        values = {
            path: value
            for path, value in values.items()
            if OPTIONS[path].common or value != OPTIONS[path].default
        }
    title = "Config options" if everything else "Config options that are used most"
    if name == "evaluate":
        title += "; without them those of the run hold"
    elif preset:
        title += " or that the preset sets, with its values"
    else:
        title += ", with defaults"
    return ["", f"{title}:", describe_options(values)]


def describe_options(values: dict[str, object]) -> str:
    """Return options, `group.option` -> value to show, as text of at most 80 columns."""
    lines, group = [], None
    for path, value in values.items():
        option = OPTIONS[path]
        if (head := path.rpartition(".")[0]) != group:
            group = head
            lines.append("")
        lines.append(f"  --config.{path}={value if value != '' else repr('')}")
        lines.append(f"      {option.meaning}" + (f" [{option.unit}]" if option.unit else ""))
        if option.choices:
            lines.append(f"      one of: {', '.join(option.choices)}")
    return "\n".join(lines)
