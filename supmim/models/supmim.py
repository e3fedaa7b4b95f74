"""The network of SupMIM: an encoder, its classifier and, in training, a decoder."""

import flax.linen as nn
import jax

from supmim.config import Config, options
from supmim.masking import TokenMask
from supmim.models.classifier import Classifier
from supmim.models.decoder import Decoder
from supmim.models.encoder import Encoded, Encoder


class Network(nn.Module):
    """An encoder, a classifier and a decoder; without a decoder, the supervised baseline."""

    encoder: Encoder
    classifier: Classifier
    decoder: Decoder | None

    def __call__(self, image: jax.Array, token_mask: TokenMask) -> jax.Array:
        """Run every part once, as `init` requires."""
        logits, _ = self.classify(image)
        if self.decoder is not None:
            self.predict_tokens(image, token_mask)
        return logits

    def classify(
        self,
        image: jax.Array,
        token_mask: TokenMask | None = None,
        *,
        train: bool = False,
        taps: tuple[int, ...] = (),
    ) -> tuple[jax.Array, Encoded]:
        """Return class logits [B, C] of images [B, S, S, C], and the outputs of the encoder.

        With a token_mask, only the patches that it keeps are seen.
        """
        encoded = self.encoder(image, token_mask, train=train, taps=taps)
        return self.classifier(encoded.embedding), encoded

    def predict_tokens(
        self, image: jax.Array, token_mask: TokenMask, *, train: bool = False
    ) -> jax.Array:
        """Return predictions [B, M, W] of token_mask.ids_predict for images [B, S, S, C]."""
        assert self.decoder is not None
        return self.decoder(self.encoder(image, token_mask, train=train).latent, token_mask)

    def classify_and_predict(
        self, image: jax.Array, token_mask: TokenMask, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Return class logits [B, C] and predictions [B, M, W] from one masked pass."""
        assert self.decoder is not None
        encoded = self.encoder(image, token_mask, train=train)
        return self.classifier(encoded.embedding), self.decoder(encoded.latent, token_mask)


def create(config: Config, target_size: int) -> Network:
    """Return the network of a config; no decoder if mim_weight is 0. target_size: see Decoder."""
    needs_token = config.mim.hidden == "mask_token" or config.mim.masking == "variable"
    encoder = Encoder(config.encoder, config.grid, bool(config.mim_weight) and needs_token)
    head = config.classifier
    classifier = Classifier(head.num_classes, rep_size=head.rep_size, head_bias=head.head_bias)
    decoder = None
    if config.mim_weight:
        sizes, like = config.decoder, config.encoder
        blocks = options.Encoder(
            width=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            mlp_dim=sizes.mlp_dim,
            gelu=like.gelu,
            attention=like.attention,
            dtype=like.dtype,
            remat=like.remat,
        )
        decoder = Decoder(blocks, target_size, config.grid)
    return Network(encoder, classifier, decoder)
