"""The command line `supmim VERB ...`: parse the flags, check the config, then run the verb."""

import errno
import importlib
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags

from supmim import __version__
from supmim import config as config_lib
from supmim.commands import help
from supmim.commands.verbs import FAMILIES, PLACE, VERBS, WORKDIR, Verb, subverbs
from supmim.config import Config, catalogue, pyfile
from supmim.config.option import NO_BUCKET, NO_URL
from supmim.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    SupmimError,
    nearest,
    suggestion,
)
from supmim.runtime import compile_cache, start_up, streams
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.workdir import files

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk, quota or limit raises
UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP)
HELP = ("-h", "--help", "help")


def parse(name: str, args: Sequence[str]) -> flags.FlagValues:
    """Return the parsed flags of a verb; anything wrong with them is a ConfigError.

    `config` is the preset of the command line, else the config of the workdir, with its overrides.
    """
    verb = VERBS[name]
    args = [underscored(arg) for arg in words_as_flags(name, args)]
    values = own_flags(verb)
    preset = next((arg for arg in args if re.match("--?config(=|$)", arg)), "")
    next_command = f"See: supmim {name} --help"
    try:
        argv = ["supmim", *args]
        define_config(verb, values, argv, preset)
        rest = values(argv)[1:]
        if verb.takes_config and values.config is not None:
            config_lib.flatten(values.config)  # a preset that failed to load raises here
    except SupmimError:
        raise
    except flags.UnrecognizedFlagError as error:
        hint = suggestion(error.flagname, [*verb.flags, "config"], "--").replace("_", "-")
        hint = hint or (option_hint(error.flagname, "--") if verb.takes_config else "")
        told = f"--{error.flagname.replace('_', '-')} is not a flag of supmim {name}{hint}"
        raise ConfigError(f"{told}\n{next_command}", fault="C1") from error
    except Exception as error:
        raise ConfigError(_message(error, preset, next_command), fault="C1") from error
    if rest:
        raise ConfigError(f"{rest[0]!r} is not a flag of supmim {name}\n{next_command}")
    if name == "evaluate":
        given = [bool(values[flag].value) for flag in ("workdir", "model", "out")]
        if given not in ([True, False, False], [False, True, True]):
            text = "give --workdir, or --model and --out"
            raise ConfigError(f"{text}, e.g. {verb.usage}\n{next_command}")
    prints = "print_config" in values and values.print_config and not values.workdir
    for flag in ("config",) if prints else verb.required:
        if not values[flag].value:
            raise ConfigError(f"--{flag} is missing, e.g. {verb.usage}\n{next_command}")
    return values


def words_as_flags(name: str, args: Sequence[str]) -> Sequence[str]:
    """Turn words into flags: `data check DIR` -> `data --action=check --source=DIR`."""
    verb = VERBS[name]
    if not verb.actions:
        return args
    if not args or args[0] not in verb.actions:
        problem = f"not {args[0]!r}" if args else f"e.g. {verb.usage}"
        raise ConfigError(
            f"supmim {name} takes {', '.join([*verb.actions, *subverbs(name)])}; {problem}\n"
            f"See: supmim {name} --help"
        )
    action, *rest = args
    if verb.argument:
        if not rest or rest[0].startswith("-"):
            raise ConfigError(f"supmim {name} {action} takes a {verb.argument}, e.g. {verb.usage}")
        rest[0] = f"--{verb.argument.lower()}={rest[0]}"
    return [f"--action={action}", *rest]


def underscored(arg: str) -> str:
    """--fake-devices=8 -> --fake_devices=8, --config=digits -> --config=configs/digits.py."""
    flag, equals, value = arg.partition("=")
    if flag.lstrip("-") == "config" and value:
        value = catalogue.resolved(value)
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if arg[:2] == "--" else arg


class PathParser(flags.ArgumentParser):
    """Parser of a flag that names a file or folder. in_bucket: whether that may be in a bucket."""

    def __init__(self, flag: str, in_bucket: bool) -> None:
        self.flag, self.in_bucket = flag, in_bucket

    def parse(self, argument: str) -> str:
        if "://" in argument and not (self.in_bucket and on_bucket(argument)):
            why = (NO_BUCKET if self.in_bucket else NO_URL).format(argument)
            raise ConfigError(f"--{self.flag.replace('_', '-')}={why}")
        return os.path.expanduser(argument)


