"""`supmim train`: train, evaluate and draw; resume where the workdir stopped."""

from pathlib import Path

from absl.flags import FlagValues

from supmim import config as config_lib
from supmim.config import Config
from supmim.runtime import devices, hosts, numerics, profile
from supmim.train import Start, train_and_evaluate


def run(config: Config, flags: FlagValues, verb: str = "train") -> None:
    """The verb. verb: what the user called, where that begins like this one."""
    profile.parse(flags.profile)
    if flags.debug:
        config = config_lib.debug(config)
    devices.prepare(flags.fake_devices, flags.deterministic or flags.debug)
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    same = ("resume", "profile", "debug", "deterministic", "allow_data_change")
    asked = {name: flags[name].value for name in same}
    hosts.agree(config, asked | {"workdir": str(Path(flags.workdir).absolute())})
    bad_steps = 1 if flags.debug else numerics.BAD_STEPS
    start = Start(flags.resume, flags.profile, bad_steps, flags.allow_data_change, verb)
    train_and_evaluate(config, Path(flags.workdir), start)
