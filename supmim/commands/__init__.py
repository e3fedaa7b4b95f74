"""The verbs of `supmim`, one module each."""