def own_flags(verb: Verb) -> flags.FlagValues:
    """Define the flags of a verb, without the config's."""
    values = flags.FlagValues()
    for flag, (default, meaning) in verb.flags.items():
        if isinstance(default, bool):
            flags.DEFINE_boolean(flag, default, meaning, flag_values=values)
        elif isinstance(default, Path):
            flags.DEFINE(PathParser(flag, default == PLACE), flag, "", meaning, flag_values=values)
        elif isinstance(default, int):
            flags.DEFINE_integer(flag, default, meaning, lower_bound=1, flag_values=values)
        elif isinstance(default, tuple):
            flags.DEFINE_enum(flag, default[0], default, meaning, flag_values=values)
        else:
            flags.DEFINE_string(flag, default, meaning, flag_values=values)
    if verb.actions:
        flags.DEFINE_enum("action", None, list(verb.actions), "what to do", flag_values=values)
    if verb.argument:
        flags.DEFINE_string(verb.argument.lower(), "", "to what", flag_values=values)
    return values


def define_config(verb: Verb, values: flags.FlagValues, argv: list[str], preset: str) -> None:
    """Define --config with its overrides: as a preset, or as the config of the workdir in argv."""
    if WORKDIR in verb.flags.values() and not (verb.takes_config and preset):
        own = own_flags(verb)
        own([arg for arg in argv if not re.match(r"--?(no)?config(\.|=|$)", arg)])
        found = stored_config(own)
        stored = config_lib.to_dict(found) if found else ConfigDict()
        config_flags.DEFINE_config_dict(
            "config", stored, flag_values=values, sys_argv=argv, lock_config=True
        )
    elif verb.takes_config:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)


def stored_config(values: flags.FlagValues) -> Config | None:
    """Return the config of the workdir or of the model that the flags name, if they name one."""
    if values.workdir:
        return files.read_config(paths.path(values.workdir))
    if "model" in values and values.model:
        set_environment(values)
        from supmim.interop.load import published  # imports JAX

        return published(paths.path(values.model)).config
    return None


def _message(error: Exception, preset: str, next_command: str) -> str:
    """Describe an error of parsing; a preset is code, so its errors come with a line number."""
    path = preset.partition("=")[2].partition(":")[0]
    if fault := pyfile.fault(error, path):
        return fault
    text = str(error)
    if switch := re.match(r"flag (--\w+=.*): \('Non-boolean", text):
        text = f"{switch[1]}: it is a switch; give it no value, or true or false"
    elif isinstance(error, KeyError | AttributeError):
        text = str(error.args[0]).strip("'\"").replace("\\n", "\n").replace("\\'", "'")
        text = f"no such option: {text}"
        text += "" if "Did you mean" in text else option_hint(text.split()[-1])
    return f"{text}\n{next_command}"


def config_of(verb: Verb, values: flags.FlagValues) -> Config:
    """Return the validated config of parsed flags; for `evaluate`, the config of the evaluation."""
    if not isinstance(values.config, ConfigDict):
        raise ConfigError(
            f"get_config() of the preset returned {type(values.config).__name__}; it must return "
            "the config that supmim.config.get_config() gave it"
        )
    if not verb.takes_config:
        stored = stored_config(values)
        assert stored
        return config_lib.for_evaluation(stored, values.config, values.evaluators)
    return config_lib.validate(values.config)


