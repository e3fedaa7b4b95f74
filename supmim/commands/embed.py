"""`supmim embed`: embeddings of a folder of images, or of any source, into one npz."""

from pathlib import Path

import numpy as np
from absl.flags import FlagValues

from supmim.config import Config
from supmim.data import pipeline, progress
from supmim.data.images import Bad, source_digest
from supmim.data.sources import given
from supmim.errors import ConfigError, DataError
from supmim.interop import embeddings, load
from supmim.model import BATCH_SIZE
from supmim.runtime import devices

SHARD = 32  # batches of a shard
FEATURES = {"embedding": "embedding", "patches": "patch_features"}
DTYPES = ("float32", "float16")
LISTED = 10


def run(_: Config | None, flags: FlagValues) -> None:
    """Write FILE.npz; what was written of it before is not computed again."""
    devices.prepare(flags.fake_devices, False)
    out = Path(flags.out)
    if flags.features not in FEATURES or flags.dtype not in DTYPES:
        raise ConfigError(
            f"--features is {' or '.join(FEATURES)} and --dtype is {' or '.join(DTYPES)}, not "
            f"{flags.features} and {flags.dtype}"
        )
    if out.suffix != ".npz":
        raise ConfigError(f"--out={out} must end in .npz")
    model = load.load(flags.model)
    source = given.find(flags.images, model.config.data)
    if not len(source):
        raise DataError(f"{source.name} holds no images")
    identity = {
        "model": model.sha256,
        "images": source_digest(source),
        "features": flags.features,
        "dtype": flags.dtype,
    }
    shards = embeddings.Shards(out, identity)
    seen, batch_size = model.images(source), model.padded(min(BATCH_SIZE, len(source)))
    rows = SHARD * batch_size
    count = -(-len(source) // rows)
    first = next((n for n in range(count) if not shards.holds(n)), count)
    met: list[Bad] = []
    parts = model.outputs(
        FEATURES[flags.features],
        seen,
        batch_size=batch_size,
        workers=pipeline.num_workers(source, -1),
        note=met.extend,
        start=first * rows,
    )
    with progress.bar("embed", len(source), first * rows) as advance:
        number, values, index = first, [], []
        for batch, (found, features) in enumerate(parts, first * SHARD):
            values.append(features.astype(flags.dtype))
            index.append(found)
            advance(batch_size)
            if batch % SHARD == SHARD - 1 or batch == -(-len(source) // batch_size) - 1:
                last = (number + 1) * rows
                told = [[bad.name, bad.why] for bad in met if bad.index < last]
                met = [bad for bad in met if bad.index >= last]
                shards.write(number, np.concatenate(values), np.concatenate(index), told)
                number, values, index = number + 1, [], []
    bad = shards.finish(count, source.path, model.sha256)
    for name, why in bad[:LISTED]:
        print(f"unreadable  {name}: {why}")
    more = f", {len(bad):,} unreadable images left out" if bad else ""
    print(f"written     {out}: {len(source) - len(bad):,} embeddings of {flags.features}{more}")
    print(f"search      supmim search --model={flags.model} --embeddings={out} --query=IMAGE")
