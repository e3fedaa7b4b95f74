"""SupMIM: an encoder, its classifier and, in training, a decoder."""

import flax.linen as nn
import jax

from supmim.config import Config, options
from supmim.masking import TokenMask
from supmim.models.classifier import Classifier
from supmim.models.decoder import Decoder
from supmim.models.encoder import Encoded, Encoder


class SupMIM(nn.Module):
    """Three parts, handed in; without a decoder it is the supervised baseline."""

    encoder: nn.Module
    classifier: nn.Module
    decoder: nn.Module | None

    def __call__(self, image: jax.Array, token_mask: TokenMask) -> jax.Array:
        """Runs every part once, which is what `init` needs."""
        logits, _ = self.classify(image)
        if self.decoder is not None:
            self.predict_tokens(image, token_mask)
        return logits

    def classify(
        self, image: jax.Array, *, train: bool = False, taps: tuple[int, ...] = ()
    ) -> tuple[jax.Array, Encoded]:
        """[B, S, S, C] -> class logits [B, C] and what the encoder saw."""
        encoded = self.encoder(image, train=train, taps=taps)
        return self.classifier(encoded.embedding), encoded

    def predict_tokens(
        self, image: jax.Array, token_mask: TokenMask, *, train: bool = False
    ) -> jax.Array:
        """[B, S, S, C] -> predictions [B, M, W] of token_mask.ids_predict."""
        return self.decoder(self.encoder(image, token_mask, train=train).latent, token_mask)

    def classify_and_predict(
        self, image: jax.Array, token_mask: TokenMask, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """One masked pass for both: class logits [B, C] and predictions [B, M, W]."""
        encoded = self.encoder(image, token_mask, train=train)
        return self.classifier(encoded.embedding), self.decoder(encoded.latent, token_mask)


def create(config: Config, target_size: int) -> SupMIM:
    """The model of a config; mim_weight 0 builds no decoder. target_size: see Decoder."""
    needs_token = config.mim.hidden == "mask_token" or config.mim.masking == "variable"
    encoder = Encoder(config.encoder, config.grid, bool(config.mim_weight) and needs_token)
    head = config.classifier
    classifier = Classifier(head.num_classes, rep_size=head.rep_size, head_bias=head.head_bias)
    decoder = None
    if config.mim_weight:
        sizes = config.decoder
        blocks = options.changed(
            config.encoder,
            width=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            mlp_dim=sizes.mlp_dim,
            dropout=0.0,
            stochastic_depth=0.0,
            scan=False,
        )
        decoder = Decoder(blocks, target_size, config.grid)
    return SupMIM(encoder, classifier, decoder)
