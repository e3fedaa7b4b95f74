"""The networks: an encoder with its classifier, and a decoder that is gone at inference."""
