"""Each fault of `make faults`, tried once with few jobs.

`make test` tries one of them, which shows that the faults still fit the worker.
"""

from collections.abc import Iterator

import pytest

from arena import Server, own_server
from faults import FAULTS, SkippedError
from forked import programs


@pytest.fixture(scope="module")
def fault_server() -> Iterator[Server]:
    with own_server() as started:
        yield started


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "killed" else pytest.mark.faults) for name in FAULTS]
)
def test_no_job_is_lost_and_none_doubled(fault_server: Server, name: str) -> None:
    with fault_server.arena(size=60) as arena:
        if name == "killed":
            arena.python = programs() / "script"  # its 15 workers need not import torch each
        try:
            FAULTS[name](fault_server, arena)
        except SkippedError as skipped:
            pytest.skip(str(skipped))
        account = arena.account()
    assert (account.lost, account.doubled) == (0, 0)
