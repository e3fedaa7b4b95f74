"""supmim: image encoders trained with labels and masked image modelling (arXiv 2312.00950)."""

__version__ = "0.2.0"
