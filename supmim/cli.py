"""`supmim VERB ...`: parses the flags, checks the config, then imports the verb and runs it."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags

from supmim import config as config_lib
from supmim.commands.verbs import FAMILIES, VERBS, Verb, family_help, of_family, overview, verb_help
from supmim.config import Config, pyfile
from supmim.errors import ConfigError, SupmimError
from supmim.workdir import files


def parse(name: str, args: Sequence[str]) -> flags.FlagValues:
    """The verb's flags; everything wrong with them is a ConfigError.

    `config` is the preset of the command line, else the workdir's own, with its overrides.
    """
    verb = VERBS[name]
    if verb.actions and (not args or args[0] not in verb.actions):
        asked = f"not {args[0]!r}" if args else f"e.g. {verb.usage}"
        raise ConfigError(
            f"supmim {name} takes {', '.join([*verb.actions, *of_family(name)])}; {asked}\n"
            f"See: supmim {name} --help"
        )
    if verb.actions:
        args = [f"--action={args[0]}", *args[1:]]
    if verb.argument:
        if len(args) < 2 or args[1].startswith("-"):
            asked = args[0].partition("=")[2]
            raise ConfigError(f"supmim {name} {asked} takes a {verb.argument}, e.g. {verb.usage}")
        args = [args[0], f"--{verb.argument.lower()}={args[1]}", *args[2:]]
    argv = ["supmim", *map(underscored, args)]
    values = own_flags(verb)
    preset = next((arg for arg in args if re.match("--?config(=|$)", arg)), "")
    next_command = f"See: supmim {name} --help"
    try:
        if "workdir" in verb.flags and not (verb.takes_config and preset):
            folder = workdir_of(verb, argv)
            stored = config_lib.to_dict(files.read_config(folder)) if folder else ConfigDict()
            config_flags.DEFINE_config_dict(
                "config", stored, flag_values=values, sys_argv=argv, lock_config=True
            )
        elif verb.takes_config:
            config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
        if verb.takes_config and values.config is not None:
            config_lib.flatten(values.config)  # a preset that failed to load raises here
    except SupmimError:
        raise
    except Exception as error:
        raise ConfigError(_told(error, preset, next_command)) from error
    if rest:
        raise ConfigError(f"{rest[0]!r} is not a flag of supmim {name}\n{next_command}")
    for flag in verb.required:
        if not values[flag].value:
            raise ConfigError(f"--{flag} is missing, e.g. {verb.usage}\n{next_command}")
    return values


def underscored(arg: str) -> str:
    """--fake-devices=8 -> --fake_devices=8; the config's options have no dashes."""
    flag, equals, value = arg.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if arg[:2] == "--" else arg


def own_flags(verb: Verb) -> flags.FlagValues:
    """The flags of a verb, without the config's."""
    values = flags.FlagValues()
    for flag, (default, meaning) in verb.flags.items():
        define = flags.DEFINE_boolean if default is False else flags.DEFINE_string
        define(flag, default, meaning, flag_values=values)
    if verb.actions:
        flags.DEFINE_enum("action", None, list(verb.actions), "what to do", flag_values=values)
    if verb.argument:
        flags.DEFINE_string(verb.argument.lower(), "", "to what", flag_values=values)
    return values


def workdir_of(verb: Verb, argv: Sequence[str]) -> Path | None:
    """The workdir among arguments that are not parsed yet."""
    values = own_flags(verb)
    own = [arg for arg in argv if not arg.startswith(("--config", "-config"))]
    values(own, known_only=True)
    return Path(values.workdir) if values.workdir else None


def _told(error: Exception, preset: str, next_command: str) -> str:
    """What went wrong while parsing; a preset is code, so its faults come with their line."""
    path = preset.partition("=")[2].partition(":")[0]
    if fault := pyfile.fault(error, path):
        return fault
    if switch := re.match(r"flag (--\w+=.*): \('Non-boolean", str(error)):
        return (
            f"{switch[1]}: it is a switch, which takes no value, or true or false\n{next_command}"
        )
    if isinstance(error, KeyError | AttributeError):
        text = str(error.args[0]).strip("'\"").replace("\\n", "\n").replace("\\'", "'")
        return f"no such option: {text}\n{next_command}"
    return f"{error}\n{next_command}"


def config_of(verb: Verb, values: flags.FlagValues) -> Config:
    """The validated config that was parsed; that of an evaluation where a verb takes no other."""
    if not isinstance(values.config, ConfigDict):
        raise ConfigError(
            f"get_config() of the preset returned {type(values.config).__name__}; it must return "
            "the config that supmim.config.get_config() gave it"
        )
    if not verb.takes_config:
        stored = files.read_config(Path(values.workdir))
        return config_lib.for_evaluation(stored, values.config, values.evaluators)
    return config_lib.validate(values.config)


def command(verb: str) -> ModuleType:
    """The module whose `run(config, flags)` is the verb; only its import brings JAX."""
    match verb:
        case "train":
            from supmim.commands import train as module
        case "evaluate":
            from supmim.commands import evaluate as module
        case "sweep":
            from supmim.commands import sweep as module
        case "data":
            from supmim.commands import data as module
        case "data tokens":
            from supmim.commands import data_tokens as module
        case "tokenizer import":
            from supmim.commands import tokenizer_import as module
        case "tokenizer train":
            from supmim.commands import tokenizer_train as module
        case "benchmark":
            from supmim.commands import benchmark as module
        case "plan":
            from supmim.commands import plan as module
        case _:
            from supmim.commands import doctor as module
    return module


def run(args: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *rest = args
    if rest and f"{name} {rest[0]}" in VERBS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    try:
        if name in FAMILIES and rest and rest[0] in ("-h", "--help", "help"):
            print(family_help(name))
            return 0
        if name in FAMILIES:
            asked = f", not {rest[0]!r}" if rest else ""
            words = " or ".join(of_family(name))
            raise ConfigError(f"supmim {name} takes {words}{asked}\n\n{family_help(name)}")
        if name not in VERBS:
            raise ConfigError(f"{name!r} is not a verb of supmim: {', '.join(VERBS)}")
        if {"-h", "--help"} & set(rest):
            print(verb_help(name))
            return 0
        values = parse(name, rest)
        given = "config" in values and (values.config is not None or values["config"].present)
        config = config_of(VERBS[name], values) if given else None
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        return command(name).run(config, values) or 0
    except SupmimError as error:
        print(f"supmim: {error}", file=sys.stderr)
        return error.exit_code


def main() -> None:
    """Entry point of the console script."""
    try:
        code = run(sys.argv[1:])
    except Exception:
        traceback.print_exc()
        code = 1
    if code and (hosts := sys.modules.get("supmim.runtime.hosts")):
        hosts.leave(code)
    sys.exit(code)
