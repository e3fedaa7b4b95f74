"""The programs that `supmim benchmark` times, and the references that they are compared with."""
