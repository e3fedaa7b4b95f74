"""Lengths and weights for mim_few_labels, chosen on images that it does not report.

supmim sweep run --sweep=tune_few_labels --folder=sweeps/tune_few_labels

Trained on digits:tune, judged on digits:validation, with a seed that is not reported, and as many
trials for either side: four.
"""

from supmim import grid

PRESET = "digits:few_labels"
SPLITS = {
    "data.train": "digits:tune",
    "data.eval": "digits:validation",
    "eval.evaluators": "classification,knn",
    "eval_every": 0,
}


def get_sweep():
    """Return labels alone at four lengths, and SupMIM with two lengths and two weights."""
    alone = {"mim_weight": 0.0, "data.unlabelled": ""}
    labels = {f"labels_{n}": alone | {"total_steps": n} for n in (500, 1000, 2000, 4000)}
    rest = {
        f"rest_{steps}_{weight:g}": {"total_steps": steps, "mim_weight": weight}
        for steps in (2000, 3000)
        for weight in (1.0, 3.0)
    }
    arms = {name: SPLITS | overrides for name, overrides in (labels | rest).items()}
    return grid.product(arms, grid.seeds(100))
