"""Target ids computed once and read by many runs."""
