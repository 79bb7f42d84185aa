"""Finished runs as numbers side by side."""
