"""Weights of other libraries, converted from their names and layouts."""
