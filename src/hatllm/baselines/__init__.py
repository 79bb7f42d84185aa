"""Models to compare with, on the same examples and metrics."""
