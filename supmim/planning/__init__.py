"""Ahead of time: the training step for devices that are not there, and what it would cost."""
