"""Measures the queue alone, with a model that does nothing, but with complete traces."""
