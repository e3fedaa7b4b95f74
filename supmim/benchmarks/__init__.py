"""What `supmim benchmark` times, and the references that it is timed against."""
