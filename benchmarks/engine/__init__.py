"""Measures the figures of docs/figures.md: `python -m benchmarks.engine --help`."""

from loracomp.model.cpu import wait_briefly

wait_briefly()  # as the worker beside it does
