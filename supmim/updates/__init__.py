"""Transformations of updates that optax does not have, or not in our form."""
