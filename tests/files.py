"""Sources that reader processes take, in a module that they import quickly."""

import os
import signal

from supmim.data import stream
from supmim.data.sources.base import Record
from tests.pictures import encoded, photo


class Files:
    """Encoded images in memory, some of them replaced by others."""

    def __init__(self, count=20, labels=None, **replaced):
        self.name, self.class_names = "files", ("a", "b")
        self.data = [encoded(photo(9, 8 + i), "PNG") for i in range(count)]
        self.labels = labels or [i % 2 for i in range(count)]
        for index, data in replaced.items():
            self.data[int(index.removeprefix("at"))] = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return Record(self.data[index], self.labels[index], f"file {index}")

    def __getitems__(self, index):
        return [self[i] for i in index]

    def fingerprint(self):
        return {}


class Deadly(stream.Training):
    """Kills the process that reads a step, as the kernel does when memory runs out."""

    def __init__(self, flag, **kwargs):
        super().__init__(**kwargs)
        self.flag = flag

    def __call__(self, step):
        if step == 3 and self.flag.exists():
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and self.flag.with_name("always").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(step)
