"""Lengths and weights for mim_few_labels, chosen on images that it does not report.

supmim sweep run --sweep=tune_few_labels --folder=sweeps/tune_few_labels --results=results

100 labels. Trained on digits:tune, judged on digits:validation, with a seed that is not reported,
and as many trials for each side: four for labels alone, four for SupMIM with codes of pixels, four
with codes of features, four for masked modelling first (mim_N), then labels (first_N_RATE). These
have the FLOPs of labels alone for 4,000 steps. docs/log.md has the table.
"""

from supmim import grid

PRESET = "digits:few_labels"
SPLITS = {
    "data.train": "digits:tune",
    "data.eval": "digits:validation",
    "eval.evaluators": "classification,knn",
    "eval_every": 0,
}
# Codes of the features of a small network that learns the 100 labels first.
FEATURES = {
    "tokenizer.name": "feature_codes",
    "tokenizer.filters": 32,
    "tokenizer.network_steps": 300,
    "tokenizer.dtype": "float32",
}


def get_sweep():
    """Return labels alone at four lengths, and SupMIM with lengths and weights of either target."""
    alone = {"mim_weight": 0.0, "data.unlabelled": ""}
    labels = {f"labels_{n}": alone | {"total_steps": n} for n in (500, 1000, 2000, 4000)}
    rest = {
        f"rest_{steps}_{weight:g}": {"total_steps": steps, "mim_weight": weight}
        for steps in (2000, 3000)
        for weight in (1.0, 3.0)
    }
    features = {
        f"features_{steps}_{weight:g}": FEATURES | {"total_steps": steps, "mim_weight": weight}
        for steps, weight in ((2000, 0.3), (2000, 1.0), (2000, 3.0), (3000, 1.0))
    }
    every = {"class_weight": 0.0, "data.labels": 0.0, "data.unlabelled": ""}
    mim = {f"mim_{n}": every | {"total_steps": n} for n in (2000, 4000, 6000)}
    then = {
        f"first_{n}_{rate:g}": alone
        | {
            "init.model": f"member:mim_{n}",
            "total_steps": 4000 - n // 2,
            "optimizer.learning_rate": rate,
        }
        for n, rate in ((2000, 3e-3), (4000, 3e-3), (6000, 3e-3), (4000, 1e-3))
    }
    every_arm = labels | rest | features | mim | then
    arms = {name: SPLITS | overrides for name, overrides in every_arm.items()}
    return grid.product(arms, grid.seeds(100))
