"""Plans: the training step for devices that are not installed, and what it would cost."""
