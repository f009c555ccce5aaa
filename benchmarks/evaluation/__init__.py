"""Measures the figures of docs/evaluation.md: `python -m benchmarks.evaluation --help`."""
