"""What docs/evaluation.md says, measured: `python -m benchmarks.evaluation --help`."""
