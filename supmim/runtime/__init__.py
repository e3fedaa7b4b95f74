"""The machine a run stands on: devices, signals, the lock on its workdir."""
