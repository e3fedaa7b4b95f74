"""What a user can get wrong, each with the exit code that a scheduler reads."""


class SupmimError(Exception):
    """A fault that is told in plain words: what, where, why, and the next command."""

    exit_code = 1


class ConfigError(SupmimError):
    """Usage or config."""

    exit_code = 2


class DataError(SupmimError):
    """A data source, a record or a label."""

    exit_code = 3


class CheckpointError(SupmimError):
    """A checkpoint or the workdir that holds it."""

    exit_code = 4


class NumericsError(SupmimError):
    """Training went to NaN or infinity."""

    exit_code = 5


class DeviceError(SupmimError):
    """An accelerator, its driver or its memory."""

    exit_code = 6


class Interrupted(SupmimError):
    """A signal stopped the run after a save: start it again to go on."""

    exit_code = 75
