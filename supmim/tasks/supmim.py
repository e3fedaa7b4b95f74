"""Labels and masked image tokens: the task of arXiv 2312.00950.

Shapes: B batch, S image side, N tokens, M predicted tokens, C classes, K codes.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim import losses, masking, metrics, models, tokenizers
from supmim.data import augment, mixing
from supmim.data.images import VIEW, Images
from supmim.data.sources import evenly
from supmim.models import supmim as supmim_model
from supmim.workdir import holds_run

STREAMS = ("mixing", "mask", "class pass", "MIM pass")  # the order is part of a run: append only
KEPT = ("label", "valid", "target_ids")  # of a raw batch, in a prepared one
FIT_CHUNK = 512  # images that are moved at once for the tokenizer


class SupMIM:
    """total = class_weight * class_loss + mim_weight * mim_loss."""

    def __init__(self, config: Any, tokenizer: tokenizers.Tokenizer | None) -> None:
        self.config, self.frozen = config, tokenizer
        self.model: models.supmim.SupMIM = supmim_model.create(config)
        self.class_weight, self.mim_weight = config.class_weight, config.mim_weight
        self.grid = config.data.image_size // config.encoder.patch_size

    def init(self, rng: jax.Array) -> Any:
        """Parameters of encoder, classifier and, unless mim_weight is 0, decoder."""
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        return self.model.init(rng, image, self.draw_mask(rng, 1))["params"]

    def fingerprint(self) -> dict[str, str]:
        """The tokenizer, if there is one: other ids would be another training."""
        return {} if self.frozen is None else {"tokenizer": self.frozen.fingerprint()}

    def draw_mask(self, rng: jax.Array, batch_size: int) -> masking.TokenMask:
        """One mask per image, as config.mim says."""
        mim = self.config.mim
        return masking.draw(
            rng, batch_size, self.grid, masking=mim.masking, hidden=mim.hidden,
            mask_ratio=mim.mask_ratio, block_min=mim.block_min, unit=mim.unit,
            ratio_mean=mim.ratio_mean, ratio_std=mim.ratio_std,
        )  # fmt: skip

    def tokenize(self, frozen: tokenizers.Tokenizer | None, batch: dict) -> dict:
        """Raw batch -> the same with target_ids [B, N] of the MIM view at the tokenizer's size."""
        if frozen is None:
            return batch
        return batch | {"target_ids": frozen.encode(self.view(batch, shown_to_tokenizer(batch)))}

    def view(self, batch: dict, image: jax.Array) -> jax.Array:
        """Raw batch, its uint8 images of any size -> their MIM view, in [0, 1]."""
        return augment.geometry(self.keys(batch), augment.to_float(image), self.config.data)

    def keys(self, batch: dict) -> jax.Array:
        """[B] keys of the examples."""
        return augment.example_keys(self.config.data.seed, batch["epoch"], batch["index"])

    def prepare(self, batch: dict) -> dict:
        """Raw batch -> views [B, S, S, C], in [0, 1]; the target_ids of the MIM view stay.

        `image` is the MIM view, or without MIM the class view; `class_image` is the class view
        where it is another: an array under two names would be two in memory.
        """
        view = self.view(batch, batch["image"])
        class_view = augment.class_view(self.keys(batch), view, self.config.data)
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
            code_logits = self.apply(
                "predict_tokens", params, batch["image"], token_mask, rng=mim_rng
            )
        elif token_mask is not None:
            logits, code_logits = self.apply(
                "classify_and_predict", params, image, token_mask, rng=class_rng
            )
        loss, totals = self.class_terms(logits, target, batch)
        if token_mask is not None:
            mim_loss, mim_totals = self.mim_terms(code_logits, token_mask, batch)
            loss, totals = loss + mim_loss, totals | mim_totals
        return loss, totals | {"loss": metrics.scalar(loss)}

    def apply(self, method: str, params: Any, image: jax.Array, *args, rng: jax.Array) -> Any:
        """One training pass over images in [0, 1]."""
        rngs = dict(zip(("dropout", "stochastic_depth"), jax.random.split(rng), strict=True))
        return self.model.apply(
            {"params": params}, to_input(image), *args, train=True, rngs=rngs, method=method
        )

    def class_terms(self, logits: jax.Array, target: jax.Array, batch: dict):
        """[B, C], [B, C] -> weighted class loss () and its metrics."""
        loss = losses.CLASS_LOSSES[self.config.classifier.loss](logits, target)
        correct = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
        loss = metrics.mean(loss, batch["valid"])
        totals = {"class_loss": loss, "train_top1": metrics.mean(correct, batch["valid"])}
        return self.class_weight * loss.compute(), totals

    def mim_terms(self, code_logits: jax.Array, token_mask: masking.TokenMask, batch: dict):
        """[B, M, K] -> weighted token loss () and its metrics."""
        ids = token_mask.ids_predict
        target_ids = masking.take_tokens(batch["target_ids"], ids)
        mask = masking.take_tokens(token_mask.mask, ids)
        loss = losses.token_cross_entropy(
            code_logits, target_ids, mask, self.config.mim.label_smoothing
        )
        correct = (code_logits.argmax(axis=-1) == target_ids).astype(jnp.float32)
        loss = metrics.mean(loss, batch["valid"])
        totals = {
            "mim_loss": loss,
            "token_accuracy": metrics.mean(losses.masked_mean(correct, mask), batch["valid"]),
            **metrics.code_metrics(
                batch["target_ids"], self.config.tokenizer.codebook_size, batch["valid"]
            ),
        }
        return self.mim_weight * loss.compute(), totals

    def after_update(self, params: Any, totals: dict) -> tuple[Any, dict]:
        """Gradients change all there is."""
        return params, totals

    def predict(self, params: Any, batch: dict) -> dict:
        """Raw batch -> logits [B, C] and embedding [B, D] of whole images."""
        image = to_input(augment.to_float(batch["image"]))
        logits, encoded = self.model.apply({"params": params}, image, method="classify")
        return {"logits": logits, "embedding": encoded.embedding}

    def tokenize_whole(self, frozen: tokenizers.Tokenizer, batch: dict) -> dict:
        """Raw batch -> the same with target_ids [B, N] of its images as they are."""
        image = augment.to_float(shown_to_tokenizer(batch))
        return batch | {"target_ids": frozen.encode(image)}

    def fill_in(self, params: Any, batch: dict) -> dict:
        """Tokenized batch -> its target_ids, the mask drawn for it by index, and ids filled in.

        All [B, N]; filled_ids are the targets where the patch is visible, else predictions. With
        the batch's index and valid [B].
        """
        image, target_ids = augment.to_float(batch["image"]), batch["target_ids"]
        token_mask = jax.vmap(lambda key: self.draw_mask(key, 1))(self.keys(batch))
        token_mask = jax.tree.map(lambda x: x[:, 0], token_mask)
        code_logits = self.model.apply(
            {"params": params}, to_input(image), token_mask, method="predict_tokens"
        )
        rows = jnp.arange(len(image))[:, None]
        filled = target_ids.at[rows, token_mask.ids_predict].set(code_logits.argmax(axis=-1))
        filled = jnp.where(token_mask.mask > 0, filled, target_ids)
        of_batch = {name: batch[name] for name in ("index", "valid")}
        return of_batch | {
            "target_ids": target_ids, "mask": token_mask.mask, "filled_ids": filled
        }  # fmt: skip


