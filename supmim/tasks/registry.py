"""The tasks by name; what is known of them without their code is in config/tasks.py."""

from supmim.tasks.base import Task
from supmim.tasks.segmentation import Segmentation
from supmim.tasks.supmim import SupMIM
from supmim.tasks.tokenizer import TokenizerTraining

TASKS: dict[str, type[Task]] = {
    "supmim": SupMIM,
    "tokenizer": TokenizerTraining,
    "segmentation": Segmentation,
}