def command(verb: str) -> ModuleType:
    """Import the module whose `run(config, flags)` is the verb; only this import loads JAX."""
    return importlib.import_module(f"supmim.commands.{verb.replace(' ', '_')}")


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        if not args or args[0] in HELP:
            print(help.overview())
            return 0
        if args[0] == "--version":
            print(f"supmim {__version__}")
            return 0
        name, rest = verb_of(args)
        if name in FAMILIES or set(HELP[:2]) & set(rest) or f"{HELP[1]}=all" in rest:
            print(help_of(name, rest))
            return 0
        return run_verb(name, rest)
    except SupmimError as error:
        print(f"supmim: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (told := of_the_system(error)) is None:
            raise
        print(f"supmim: {told}", file=sys.stderr)
        return told.exit_code


def verb_of(args: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the verb, or the family whose help is asked for, and the arguments after it.

    ConfigError, with a suggestion, for unknown words.
    """
    name, *rest = args
    if rest and f"{name} {rest[0]}" in VERBS:
        return f"{name} {rest[0]}", rest[1:]
    if name in FAMILIES:
        if rest and rest[0] in HELP:
            return name, rest
        words = list(subverbs(name))
        problem = f", not {rest[0]!r}{suggestion(rest[0], words)}" if rest else ""
        raise ConfigError(
            f"supmim {name} takes {', '.join(words)}{problem}\n\n{help.family_help(name)}"
        )
    if name not in VERBS:
        known = {*VERBS, *(verb.partition(" ")[0] for verb in VERBS)}
        hint = suggestion(name, known)
        raise ConfigError(f"{name!r} is not a verb of supmim{hint}\nSee: supmim --help")
    return name, rest


def option_hint(word: str, prefix: str = "") -> str:
    """Return `; did you mean config.OPTION?` with the option whose last part is nearest."""
    paths = {path.rpartition(".")[2]: path for path in reversed(config_lib.OPTIONS)}
    close = nearest(word, paths)
    return f"; did you mean {prefix}config.{paths[close]}?" if close else ""


def help_of(name: str, args: Sequence[str]) -> str:
    """Return the help of a verb, with the values of the preset that the arguments name."""
    if name in FAMILIES:
        return help.family_help(name)
    given = next((arg.partition("=")[2] for arg in args if re.match("--?config=", arg)), "")
    preset = pyfile.preset(Path(), given) if VERBS[name].takes_config and given else {}
    return help.verb_help(name, f"{HELP[1]}=all" in args, config_lib.flatten(preset))


def run_verb(name: str, args: Sequence[str]) -> int:
    """Parse the flags of a verb, check its config and run it; return the exit code."""
    values = parse(name, args)
    given = "config" in values and (values.config is not None or values["config"].present)
    config = config_of(VERBS[name], values) if given else None
    set_environment(values)
    verb = command(name)
    if "workdir" not in VERBS[name].required:  # a training handles signals itself
        start_up.over()
    return verb.run(config, values) or 0


def set_environment(values: flags.FlagValues) -> None:
    """Set the variables that JAX reads when it is imported."""
    # XLA reports a slow compile as an error. Errors of one process arrive as exceptions; those
    # of its connection to others are logged only.
    several = "coordinator" in values and values.coordinator
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if several else "3")
    if "compile_cache" in values:
        os.environ.update(compile_cache.environment(values.compile_cache))


def of_the_system(error: OSError) -> SupmimError | None:
    """Return the error to report for a full disk or an unusable path; None for other errors."""
    path = streams.printable(str(error.filename or "a file"))
    if error.errno in FULL:
        return CheckpointError(
            f"{path} cannot be written: {error.strerror}. Free some space, then give the same "
            "command again: a run continues from its newest checkpoint"
        )
    if error.errno in UNUSABLE and error.filename:
        return ConfigError(f"{path} cannot be used: {error.strerror}")
    return None


def main() -> None:
    """Run the console script `supmim`."""
    streams.protect()
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        print("supmim: interrupted", file=sys.stderr)
        code = Interrupted.exit_code
    except Exception as error:
        if life := sys.modules.get("supmim.runtime.life"):
            life.LIFE.wait(error)
        traceback.print_exc()
        code = 1
    if code and (hosts := sys.modules.get("supmim.runtime.hosts")):
        hosts.leave(code)
    sys.exit(code)


def leave_threads(code: int) -> None:
    """End the process at once if threads of a failed save would keep it alive for minutes."""
    checkpoint = sys.modules.get("supmim.workdir.checkpoint")
    if checkpoint is None or not checkpoint.Checkpoints.any_failed:
        return
    sys.modules["supmim.runtime.hosts"].leave(code)
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
