"""What can be trained, by name: functions of (config, source, workdir) that make a step.Task."""

from supmim.tasks import supmim

TASKS = {"supmim": supmim.create}
