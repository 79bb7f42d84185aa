"""The exact fast path of decoding: states of the catalogue computed once."""
