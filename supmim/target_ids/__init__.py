"""Target ids that are computed once and read by many runs."""
