"""Measures what routing costs and what it finds, by the number of examples."""
