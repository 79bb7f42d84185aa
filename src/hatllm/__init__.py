"""HatLLM: hierarchical attention masking for LLM-based recommendation (arXiv:2510.10955)."""

__version__ = "0.1.0"
