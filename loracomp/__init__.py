"""Task-aware LoRA adapter composition inside Postgres (arXiv 2602.21222)."""

__version__ = "1.0.0"
