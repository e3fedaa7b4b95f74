"""Transformations of updates that optax does not have, or has in another form."""
