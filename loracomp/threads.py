"""How torch's threads wait for one another."""

import os

SPINS = "3000"
"""Some hundred microseconds. Without any, operations wake a helper each: a lone job takes 130 ms instead of 85.
With libgomp's own 300,000, beside other busy programs a pass takes up to eight times as long; so, up to twice."""


def wait_briefly() -> None:
    """Let them spin a little before they sleep, unless the environment says more; to be called before torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
