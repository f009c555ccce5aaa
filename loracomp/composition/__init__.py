"""Adapters and weights to low-rank factors, and those factors inside a forward pass."""
