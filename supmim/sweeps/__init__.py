"""The parts of `supmim sweep`: members, their cost, the engines that run them, their table."""
