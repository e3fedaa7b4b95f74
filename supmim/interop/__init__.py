"""Weights of other libraries: their names and layouts, to and from ours."""
