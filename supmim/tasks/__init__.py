"""What can be trained, by name: modules whose `create` and `abstract` make a step.Task."""

from supmim.tasks import segmentation, supmim, tokenizer

TASKS = {"supmim": supmim, "tokenizer": tokenizer, "segmentation": segmentation}
