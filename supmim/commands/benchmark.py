"""`supmim benchmark`: time step, input, tokenizer, search or embeddings against references."""

import json

from absl.flags import FlagValues

from supmim.benchmarks import embed, input, knn, step, tokenizer
from supmim.config import Config
from supmim.errors import ConfigError

BENCHMARKS = {"step": step, "input": input, "tokenizer": tokenizer, "knn": knn, "embed": embed}


def run(config: Config, flags: FlagValues) -> None:
    if not flags.rounds.isdecimal() or not int(flags.rounds):
        raise ConfigError(f"--rounds={flags.rounds} is not a number of rounds, e.g. --rounds=10")
    benchmark = BENCHMARKS[flags.action]
    result = benchmark.run(config, flags if benchmark is knn else int(flags.rounds))
    print(json.dumps(result, indent=1) if flags.json else benchmark.table(result))
