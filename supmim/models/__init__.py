"""Networks: the encoder, the heads on it, and the decoder that only training needs."""
