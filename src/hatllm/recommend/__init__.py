"""Answers of a finished run: for one history or for millions."""
