"""What `supmim sweep` is made of: members, their cost, how they are run, their table."""
