"""Data pipeline: read, decode and crop records, batch them, and augment them on the devices."""
