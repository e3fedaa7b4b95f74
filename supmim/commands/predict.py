"""`supmim predict`: the most probable classes of images, as text or as JSON lines."""

import contextlib
import json
import sys

from absl.flags import FlagValues

from supmim.config import Config
from supmim.data.images import Bad
from supmim.data.sources import given
from supmim.errors import DataError, counted
from supmim.interop import load
from supmim.model import best_classes
from supmim.runtime import devices
from supmim.runtime.streams import printable


def run(_: Config | None, flags: FlagValues) -> None:
    """Print a line per image; report unreadable images on standard error."""
    devices.check()
    model = load.load(flags.model)
    source = given.find(flags.images, model.config.data)
    met: list[Bad] = []
    batches = model.outputs(
        "probabilities",
        model.images(source),
        workers=-1,
        note=met.extend,
    )
    done = 0
    with contextlib.closing(batches):
        for index, probabilities in batches:
            done += len(index)
            for number, row in zip(index, probabilities, strict=True):
                classes = best_classes(row, model.class_names, flags.top)
                print((as_json if flags.json else as_text)(source.name_of(int(number)), classes))
    for bad in met:
        print(f"unreadable  {printable(bad.name)}: {printable(bad.why)}", file=sys.stderr)
    if not done:
        raise DataError(f"{source.name}: none of its {counted(len(source), 'image')} can be read")


def as_text(path: str, classes: list[tuple[str, float]]) -> str:
    each = (f"{name} {100 * share:.1f} %" for name, share in classes)
    return printable(f"{path}  {', '.join(each)}")


def as_json(path: str, classes: list[tuple[str, float]]) -> str:
    """Return {"path": ..., "classes": [{"name": ..., "probability": ...}, ...]} on one line."""
    each = [{"name": name, "probability": share} for name, share in classes]
    return json.dumps({"path": path, "classes": each})
