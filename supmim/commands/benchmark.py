"""`supmim benchmark`: time a whole training, or a part of one against references."""

import json

from absl.flags import FlagValues

from supmim.benchmarks import embed, input, job, knn, step, tokenizer
from supmim.config import Config
from supmim.errors import ConfigError

ROUNDS = 10
BENCHMARKS = {
    "step": step,
    "input": input,
    "tokenizer": tokenizer,
    "knn": knn,
    "embed": embed,
    "job": job,
}


def run(config: Config, flags: FlagValues) -> None:
    benchmark = BENCHMARKS[flags.action]
    flags.rounds = flags.rounds or str(job.ROUNDS if benchmark is job else ROUNDS)
    if not flags.rounds.isdecimal() or not int(flags.rounds):
        raise ConfigError(f"--rounds={flags.rounds} is not a number of rounds, e.g. --rounds=10")
    result = benchmark.run(config, flags if benchmark is knn else int(flags.rounds))
    print(json.dumps(result, indent=1) if flags.json else benchmark.table(result))
