"""`supmim search`: the images of a file of embeddings that are nearest to one image, by cosine."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from absl.flags import FlagValues

from supmim.config import Config
from supmim.errors import ConfigError, NumericsError
from supmim.interop import embeddings, load
from supmim.model import Model
from supmim.report import neighbours
from supmim.runtime import devices
from supmim.runtime.streams import printable
from supmim.workdir import files


def run(_: Config | None, flags: FlagValues) -> None:
    """Print rank, cosine and path of the nearest images, and draw them if asked to."""
    devices.check()
    picture = Path(flags.picture) if flags.picture else None
    if picture and (picture.suffix != ".png" or picture.is_dir()):
        raise ConfigError(f"--picture={picture} must be a file that ends in .png")
    stored = embeddings.read(Path(flags.embeddings))
    if len(stored.shape) != 2:
        raise ConfigError(
            f"{stored.file} holds features of patches, {list(stored.shape)}; to search, write "
            "embeddings: supmim embed --features=embedding"
        )
    model = load.load(flags.model)
    if stored.model != model.sha256:
        raise ConfigError(
            f"{stored.file} holds embeddings of another model: its parameters have the digest "
            f"{stored.model[:12]}..., those of {model.name} have {model.sha256[:12]}... Name the "
            "model that made the embeddings, or embed the images again"
        )
    if picture:
        files.make_folder(picture.parent, "--picture")
    query = model.embed([flags.query], progress=lambda done, total: None)[0]
    cosine, row = nearest(stored.blocks(), query, flags.top)
    paths = [str(path) for path in stored.path[row]]
    for rank, (similarity, path) in enumerate(zip(cosine, paths, strict=True), 1):
        print(f"{rank:3}  {similarity:7.4f}  {printable(path)}")
    if picture:
        draw(model, flags.query, cosine, paths, picture)


def nearest(
    blocks: Iterable[np.ndarray], query: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and rows of the `top` nearest, best first, of equal ones the first.

    blocks: float32 [m, D], one after the other. query: [D]. NumericsError for an embedding that is
    zero or not finite.
    """
    cosine, row, first = np.zeros(0), np.zeros(0, int), 0
    for block in blocks:
        length = np.linalg.norm(block, axis=1) * np.linalg.norm(query)
        if not (np.isfinite(length) & (length > 0)).all():
            raise NumericsError("an embedding is zero or not finite, so it has no cosine")
        cosine = np.concatenate([cosine, block @ query / length])
        row = np.concatenate([row, np.arange(first, first + len(block))])
        best = np.argsort(-cosine, kind="stable")[:top]
        cosine, row, first = cosine[best], row[best], first + len(block)
    return cosine, row


def draw(model: Model, query: str, cosine: np.ndarray, paths: list[str], file: Path) -> None:
    """Draw the query and the images that are files here, as the model sees them."""
    seen = model.given([query, *paths])
    found, bad = seen.take(range(len(seen)), np.zeros(len(seen), int))
    images = [None if row in bad else image for row, image in enumerate(found["image"])]
    named = zip(cosine, paths, strict=True)
    titles = [(f"{similarity:.3f}", Path(path).name) for similarity, path in named]
    neighbours.strip(file, query=found["image"][0], images=images[1:], titles=titles)
    for one in bad.values():
        print(f"not drawn   {printable(one.name)}: {printable(one.why)}")
    print(f"picture     {file}")
