"""Labels and masked image tokens: the task of arXiv 2312.00950.

Shapes: B batch, S image side, N tokens, M predicted tokens, C classes.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from supmim import config as config_lib
from supmim import losses, masking, metrics, models, tokenizers
from supmim.config import Config, options
from supmim.data.augment import mixing, views
from supmim.data.images import Images
from supmim.models import supmim as supmim_model
from supmim.target_ids import identity
from supmim.tasks import probe, targets
from supmim.tokenizers import inputs
from supmim.workdir.files import holds_run

STREAMS = ("mixing", "mask", "class pass", "MIM pass")  # the order is part of a run: append only
KEPT = ("label", "valid", "target_ids")  # of a raw batch, in a prepared one


class SupMIM:
    """total = class_weight * class_loss + mim_weight * mim_loss. digest: of the tokenizer."""

    def __init__(
        self, config: Config, tokenizer: tokenizers.Tokenizer | None, digest: str = ""
    ) -> None:
        self.config, self.frozen, self.digest = config, tokenizer, digest
        self.fixed = ("encoder",) if config.optimizer.frozen == "encoder" else ()
        self.target = targets.create(config)
        self.model: models.supmim.SupMIM = supmim_model.create(config, self.target.size)
        self.class_weight, self.mim_weight = config.class_weight, config.mim_weight
        self.grid = config.data.image_size // config.encoder.patch_size

    def init(self, rng: jax.Array) -> Any:
        """Parameters of encoder, classifier and, unless mim_weight is 0, decoder."""
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        return self.model.init(rng, image, self.draw_mask(rng, 1))["params"]

    def fingerprint(self) -> dict[str, str]:
        """The tokenizer, if there is one: other ids would be another training."""
        return {"tokenizer": self.digest} if self.digest else {}

    def draw_mask(self, rng: jax.Array, batch_size: int) -> masking.TokenMask:
        """One mask per image, as config.mim says."""
        return masking.draw(rng, batch_size, self.grid, self.config.mim)

    def tokenize(self, frozen: tokenizers.Tokenizer | None, batch: dict) -> dict:
        """Raw batch -> the same with target_ids [B, N] of the MIM view at the tokenizer's size."""
        if frozen is None or "target_ids" in batch:
            return batch
        return batch | {"target_ids": frozen.encode(self.view(batch, inputs.shown(batch)))}

    def view(self, batch: dict, image: jax.Array) -> jax.Array:
        """Raw batch, its uint8 images of any size -> their MIM view, in [0, 1]."""
        return views.geometry(self.keys(batch), views.to_float(image), self.config.data)

    def keys(self, batch: dict) -> jax.Array:
        """[B] keys of the examples."""
        return views.example_keys(self.config.data.seed, batch["epoch"], batch["index"])

    def prepare(self, batch: dict) -> dict:
        """Raw batch -> views [B, S, S, C], in [0, 1]; the target_ids of the MIM view stay.

        `image` is the MIM view, or without MIM the class view; `class_image` is the class view
        where it is another: an array under two names would be two in memory.
        """
        view = self.view(batch, batch["image"])
        class_view = views.class_view(self.keys(batch), view, self.config.data)
        kept = {name: batch[name] for name in KEPT if name in batch}
        if self.model.decoder is None:
            return {"image": class_view, **kept}
        second = {} if class_view is view else {"class_image": class_view}
        return {"image": view, **second, **kept}

    def draw(self, batch: dict, rng: jax.Array) -> dict:
        """Adds the class view [B, S, S, C], its target [B, C], and a mask per image."""
        head, data = self.config.classifier, self.config.data
        target = losses.one_hot(batch["label"], head.num_classes, head.label_smoothing)
        image = batch["class_image"] if "class_image" in batch else batch["image"]
        if data.mixup or data.cutmix:
            mix_rng, valid = stream(rng, "mixing"), batch["valid"]
            image, target = mixing.mix(mix_rng, image, target, valid, data.mixup, data.cutmix)
        drawn = batch | {"class_image": image, "class_target": target}
        if self.model.decoder is not None:
            drawn["token_mask"] = self.draw_mask(stream(rng, "mask"), len(image))
        return drawn

    def loss_fn(self, params: Any, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
        """Weighted sum of the losses of a drawn batch, and totals of what is logged."""
        class_rng, mim_rng = stream(rng, "class pass"), stream(rng, "MIM pass")
        image, target = batch["class_image"], batch["class_target"]
        token_mask = None if self.model.decoder is None else batch["token_mask"]
        if token_mask is None or self.config.mim.passes == "two":
            logits, _ = self.apply("classify", params, image, rng=class_rng)
        if token_mask is not None and self.config.mim.passes == "two":
            predicted = self.apply(
                "predict_tokens", params, batch["image"], token_mask, rng=mim_rng
            )
        elif token_mask is not None:
            logits, predicted = self.apply(
                "classify_and_predict", params, image, token_mask, rng=class_rng
            )
        loss, totals = self.class_terms(logits, target, batch)
        if token_mask is not None:
            mim_loss, mim_totals = self.mim_terms(predicted, token_mask, batch)
            loss, totals = loss + mim_loss, totals | mim_totals
        return loss, totals | {"loss": metrics.scalar(loss)}

    def apply(self, method: str, params: Any, image: jax.Array, *args, rng: jax.Array) -> Any:
        """One training pass over images in [0, 1]; a fixed encoder works as in inference."""
        rngs = dict(zip(("dropout", "stochastic_depth"), jax.random.split(rng), strict=True))
        return self.model.apply(
            {"params": params}, to_input(image), *args, train=not self.fixed, rngs=rngs,
            method=method,
        )  # fmt: skip

    def class_terms(self, logits: jax.Array, target: jax.Array, batch: dict):
        """[B, C], [B, C] -> weighted class loss () and its metrics."""
        loss = losses.CLASS_LOSSES[self.config.classifier.loss](logits, target)
        correct = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
        loss = metrics.mean(loss, batch["valid"])
        totals = {"class_loss": loss, "train_top1": metrics.mean(correct, batch["valid"])}
        return self.class_weight * loss.compute(), totals

    def mim_terms(self, predicted: jax.Array, token_mask: masking.TokenMask, batch: dict):
        """[B, M, values of a patch] -> weighted loss of the target () and its metrics."""
        ids = token_mask.ids_predict
        target = masking.take_tokens(self.target.of(batch), ids)
        mask = masking.take_tokens(token_mask.mask, ids)
        loss = metrics.mean(self.target.loss(predicted, target, mask), batch["valid"])
        totals = {"mim_loss": loss, **self.target.totals(predicted, target, mask, batch)}
        return self.mim_weight * loss.compute(), totals

    def after_update(self, params: Any, totals: dict) -> tuple[Any, dict]:
        """Gradients change all there is."""
        return params, totals

    def predict(self, params: Any, batch: dict) -> dict:
        """Raw batch -> logits [B, C] and embedding [B, D] of whole images."""
        image = to_input(views.to_float(batch["image"]))
        logits, encoded = self.model.apply({"params": params}, image, method="classify")
        return {"logits": logits, "embedding": encoded.embedding}

    def probe_features(self, params: Any, batch: dict) -> dict:
        """Raw batch -> `features` [B, F] of whole images, as tasks.probe has them."""
        image, encoder = to_input(views.to_float(batch["image"])), self.config.encoder
        _, encoded = self.model.apply(
            {"params": params}, image, taps=probe.taps(encoder), method="classify"
        )
        return {"features": probe.features(encoded, params["encoder"]["norm"], encoder)}

    def patch_tokens(self, params: Any, batch: dict) -> jax.Array:
        """Raw batch -> patch tokens [B, N, D] of whole images, after the last norm."""
        image = to_input(views.to_float(batch["image"]))
        _, encoded = self.model.apply({"params": params}, image, method="classify")
        return encoded.latent

    def tokenize_whole(self, frozen: tokenizers.Tokenizer | None, batch: dict) -> dict:
        """Raw batch -> the same with target_ids [B, N] of its images as they are."""
        if frozen is None:
            return batch
        image = views.to_float(inputs.shown(batch))
        return batch | {"target_ids": frozen.encode(image)}

    def fill_in(self, params: Any, batch: dict) -> dict:
        """Tokenized batch of whole images -> the target's scores, with index and valid [B]."""
        of_batch = {name: batch[name] for name in ("index", "valid")}
        return of_batch | self.target.scores(*self.filled(params, batch))

    def filled(self, params: Any, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Target [B, N, ...], the same with answers where it is hidden, masks by index [B, N]."""
        image = views.to_float(batch["image"])
        token_mask = jax.vmap(lambda key: self.draw_mask(key, 1))(self.keys(batch))
        token_mask = jax.tree.map(lambda x: x[:, 0], token_mask)
        predicted = self.model.apply(
            {"params": params}, to_input(image), token_mask, method="predict_tokens"
        )
        target, rows = self.target.of(batch | {"image": image}), jnp.arange(len(image))[:, None]
        answers = target.at[rows, token_mask.ids_predict].set(self.target.answer(predicted))
        hidden = token_mask.mask.reshape(token_mask.mask.shape + (1,) * (target.ndim - 2)) > 0
        return target, jnp.where(hidden, answers, target), token_mask.mask

    def pictures(self, params: Any, frozen: tokenizers.Tokenizer | None, batch: dict) -> dict:
        """Raw batch of whole images -> mask [B, N], and pictures for the target's columns."""
        batch = self.tokenize_whole(frozen, batch)
        target, filled, mask = self.filled(params, batch)
        image = views.to_float(batch["image"])
        return {"mask": mask, "pictures": self.target.pictures(frozen, image, target, filled)}


def stream(rng: jax.Array, purpose: str) -> jax.Array:
    """The key of one purpose within a step."""
    return jax.random.fold_in(rng, STREAMS.index(purpose))


def to_input(image: jax.Array) -> jax.Array:
    """[0, 1] -> [-1, 1], what the encoder takes."""
    return 2 * image - 1


def abstract(config: Config) -> SupMIM:
    """The task of a config without data: enough to trace and compile it."""
    return SupMIM(config, tokenizers.abstract(config) if config.has_tokenizer else None)


def create(config: Config, images: Images, workdir: Path) -> SupMIM:
    """The task of a run; its tokenizer is that of config.tokenizer.path, or of its cached targets.

    Else it is in the workdir, or is fitted and put there: on MIM views of the first epoch, which is
    what it will be asked to encode.
    """
    if not config.has_tokenizer:
        return SupMIM(config, None)
    data = config_lib.flatten(config.data)
    moving = options.that_change("crop", "geometry")
    names = ["seed", *(path.removeprefix("data.") for path in moving)]
    made_from = {
        "tokenizer": config_lib.flatten(config.tokenizer),
        "data": {name: data[name] for name in names},
        "source": images.source.fingerprint(),
    }
    tokenizer = tokenizers.load_or_fit(
        identity.with_tokenizer(config),
        workdir / "tokenizer",
        made_from,
        lambda: inputs.first(config, images),
        needed=holds_run(workdir),
    )
    return SupMIM(config, tokenizer, tokenizer.fingerprint())
