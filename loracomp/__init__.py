"""Task-aware LoRA adapter composition inside Postgres (arXiv 2602.21222)."""

from importlib.metadata import version

__version__ = version("loracomp")
