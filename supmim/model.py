"""A trained encoder for one's own code: embeddings, features of patches, classes.

Shapes: n images, S side of an image as the network takes it, C channels, D width, G side of the
grid of patches, K classes.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from supmim import sharding
from supmim.config import Config, options
from supmim.data import images as images_lib
from supmim.data import pipeline
from supmim.data.augment import views
from supmim.data.images import Bad, Images
from supmim.data.sources.given import Given, GivenImages
from supmim.errors import ConfigError, DataError
from supmim.models import layers
from supmim.models.classifier import Classifier
from supmim.models.encoder import Encoder
from supmim.runtime.progress import doing

BATCH_SIZE = 256
FEW = 1024  # up to this many images, no reader processes are started
Progress = Callable[[int, int], None]  # (images done, images in all)


class Output(NamedTuple):
    """embedding: float32 [n, D]. patch_features: [n, G, G, D]. logits: [n, K] or None."""

    embedding: jax.Array
    patch_features: jax.Array
    logits: jax.Array | None


class Model:
    """An encoder, with its classifier if there is one.

    config: of the run, or as imported. params: {"encoder": ..., "classifier": ...}, unrolled.
    class_names: of the logits; empty without a classifier. name: what it was loaded from. imported:
    whether the config lacks the options of its training. ignored: unused contents of its file.
    """

    def __init__(
        self,
        config: Config,
        params: dict[str, Any],
        class_names: Sequence[str],
        name: str,
        imported: bool = False,
        ignored: Sequence[str] = (),
    ) -> None:
        plain = options.changed(
            config.encoder, scan=False, remat="none", attention="xla", dropout=0.0
        )
        self.config, self.name, self.imported = config, name, imported
        self.ignored = tuple(ignored)
        self.class_names = tuple(class_names) if "classifier" in params else ()
        self._encoder = Encoder(plain, config.grid)
        head = config.classifier
        self._classifier = Classifier(head.num_classes, rep_size=head.rep_size)
        self._given, self._programs = params, {}

    @functools.cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return sharding.make_mesh(-1, 1, 1, jax.local_devices())

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """The parameters on all local devices, which JAX looks for when they are first used."""
        given, self._given = self._given, {}
        return jax.device_put(given, sharding.replicated(self._mesh))

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of names, shapes and values of the parameters."""
        found = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            array = np.asarray(leaf)
            found.update(f"{sharding.path_name(path)} {array.dtype} {array.shape}\0".encode())
            found.update(array.tobytes())
        return found.hexdigest()

    @property
    def num_parameters(self) -> int:
        """Number of parameters of encoder and classifier."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def positions(self) -> jax.Array:
        """Return the positions [G * G, D] of the grid, learned or fixed."""
        sizes, grid = self.config.encoder, self.config.grid
        fixed = layers.sincos_positions(sizes.position_grid or grid, sizes.width)
        table = self.params["encoder"].get("positions", fixed)
        return layers.resample_positions(jnp.asarray(table), grid)

    def in_float32(self) -> "Model":
        """Return the model with arithmetic in float32."""
        encoder = options.changed(self.config.encoder, dtype="float32")
        config = dataclasses.replace(self.config, encoder=encoder)
        return Model(config, self.params, self.class_names, self.name, self.imported, self.ignored)

    def apply(self, params: Any, image: jax.Array) -> Output:
        """Return the outputs for images [n, S, S, C] as `preprocess` returns them, or one of them.

        A pure function, for jit, grad and vmap; params: such as self.params.
        """
        if image.ndim == 3:
            return jax.tree.map(lambda x: x[0], self.apply(params, image[None]))
        encoded: Any = self._encoder.apply({"params": params["encoder"]}, image)
        patches = encoded.latent.astype(jnp.float32)
        side = round(patches.shape[1] ** 0.5)
        grid = patches.reshape(-1, side, side, patches.shape[-1])
        logits: Any = None
        if "classifier" in params:
            logits = self._classifier.apply({"params": params["classifier"]}, encoded.embedding)
        return Output(encoded.embedding, grid, logits)

    def preprocess(self, images: np.ndarray | Sequence[Given]) -> np.ndarray:
        """Return images as the network takes them: float32 [n, S, S, C], in [-1, 1].

        The view is that of evaluation. images: uint8 [n, H, W, 1 or 3], or a list of arrays, PIL
        images and paths of any sizes. DataError if one cannot be read.
        """
        seen = self.given(images)
        found, bad = seen.take(range(len(seen)), np.zeros(len(seen), int))
        _refuse(bad.values())
        return np.asarray(views.to_input(views.to_float(jnp.asarray(found["image"]))))

    def embed(
        self,
        images: np.ndarray | Sequence[Given],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the embeddings [n, D] of images, as `preprocess` takes them.

        progress: called with (done, total) after each batch, instead of a bar on the terminal.
        """
        return self._all("embedding", images, batch_size, progress)

    def patch_features(
        self,
        images: np.ndarray | Sequence[Given],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the features of patches after the last norm, [n, G, G, D]. See embed."""
        return self._all("patch_features", images, batch_size, progress)

    def predict(
        self,
        images: np.ndarray | Sequence[Given],
        top: int = 5,
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each image, [(name, probability), ...]. See embed.

        ConfigError if the model has no classifier.
        """
        if top < 1:
            raise ConfigError(f"top={top} is not a number of classes; it must be 1 or more")
        probabilities = self._all("probabilities", images, batch_size, progress)
        return [best_classes(row, self.class_names, top) for row in probabilities]

    def given(self, images: np.ndarray | Sequence[Given]) -> Images:
        """Return images as `preprocess` takes them, in the view of evaluation."""
        return self.images(GivenImages(images, self.config.data.max_pixels))

    def images(self, source: Any) -> Images:
        """Return a source's images in the view of evaluation."""
        return images_lib.evaluation(source, self.config.data)

    def outputs(
        self,
        what: str,
        seen: Images,
        *,
        batch_size: int = BATCH_SIZE,
        workers: int = 0,
        note: Callable[[Iterable[Bad]], None],
        start: int = 0,
    ) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """Yield (index, values) of the readable images of each batch, in order, from `start` on.

        what: embedding, patch_features or probabilities. workers: see pipeline.Readers; -1: as
        many as help. note: receives the unreadable images. start: a multiple of the batch size.
        """
        if what == "probabilities" and "classifier" not in self.params:
            raise ConfigError(f"{self.name} has no classifier, so it cannot predict classes")
        if what not in self._programs:
            self._programs[what] = jax.jit(functools.partial(self._program, what))
        if workers < 0:
            workers = pipeline.num_workers(seen.source, -1) if len(seen) - start > FEW else 0
        program, readers = self._programs[what], pipeline.Readers(workers, note)
        size = self.padded(min(batch_size, len(seen)))
        with contextlib.closing(
            pipeline.eval_batches(seen, size, self._mesh, readers, start // size)
        ) as batches:
            # One batch ahead, so that devices compute while the host waits for an earlier result.
            last: Any = None
            for batch in batches:
                now = batch["index"], batch["valid"], program(self.params, batch["image"])
                if last is not None:
                    yield _kept(*last)
                last = now
            if last is not None:
                yield _kept(*last)

    def padded(self, size: int) -> int:
        """Return the padded size of a batch: few sizes are compiled, and all devices work."""
        devices = self._mesh.size
        return devices * (1 << max(0, -(-size // devices) - 1).bit_length())

    def _program(self, what: str, params: Any, image: jax.Array) -> jax.Array:
        out = self.apply(params, views.to_input(views.to_float(image)))
        if what != "probabilities":
            return out._asdict()[what]
        assert out.logits is not None
        sigmoid = self.config.classifier.loss == "sigmoid"
        return jax.nn.sigmoid(out.logits) if sigmoid else jax.nn.softmax(out.logits)

    def _all(
        self,
        what: str,
        images: np.ndarray | Sequence[Given],
        batch_size: int,
        callback: Progress | None,
    ) -> np.ndarray:
        seen, done = self.given(images), 0
        parts = self.outputs(what, seen, batch_size=batch_size, note=_refuse)
        found = []
        bar = doing(what, len(seen)) if callback is None else contextlib.nullcontext()
        with bar as advance:
            for index, values in parts:
                found.append(values)
                done += len(index)
                if advance is not None:
                    advance(len(index))
                if callback is not None:
                    callback(done, len(seen))
        return np.concatenate(found)


def _kept(index: jax.Array, valid: jax.Array, values: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the index and the values of valid rows, on the host."""
    rows = np.asarray(valid) > 0
    return np.asarray(index)[rows], np.asarray(values)[rows]


def _refuse(met: Iterable[Bad]) -> None:
    for bad in met:
        raise DataError(f"{bad.name} cannot be read: {bad.why}")


def best_classes(
    probabilities: np.ndarray, class_names: tuple[str, ...], top: int
) -> list[tuple[str, float]]:
    """Return the `top` most probable of the classes [K], [(name, probability), ...]."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(class_names[i], float(probabilities[i])) for i in order]
