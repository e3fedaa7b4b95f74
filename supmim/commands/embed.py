"""`supmim embed`: embeddings of any images, or features of their patches, into one npz.

What is computed is on the disk every minute, so that the same command goes on where it was stopped.
"""

import contextlib
import math
import time

import numpy as np
from absl.flags import FlagValues

from supmim import config as config_lib
from supmim.config import Config
from supmim.data.images import Bad, central_crop, source_digest
from supmim.data.sources import given
from supmim.data.sources.base import Source
from supmim.errors import ConfigError, DataError, Interrupted, NumericsError, counted
from supmim.interop import embeddings, load
from supmim.model import BATCH_SIZE, Model
from supmim.runtime import devices
from supmim.runtime.preemption import StopSignal
from supmim.runtime.progress import doing
from supmim.runtime.streams import printable
from supmim.storage import paths
from supmim.storage.schemes import on_bucket
from supmim.workdir import lock

FEATURES = {"embedding": "embedding", "patches": "patch_features"}
SHARD_SECONDS = 60.0  # after which a shard is written, or when it holds a block


def run(_: Config | None, flags: FlagValues) -> None:
    """Write FILE.npz, print what it holds, and list the images that could not be read."""
    devices.check()
    out = paths.path(flags.out)
    if out.suffix != ".npz":
        raise ConfigError(f"--out={out} must end in .npz")
    if out.exists():
        raise ConfigError(f"--out={out} exists already; delete it, or name another file")
    model = load.load(flags.model)
    source = given.find(flags.images, model.config.data)
    with StopSignal() as stop, lock.hold(embeddings.folder_of(out), "--out"):
        partial = embeddings.Partial(out, identity(model, source, flags))
        compute(model, source, flags.features, np.dtype(flags.dtype), partial, stop)
        rows, bad = partial.join(model.sha256)
    for name, why in bad:
        print(f"unreadable  {printable(name)}: {printable(why)}")
    if not rows:
        raise DataError(f"{source.name}: none of its {counted(len(source), 'image')} can be read")
    left_out = f"; {len(bad):,} unreadable left out" if bad else ""
    images = counted(rows, "image")
    print(f"written     {out}: {flags.features} of {images}, {flags.dtype}{left_out}")
    if flags.features == "embedding" and not on_bucket(out):
        print(f"search      supmim search --model={flags.model} --embeddings={out} --query=IMAGE")


def identity(model: Model, source: Source, flags: FlagValues) -> dict:
    """Return all that the values in the file depend on."""
    data = model.config.data
    return {
        "model": model.sha256,
        "encoder": config_lib.flatten(model.config.encoder),
        "view": [*vars(central_crop(data)).values(), data.interpolation, data.max_pixels],
        "images": source_digest(source),
        "features": flags.features,
        "dtype": flags.dtype,
        "batch": batch_size(model, source),
    }


def batch_size(model: Model, source: Source) -> int:
    return model.padded(min(BATCH_SIZE, len(source)))


def compute(
    model: Model,
    source: Source,
    features: str,
    dtype: np.dtype,
    partial: embeddings.Partial,
    stop: StopSignal,
) -> None:
    """Write all missing shards. Interrupted after a signal, once the results so far are written."""
    total, size, shards = len(source), batch_size(model, source), partial.shards()
    start = done = shards[-1].stop if shards else 0
    if done == total:  # killed while the shards were joined
        return
    met: list[Bad] = []
    batches = model.outputs(
        FEATURES[features],
        model.images(source),
        batch_size=size,
        workers=-1,
        note=met.extend,
        start=start,
    )
    values, index, began = [], [], time.monotonic()
    with contextlib.closing(batches), doing("embed", total, start) as advance:
        for found, batch in batches:
            with np.errstate(over="ignore"):  # `checked` reports it
                values.append(checked(batch.astype(dtype), found, source))
            index += found.tolist()
            advance(size)
            done = min(done + size, total)
            held = sum(part.nbytes for part in values)
            waited = time.monotonic() - began
            full = held >= embeddings.BLOCK_BYTES or waited > SHARD_SECONDS
            if full or stop.requested or done == total:
                names = list(map(source.name_of, index))
                bad = [(one.name, one.why) for one in met if one.index < done]
                met[:] = [one for one in met if one.index >= done]
                partial.write(start, done, np.concatenate(values), names, bad)
                start, values, index, began = done, [], [], time.monotonic()
            if stop.requested and done < total:
                raise Interrupted(
                    f"stopped after {done:,} of {counted(total, 'image')}; the same command goes "
                    "on from there"
                )


def checked(values: np.ndarray, index: np.ndarray, source: Source) -> np.ndarray:
    """Return the values; NumericsError, which names the image, if some are not finite."""
    finite = np.isfinite(values).reshape(len(values), math.prod(values.shape[1:])).all(axis=1)
    if finite.all():
        return values
    name = source.name_of(int(index[np.argmin(finite)]))
    hint = "; try --dtype=float32" if values.dtype == np.float16 else ""
    raise NumericsError(f"features of {name} are not finite in {values.dtype}{hint}")
