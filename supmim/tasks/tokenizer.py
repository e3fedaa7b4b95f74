"""Training of a VQGAN: reconstruction, codes and, if asked for, a discriminator.

Sources: "Neural Discrete Representation Learning" (arXiv 1711.00937), VQGAN (2012.09841), MaskGIT
(2202.04200). Shapes: B batch, S image side, C channels, h w latent grid, N = h w, D size of a code,
K codes.
"""

from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from supmim import metrics, tokenizers
from supmim.config import Config
from supmim.data.augment import views
from supmim.data.images import Images
from supmim.data.raw import Raw
from supmim.metrics import Metrics
from supmim.tasks.base import Drawn, Prepared, Step, Task, Terms
from supmim.tokenizers import codebook, losses, perceptual, quality, vqgan
from supmim.tokenizers.discriminators import DISCRIMINATORS

NETWORK = ("encoder", "quantizer", "decoder")
LOGIT_DECAY = 0.99  # decay of LeCAM's averages, arXiv 2104.03310


class TokenizerTraining(Task):
    """The losses of generator and discriminator in one sum, with one optimizer.

    The parameters of each are constants in the terms of the other. MaskGIT also gives both the
    same optimizer settings; clipping uses the norm of all gradients together. Averages that no
    gradient moves are in params["statistics"].
    """

    def __init__(self, config: Config, features: perceptual.Features | None) -> None:
        self.config, self.sizes, self.features = config, config.tokenizer, features
        self.network = cast(vqgan.VQGAN, tokenizers.abstract(config)).network
        self.num_tokens = (config.data.image_size // self.network.stride) ** 2
        self.discriminator = None
        if self.sizes.adversarial_weight:
            kind = DISCRIMINATORS[self.sizes.discriminator]
            self.discriminator = kind(self.sizes.discriminator_filters, self.network.dtype)

    @classmethod
    def abstract(cls, config: Config, frozen: bool = True) -> "TokenizerTraining":
        return cls(config, perceptual.zeros() if config.tokenizer.perceptual_weight else None)

    @classmethod
    def create(cls, config: Config, images: Images, workdir: Path) -> "TokenizerTraining":
        """See Task. CheckpointError if perceptual weights are asked for and cannot be used."""
        sizes, features = config.tokenizer, None
        if sizes.perceptual_weight:
            features = perceptual.load(Path(sizes.perceptual_weights), sizes.perceptual_sha256)
        return cls(config, features)

    def init(self, rng: jax.Array) -> Any:
        """See Task: encoder, quantizer, decoder, discriminator and statistics."""
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        params: Any = self.network.init(rng, image)["params"]
        kept = {}
        if self.counts_codes:
            kept["codes"] = codebook.initial_averages(params["quantizer"]["codebook"])
        if self.discriminator is not None:
            key = jax.random.fold_in(rng, 1)
            params["discriminator"] = self.discriminator.init(key, image, jnp.ones(1))["params"]
            kept |= {name: jnp.zeros(()) for name in ("updates", "real", "fake")}
        return params | ({"statistics": kept} if kept else {})

    @property
    def counts_codes(self) -> bool:
        """Whether codes are changed by statistics of their use, not by gradients alone."""
        return self.sizes.codebook == "ema" or self.sizes.revive_below > 0

    def prepare(self, batch: Raw) -> Prepared:
        """See Task: the MIM view alone."""
        data = self.config.data
        keys = views.example_keys(data.seed, batch["epoch"], batch["index"])
        image = views.geometry(keys, views.to_float(batch["image"]), data)
        return Prepared(mim_view=image, valid=batch["valid"])

    def draw(self, batch: Prepared, rng: jax.Array) -> Drawn:
        """See Task: which latents may replace unused codes."""
        candidate = None
        if self.counts_codes:
            candidate = codebook.candidates(rng, len(batch.mim_view), self.num_tokens)
        return Drawn(**vars(batch), candidate=candidate)

    def loss_fn(self, params: Any, batch: Drawn, rng: jax.Array, step: Step = 0) -> Terms:
        image, valid = batch.mim_view, batch.valid
        latents = self.apply(params, image, "latents").astype(jnp.float32)
        ids = self.apply(params, jax.lax.stop_gradient(latents), "quantize")
        codes = self.apply(params, ids, "codes")
        decoded = self.apply(params, losses.straight_through(latents, codes), "decode")

        terms = self.code_terms(params, latents, codes, valid)
        terms |= self.image_terms(image, decoded)
        if self.discriminator is not None:
            terms |= self.adversarial_terms(params, image, decoded, valid)
        means = {name: metrics.mean(value, valid) for name, value in terms.items()}
        loss: Any = sum(self.weight(name) * mean.compute() for name, mean in means.items())
        error = metrics.mean(quality.squared_error(image, decoded), valid)
        flat = ids.reshape(len(image), -1)
        totals: Metrics = {
            **means,
            "loss": metrics.scalar(loss),
            "psnr": metrics.psnr(error),
            **metrics.code_metrics(flat, self.sizes.codebook_size, valid),
        }
        if self.counts_codes:
            latents = latents.reshape(*flat.shape, -1)
            seen = codebook.statistics(
                latents, flat, batch.candidate, valid, self.sizes.codebook_size
            )
            totals["code_statistics"] = metrics.Sum(seen)
        return loss, totals

    def apply(self, params: Any, x: jax.Array, method: str) -> jax.Array:
        """Call a method of the network."""
        own = {name: params[name] for name in NETWORK}
        out: Any = self.network.apply({"params": own}, x, method=method)
        return out

    def weight(self, name: str) -> float:
        """Return the weight of a term in the loss; 0 if it is only logged."""
        sizes = self.sizes
        return {
            "reconstruction_loss": 1.0,
            "perceptual_loss": sizes.perceptual_weight,
            "commitment_loss": sizes.commitment_weight,
            "codebook_loss": 1.0,
            "entropy_loss": sizes.entropy_weight,
            "generator_loss": sizes.adversarial_weight,
            "discriminator_loss": 1.0,
            "r1_loss": sizes.r1_weight,
            "lecam_loss": sizes.lecam_weight,
        }.get(name, 0.0)

    def code_terms(
        self, params: Any, latents: jax.Array, codes: jax.Array, valid: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the losses [B] of latents and codes [B, h, w, D]."""
        terms = {"commitment_loss": losses.commitment(latents, codes)}
        book = params["quantizer"]["codebook"]
        if self.sizes.codebook == "gradient":
            terms["codebook_loss"] = losses.codebook(latents, codes)
        else:
            book = jax.lax.stop_gradient(book)
        if self.sizes.entropy_weight:
            entropy = losses.entropy(latents, book, valid, self.sizes.entropy_temperature)
            terms["entropy_loss"] = jnp.broadcast_to(entropy, valid.shape)
        return terms

    def image_terms(self, image: jax.Array, decoded: jax.Array) -> dict[str, jax.Array]:
        """Return the losses [B] of reconstructions [B, S, S, C]."""
        terms = {
            "reconstruction_loss": losses.RECONSTRUCTION[self.sizes.reconstruction](image, decoded)
        }
        if self.features is not None:
            terms["perceptual_loss"] = perceptual.distance(self.features, image, decoded)
        return terms

    def adversarial_terms(
        self, params: Any, image: jax.Array, decoded: jax.Array, valid: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the losses [B] of generator and discriminator, and their logits."""
        sizes, kept = self.sizes, params["statistics"]
        discriminator = self.discriminator
        assert discriminator is not None
        of_generator, of_discriminator = losses.ADVERSARIAL[sizes.adversarial_loss]

        def logits(weights, x):
            return discriminator.apply({"params": weights}, x, valid)

        own, constant = params["discriminator"], jax.lax.stop_gradient(params["discriminator"])
        real, fake = logits(own, image), logits(own, jax.lax.stop_gradient(decoded))
        terms = {
            "generator_loss": of_generator(logits(constant, decoded)).mean(axis=1),
            "discriminator_loss": of_discriminator(real, fake).mean(axis=1),
        }
        if sizes.r1_weight:
            terms["r1_loss"] = losses.r1(lambda x: logits(own, x).mean(axis=1) * valid, image)
        if sizes.lecam_weight:
            averages = jax.lax.stop_gradient((kept["real"], kept["fake"]))
            terms["lecam_loss"] = losses.lecam(real, fake, *averages).mean(axis=1)
        started = kept["updates"] >= sizes.adversarial_start
        terms["generator_loss"] = jnp.where(started, terms["generator_loss"], 0)
        return terms | {"real_logit": real.mean(axis=1), "fake_logit": fake.mean(axis=1)}

    def after_update(self, params: Any, totals: Metrics) -> tuple[Any, Metrics]:
        """See Task: update averages, and the codes that depend on them."""
        totals, kept = dict(totals), dict(params.get("statistics", {}))
        if self.counts_codes:
            seen: Any = totals.pop("code_statistics").compute()
            book, kept["codes"] = self.moved(params["quantizer"]["codebook"], kept["codes"], seen)
            params = params | {"quantizer": {"codebook": book}}
        if self.discriminator is not None:
            kept["updates"] = kept["updates"] + 1
            for side in ("real", "fake"):
                now = totals[f"{side}_logit"].compute()
                kept[side] = LOGIT_DECAY * kept[side] + (1 - LOGIT_DECAY) * now
        return params | ({"statistics": kept} if kept else {}), totals

    def moved(self, book: jax.Array, averages: dict, seen: dict) -> tuple[jax.Array, dict]:
        """Return the codebook [K, D] and its averages after a step with statistics `seen`."""
        averages = codebook.average(averages, seen, self.sizes.codebook_decay)
        if self.sizes.codebook == "ema":
            book = codebook.means(averages, book)
        return codebook.revive(book, averages, seen, self.sizes.revive_below)

    def predict(self, params: Any, batch: Raw) -> dict[str, jax.Array]:
        """See Task: `ids` [B, N], and the quality of the clipped reconstruction."""
        image = views.to_float(batch["image"])
        latents = self.apply(params, image, "latents")
        ids = self.apply(params, latents, "quantize")
        decoded = self.apply(params, self.apply(params, ids, "codes"), "decode").clip(0, 1)
        return {"ids": ids.reshape(len(image), -1), **quality.of(image, decoded)}

    def reconstruct(self, params: Any, image: jax.Array) -> jax.Array:
        ids = self.apply(params, self.apply(params, image, "latents"), "quantize")
        return self.apply(params, self.apply(params, ids, "codes"), "decode").clip(0, 1)
