"""What docs/performance.md says, measured: `python -m benchmarks.engine --help`."""

from loracomp.model.cpu import wait_briefly

wait_briefly()  # as the worker beside it does
