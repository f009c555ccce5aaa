"""Each fault of `make faults`, tried once with few jobs."""

from collections.abc import Iterator

import pytest

from arena import Server, own_server
from faults import FAULTS, SkippedError

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def fault_server() -> Iterator[Server]:
    with own_server() as started:
        yield started


@pytest.mark.parametrize("name", FAULTS)
def test_no_job_is_lost_and_none_doubled(fault_server: Server, name: str) -> None:
    with fault_server.arena(size=60) as arena:
        try:
            FAULTS[name](fault_server, arena)
        except SkippedError as skipped:
            pytest.skip(str(skipped))
        account = arena.account()
    assert (account.lost, account.doubled) == (0, 0)
