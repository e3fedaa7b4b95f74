"""Labels and masked image tokens: the method of arXiv 2312.00950.

Shapes: B batch, S image side, N tokens, M predicted tokens, C classes.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim import losses, masking, metrics, tokenizers
from supmim.config import Config
from supmim.data.augment import mixing, views
from supmim.data.images import Images
from supmim.data.raw import Raw
from supmim.data.sources import joined
from supmim.metrics import Metrics
from supmim.models import supmim as networks
from supmim.target_ids import identity
from supmim.tasks import filling, masked_steps, probe, targets
from supmim.tasks.base import Drawn, Prepared, Step, Task, Terms
from supmim.tokenizers import fitting, inputs
from supmim.workdir.files import holds_run

# The order is part of a run: append only.
STREAMS = ("mixing", "mask", "class pass", "MIM pass", "class mask")
MASKED = ("mim_view", "target_ids", "token_mask", "valid")  # fields that the masked pass uses


class SupMIM(Task):
    """total = class_weight * class_loss + mim_weight * mim_loss.

    digest: of the tokenizer. total_steps: of the training; if None, each step has a masked pass.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: tokenizers.Tokenizer | None,
        digest: str = "",
        total_steps: int | None = None,
    ) -> None:
        self.config, self.frozen, self.digest = config, tokenizer, digest
        self.fixed = ("encoder",) if config.optimizer.frozen == "encoder" else ()
        self.target = targets.create(config)
        self.model = networks.create(config, self.target.size)
        self.class_weight, self.mim_weight = config.class_weight, config.mim_weight
        if self.model.decoder is None:
            self.arm = self.labels_only
        else:
            two = self.two_passes if config.classifies else self.masked_only
            self.arm = {"one": self.one_pass, "two": two}[config.mim.passes]
            self.masked_steps = masked_steps.of_training(config.mim, total_steps)

    @classmethod
    def abstract(cls, config: Config, frozen: bool = True) -> "SupMIM":
        has_tokenizer = frozen and config.has_tokenizer
        return cls(config, tokenizers.abstract(config) if has_tokenizer else None)

    @classmethod
    def create(cls, config: Config, images: Images, workdir: Path) -> "SupMIM":
        """See Task. The tokenizer is that of config.tokenizer.path, or of the cached targets.

        Otherwise it is in the workdir, or it is fitted and put there.
        """
        total_steps = config.num_steps(len(joined.labelled(images.source)))
        if not config.has_tokenizer:
            return cls(config, None, total_steps=total_steps)
        tokenizer = tokenizers.load_or_fit(
            identity.with_tokenizer(config),
            workdir / "tokenizer",
            fitting.made_from(config, images),
            lambda: fitting.fit(config, images),
            needed=holds_run(workdir),
        )
        return cls(config, tokenizer, tokenizer.fingerprint(), total_steps)

    def init(self, rng: jax.Array) -> Any:
        """See Task: encoder, classifier and, unless mim_weight is 0, decoder."""
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        return self.model.init(rng, image, self.draw_mask(rng, 1))["params"]

    def fingerprint(self) -> dict[str, str]:
        """See Task: the tokenizer, since other ids would change the training."""
        return {"tokenizer": self.digest} if self.digest else {}

    # From a raw batch to a drawn one.

    def tokenize(self, frozen: tokenizers.Tokenizer | None, batch: Raw) -> Raw:
        """See Task: the ids of the MIM view at the tokenizer's size."""
        if frozen is None or "target_ids" in batch:
            return batch
        return {**batch, "target_ids": frozen.encode(self.mim_view(batch, inputs.crops(batch)))}

    def mim_view(self, batch: Raw, image: jax.Array) -> jax.Array:
        """Return the MIM view, in [0, 1], of the uint8 images, of any size, of a raw batch."""
        return views.geometry(self.keys(batch), views.to_float(image), self.config.data)

    def keys(self, batch: Raw) -> jax.Array:
        """Return the random keys [B] of the examples."""
        return views.example_keys(self.config.data.seed, batch["epoch"], batch["index"])

    def prepare(self, batch: Raw) -> Prepared:
        """See Task; images without labels have no class view."""
        mim_view, valid = self.mim_view(batch, batch["image"]), batch["valid"]
        keys, image, label, class_valid = masking.take_rows(
            (self.keys(batch), mim_view, batch["label"], valid), self.config.labelled_share
        )
        class_view = views.class_view(keys, image, self.config.data)
        class_valid = None if class_valid is valid else class_valid
        labels = {"label": label, "class_valid": class_valid, "valid": valid}
        if self.model.decoder is None:
            return Prepared(class_view, **labels)
        other = None if class_view is mim_view else class_view
        target_ids = batch.get("target_ids")
        return Prepared(other, mim_view=mim_view, target_ids=target_ids, **labels)

    def draw(self, batch: Prepared, rng: jax.Array) -> Drawn:
        """See Task: mixed class views with their targets, and the masks of each image."""
        head, data = self.config.classifier, self.config.data
        target = losses.one_hot(batch.label, head.num_classes, head.label_smoothing)
        image = batch.mim_view if batch.class_view is None else batch.class_view
        if data.mixup or data.cutmix:
            mix_rng = stream(rng, "mixing")
            rates = data.mixup, data.cutmix
            image, target = mixing.mix(mix_rng, image, target, of_classes(batch), *rates)
        token_mask = class_mask = None
        if self.model.decoder is not None:
            token_mask = self.draw_mask(stream(rng, "mask"), len(batch.mim_view))
        keep, grid = self.config.class_pass.keep, self.config.grid
        if keep < 1:
            class_mask = masking.keep_some(stream(rng, "class mask"), len(image), grid, keep)
        prepared = vars(batch) | {"class_view": image}
        masks = {"class_mask": class_mask, "token_mask": token_mask}
        return Drawn(**prepared, **masks, class_target=target)

    def draw_mask(self, rng: jax.Array, batch_size: int) -> masking.TokenMask:
        """Draw one mask per image, as config.mim says."""
        return masking.draw(rng, batch_size, self.config.grid, self.config.mim)

    # The loss, one function for each arm.

    def loss_fn(self, params: Any, batch: Drawn, rng: jax.Array, step: Step = 0) -> Terms:
        loss, totals = self.arm(params, batch, rng, step)
        return loss, totals | {"loss": metrics.scalar(loss)}

    def labels_only(self, params: Any, batch: Drawn, rng: jax.Array, step: Step) -> Terms:
        """The baseline: the class loss on the unmasked image."""
        return self.class_terms(self.class_pass(params, batch, rng), batch)

    def two_passes(self, params: Any, batch: Drawn, rng: jax.Array, step: Step) -> Terms:
        """The class loss on unmasked images and, in the masked steps, the token loss."""
        logits = self.class_pass(params, batch, rng)
        masked = functools.partial(self.masked_pass, params, batch, logits, rng)
        mim_terms = masked_steps.within(self.masked_steps, step, masked)
        return added(self.class_terms(logits, batch), mim_terms)

    def masked_only(self, params: Any, batch: Drawn, rng: jax.Array, step: Step) -> Terms:
        """The token loss alone, in the masked steps: no labels, and no classification."""
        masked = functools.partial(self.masked_pass, params, batch, None, rng)
        return masked_steps.within(self.masked_steps, step, masked)

    def one_pass(self, params: Any, batch: Drawn, rng: jax.Array, step: Step) -> Terms:
        """Both losses on one masked image: cheaper, and without mixing."""
        image, rng = batch.class_view, stream(rng, "class pass")
        logits, predicted = self.apply(
            "classify_and_predict", params, image, batch.token_mask, rng=rng
        )
        return added(self.class_terms(logits, batch), self.mim_terms(predicted, batch))

    def class_pass(self, params: Any, batch: Drawn, rng: jax.Array) -> jax.Array:
        """Return class logits [B, C] of unmasked images, of which some patches may be left out."""
        seen, rng = (batch.class_view, batch.class_mask), stream(rng, "class pass")
        return self.apply("classify", params, *seen, rng=rng)[0]

    def masked_pass(
        self, params: Any, batch: Drawn, logits: jax.Array | None, rng: jax.Array
    ) -> Terms:
        """The token loss on some rows, and the loss of the soft targets, logits [B, C]."""
        masked = {name: vars(batch)[name] for name in MASKED}
        masked, logits = masking.take_rows((masked, logits), self.config.mim.rows)
        batch = Drawn(**vars(batch) | masked)
        seen, rng = (batch.mim_view, batch.token_mask), stream(rng, "MIM pass")
        if logits is None or not self.config.mim.soft_target_weight:
            return self.mim_terms(self.apply("predict_tokens", params, *seen, rng=rng), batch)
        masked, predicted = self.apply("classify_and_predict", params, *seen, rng=rng)
        soft_terms = self.soft_target_terms(masked, logits, batch)
        return added(self.mim_terms(predicted, batch), soft_terms)

    def apply(self, method: str, params: Any, image: jax.Array, *args: Any, rng: jax.Array) -> Any:
        """Run one training pass over images in [0, 1]; a fixed encoder works as in inference."""
        dropout_rng, depth_rng = jax.random.split(rng)
        rngs = {"dropout": dropout_rng, "stochastic_depth": depth_rng}
        return self.model.apply(
            {"params": params},
            views.to_input(image),
            *args,
            train=not self.fixed,
            rngs=rngs,
            method=method,
        )

    def class_terms(self, logits: jax.Array, batch: Drawn) -> Terms:
        """Return the weighted class loss of logits [B, C], and its metrics."""
        loss = losses.CLASS_LOSSES[self.config.classifier.loss](logits, batch.class_target)
        correct = (logits.argmax(axis=-1) == batch.label).astype(jnp.float32)
        valid = of_classes(batch)
        loss = metrics.mean(loss, valid)
        totals: Metrics = {"class_loss": loss, "train_top1": metrics.mean(correct, valid)}
        return self.class_weight * loss.compute(), totals

    def soft_target_terms(self, masked: jax.Array, logits: jax.Array, batch: Drawn) -> Terms:
        """Return the weighted loss of a masked pass's logits [B, C], and its metric.

        The target is the prediction of the full pass, without gradient (MaskSub, arXiv 2306.11339).
        logits: [B, C], those of the full pass.
        """
        kind = self.config.classifier.loss
        target = jax.lax.stop_gradient(losses.PROBABILITIES[kind](logits))
        loss = metrics.mean(losses.CLASS_LOSSES[kind](masked, target), batch.valid)
        return self.config.mim.soft_target_weight * loss.compute(), {"soft_target_loss": loss}

    def mim_terms(self, predicted: jax.Array, batch: Drawn) -> Terms:
        """Return the weighted loss of predictions [B, M, values of a patch], and its metrics."""
        ids = batch.token_mask.ids_predict
        target = self.target.of(batch.mim_view, batch.target_ids)
        target = masking.take_tokens(target, ids)
        mask = masking.take_tokens(batch.token_mask.mask, ids)
        weight = mask if self.config.mim.loss_on == "hidden" else jnp.ones_like(mask)
        loss = metrics.mean(self.target.loss(predicted, target, weight), batch.valid)
        totals = {"mim_loss": loss, **self.target.totals(predicted, target, mask, batch)}
        return self.mim_weight * loss.compute(), totals

    # Evaluation, of whole images.

    def classify(
        self, params: Any, batch: Raw, taps: tuple[int, ...] = ()
    ) -> tuple[jax.Array, Any]:
        """Return logits [B, C] and the models.encoder.Encoded of a raw batch."""
        image = views.to_input(views.to_float(batch["image"]))
        return self.model.apply({"params": params}, image, taps=taps, method="classify")

    def predict(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        logits, encoded = self.classify(params, batch)
        return {"logits": logits, "embedding": encoded.embedding}

    def probe_features(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        """See Task; the features of tasks.probe."""
        encoder = self.config.encoder
        _, encoded = self.classify(params, batch, probe.taps(encoder))
        return {"features": probe.features(encoded, params["encoder"]["norm"], encoder)}

    def patch_tokens(self, params: Any, batch: Raw) -> jax.Array:
        return self.classify(params, batch)[1].latent

    def tokenize_whole(self, frozen: tokenizers.Tokenizer | None, batch: Raw) -> Raw:
        if frozen is None:
            return batch
        image = views.to_float(inputs.crops(batch))
        return {**batch, "target_ids": frozen.encode(image)}

    def filled(self, params: Any, batch: Raw) -> filling.Filled:
        """Fill in the images of a batch; the mask of an image depends on its index alone."""
        token_mask = jax.vmap(lambda key: self.draw_mask(key, 1))(self.keys(batch))
        token_mask = jax.tree.map(lambda x: x[:, 0], token_mask)
        image = views.to_float(batch["image"])
        return filling.fill_in(
            self.model, params, self.target, image, batch.get("target_ids"), token_mask
        )

    def fill_in(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        filled = self.filled(params, batch)
        scores = self.target.scores(filled.target, filled.filled, filled.mask)
        return {"index": batch["index"], "valid": batch["valid"], **scores}

    def fill_in_results(self, scores: dict[str, np.ndarray]) -> dict[str, float]:
        return self.target.results(scores)

    def pictures(self, params: Any, frozen: Any, batch: Raw) -> dict[str, Any]:
        filled = self.filled(params, self.tokenize_whole(frozen, batch))
        image = views.to_float(batch["image"])
        drawn = self.target.pictures(frozen, image, filled.target, filled.filled)
        return {"mask": filled.mask, "pictures": dict(zip(self.target.columns, drawn, strict=True))}


def stream(rng: jax.Array, purpose: str) -> jax.Array:
    """Return the key of one purpose within a step."""
    return jax.random.fold_in(rng, STREAMS.index(purpose))


def of_classes(batch: Prepared | Drawn) -> jax.Array:
    """Return which images of the class pass are valid, [L]."""
    return batch.valid if batch.class_valid is None else batch.class_valid


def added(first: Terms, second: Terms) -> Terms:
    """Return the sum of two losses, and the metrics of both."""
    return first[0] + second[0], first[1] | second[1]
