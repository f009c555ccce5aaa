"""The account itself: what it must not overlook."""

from collections.abc import Iterator

import pytest

from arena import Arena, own_server
from job_data import claim, prediction
from loracomp.steps.record import record_predictions
from routing_data import BASE_MODEL

TRACE = {
    "example_ids": [1],
    "example_tasks": ["t"],
    "similarities": [1.0],
    "adapter_ids": [1],
    "adapter_weights": [1.0],
}


@pytest.fixture(scope="module", name="arena")
def arena_of_a_module() -> Iterator[Arena]:
    with own_server() as server, server.arena(3) as arena:
        yield arena


@pytest.fixture(name="answered", autouse=True)
def answered_jobs(arena: Arena) -> None:
    """Three that are as they should be."""
    arena.one("WITH gone AS (DELETE FROM loracomp.job RETURNING 1) SELECT count(*) FROM gone")
    arena.accepted = arena.may_fail = 0
    arena.insert(3)
    with arena.connect() as connection:
        jobs = claim(connection, base_model=BASE_MODEL)
        rows = [
            prediction(job.id, output="ASK", composed_tasks=["t"], adapter_sha256=["0" * 64], **TRACE) for job in jobs
        ]
        assert len(record_predictions(connection, jobs, rows)) == 3
    assert (arena.account().lost, arena.account().doubled) == (0, 0)


def test_a_job_that_vanished_is_lost(arena: Arena) -> None:
    arena.one("DELETE FROM loracomp.job WHERE id = (SELECT max(id) FROM loracomp.job) RETURNING 1")
    account = arena.account()
    assert (account.jobs, account.lost, account.doubled) == (3, 1, 0)


def test_a_job_that_fails_is_lost_unless_the_fault_means_it_to(arena: Arena) -> None:
    arena.insert(1)
    arena.one("UPDATE loracomp.job SET status = 'failed', finished_at = now() WHERE status = 'queued' RETURNING 1")
    assert arena.account().lost == 1
    arena.may_fail = 1
    assert arena.account().lost == 0


def test_a_job_that_nobody_inserted_is_doubled(arena: Arena) -> None:
    arena.accepted -= 1
    assert (arena.account().lost, arena.account().doubled) == (0, 1)
