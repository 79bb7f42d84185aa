"""The exact fast path of the model: prompts packed once, layers in stages, keys and values kept."""
