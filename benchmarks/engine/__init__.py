"""What docs/performance.md says, measured: `python -m benchmarks.engine --help`."""

from loracomp.threads import wait_briefly

wait_briefly()  # as the worker beside it does
