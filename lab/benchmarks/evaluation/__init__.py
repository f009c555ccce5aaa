"""Measures how well policies answer: `python -m lab.benchmarks.evaluation --help`."""
