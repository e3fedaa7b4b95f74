"""What each verb of `supmim` does, one module per verb."""