def stream(rng: jax.Array, purpose: str) -> jax.Array:
    """The key of one purpose within a step."""
    return jax.random.fold_in(rng, STREAMS.index(purpose))


def shown_to_tokenizer(batch: dict) -> jax.Array:
    """Its images of a raw batch: of a size of their own, where they have one."""
    return batch["tokenizer_image"] if "tokenizer_image" in batch else batch["image"]


def to_input(image: jax.Array) -> jax.Array:
    """[0, 1] -> [-1, 1], what the encoder takes."""
    return 2 * image - 1


def abstract(config: Any) -> SupMIM:
    """The task of a config without data: enough to trace and compile it."""
    return SupMIM(config, tokenizers.abstract(config) if config.mim_weight else None)


def create(config: Any, images: Images, workdir: Path) -> SupMIM:
    """The task of a run; its tokenizer is in the workdir, or is fitted on the images and put there.

    It is fitted on MIM views of the first epoch, which is what it will be asked to encode.
    """
    if not config.mim_weight:
        return SupMIM(config, None)

    def views() -> np.ndarray:
        count = min(config.tokenizer.fit_images, len(images))
        move = jax.jit(functools.partial(augment.geometry, data=config.data))

        def view(index: np.ndarray) -> np.ndarray:
            keys = augment.example_keys(config.data.seed, np.zeros_like(index), index)
            shown = shown_to_tokenizer(images.read(index))
            return np.asarray(move(keys, augment.to_float(shown)))

        index = evenly(len(images), count).astype(np.int32)
        parts = np.split(index, range(FIT_CHUNK, count, FIT_CHUNK))
        return np.concatenate([view(part) for part in parts])

    made_from = {
        "tokenizer": config.tokenizer.to_dict(),
        "data": {name: config.data.to_dict()[name] for name in ("seed", *VIEW, *augment.GEOMETRY)},
        "source": images.source.fingerprint(),
    }
    tokenizer = tokenizers.load_or_fit(
        config, workdir / "tokenizer", made_from, views, needed=holds_run(workdir)
    )
    return SupMIM(config, tokenizer)
