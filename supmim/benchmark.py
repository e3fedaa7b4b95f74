"""`supmim benchmark step`: how fast the training step is, against references in the same run."""

import json
from typing import Any

from supmim.benchmarks import step
from supmim.errors import ConfigError


def run(config: Any, flags: Any) -> None:
    """The verb; `step` is its one action."""
    if not flags.rounds.isdigit() or not int(flags.rounds):
        raise ConfigError(f"--rounds={flags.rounds} is not a number of rounds, e.g. --rounds=10")
    result = step.run(config, int(flags.rounds))
    print(json.dumps(result, indent=1) if flags.json else step.table(result))
