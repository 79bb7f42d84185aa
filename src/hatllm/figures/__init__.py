"""Finished runs, masks and attention as pictures."""
