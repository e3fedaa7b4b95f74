"""`supmim train`: train, evaluate and draw; continue a run from where it stopped."""

from absl.flags import FlagValues

from supmim import config as config_lib
from supmim.assemble import Start
from supmim.config import Config
from supmim.runtime import devices, hosts, numerics, profile
from supmim.storage import paths
from supmim.train import train_and_evaluate


def run(config: Config, flags: FlagValues, verb: str = "train") -> None:
    """Train. verb: what the user called, if another verb trains."""
    profile.parse(flags.profile)
    if flags.debug:
        config = config_lib.debug(config)
    if flags.print_config:
        print(config_lib.to_json(config), end="")
        return
    devices.prepare(flags.fake_devices, flags.deterministic or flags.debug, quick=flags.debug)
    hosts.start(flags.coordinator, flags.num_processes, flags.process_id, flags.one_host)
    shared = ("resume", "profile", "debug", "deterministic", "allow_data_change")
    asked = {name: flags[name].value for name in shared}
    hosts.agree(config, asked | {"workdir": str(paths.absolute(paths.path(flags.workdir)))})
    bad_steps = 1 if flags.debug else numerics.BAD_STEPS
    start = Start(flags.resume, flags.profile, bad_steps, flags.allow_data_change, verb)
    with devices.compiling_quickly(flags.debug):
        train_and_evaluate(config, paths.path(flags.workdir), start)
