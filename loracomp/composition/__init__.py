"""Merges weighted adapters into low-rank factors, and applies those factors inside a forward pass."""
