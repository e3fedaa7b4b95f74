"""The processes, devices, memory, time and signals of a run."""
