"""The exact fast path of decoding: each user's prompt once, states of the catalogue once."""
