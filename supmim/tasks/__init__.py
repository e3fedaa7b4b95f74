"""What can be trained, one module for each task."""
