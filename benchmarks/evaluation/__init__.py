"""Measures how well policies answer: `python -m benchmarks.evaluation --help`."""
