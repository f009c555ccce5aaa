"""loracomp.worker_demand: the one number that workers are scaled by."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, as_alice, keep, keep_and_claim, tidy
from job_data import BASE, add_base_model, add_jobs, claim, prediction_row, record
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401  fixtures
from loracomp.database.connections import Connection
from people_fixtures import value


def demand(connection: Connection, target_wait_s: float = 30, base_model: str | None = None) -> dict[str, Any]:
    row = connection.execute("SELECT * FROM loracomp.worker_demand(%s, %s)", (target_wait_s, base_model)).fetchone()
    assert row is not None
    return row


def workers(connection: Connection, target_wait_s: float = 30, base_model: str | None = None) -> int:
    return int(demand(connection, target_wait_s, base_model)["workers"])


def answer(connection: Connection, jobs: int, *, seconds: float, batch_size: int = 1) -> None:
    """Let batches of this size be answered, each in so many seconds; it all happened an hour ago."""
    timings = {"predict": 1000 * seconds, "share": 1000 * seconds / batch_size}
    ids = add_jobs(connection, *["a"] * jobs)
    for at in range(0, jobs, batch_size):
        tokens = {job.id: job.lease_token for job in claim(connection, batch_size)}
        rows = [prediction_row(id_, timings=timings, batch_size=batch_size) for id_ in tokens]
        assert len(record(connection, tokens, rows)) == min(batch_size, jobs - at)
    long_ago = timedelta(hours=1)
    connection.execute(
        "UPDATE loracomp.job SET created_at = created_at - %(ago)s, run_at = run_at - %(ago)s,"
        " finished_at = finished_at - %(ago)s WHERE id = ANY (%(ids)s)",
        {"ago": long_ago, "ids": ids},
    )


def wait_longer(connection: Connection, seconds: float) -> None:
    """Let what waits have come so much earlier."""
    connection.execute(
        "UPDATE loracomp.job SET created_at = created_at - %(ago)s, run_at = run_at - %(ago)s"
        " WHERE finished_at IS NULL",
        {"ago": timedelta(seconds=seconds)},
    )


def test_nothing_to_do_needs_nobody(connection: Connection) -> None:
    assert workers(connection) == 0
    answer(connection, 3, seconds=10)
    assert workers(connection) == 0


def test_what_was_never_measured_needs_one(connection: Connection) -> None:
    add_jobs(connection, *["a"] * 1000)
    found = demand(connection)
    assert (found["workers"], found["open_jobs"], found["seconds_per_job"]) == (1, 1000, None)


def test_the_work_is_divided_by_the_target(connection: Connection) -> None:
    answer(connection, 3, seconds=2)
    add_jobs(connection, *["a"] * 70)
    wait_longer(connection, 100)
    found = demand(connection)
    assert (found["open_jobs"], found["arrived_jobs"], found["seconds_per_job"]) == (70, 0, 2)
    assert found["workers"] == 5  # 140 s in 30 s
    assert workers(connection, 10) == 14
    assert workers(connection, 1000) == 1


def test_what_arrived_lately_is_expected_again(connection: Connection) -> None:
    answer(connection, 3, seconds=2)
    add_jobs(connection, *["a"] * 30)
    assert workers(connection) == 4  # 60 s wait, 60 s will
    for job in claim(connection, 30):
        assert record(connection, {job.id: job.lease_token}, [prediction_row(job.id)])
    found = demand(connection)
    assert (found["open_jobs"], found["arrived_jobs"], found["workers"]) == (0, 30, 2)
    assert workers(connection, 3600) == 1


def test_what_was_cancelled_is_not_expected_again(connection: Connection) -> None:
    (job_id,) = add_jobs(connection, "a")
    connection.execute("SELECT loracomp.cancel_job(%s)", (job_id,))
    assert workers(connection) == 0


def test_what_runs_still_needs_its_worker(connection: Connection) -> None:
    add_jobs(connection, "a")
    claim(connection)
    wait_longer(connection, 100)
    assert workers(connection) == 1


def test_no_more_workers_than_jobs(connection: Connection) -> None:
    answer(connection, 1, seconds=500)
    add_jobs(connection, "a", "a", "a")
    wait_longer(connection, 100)
    assert workers(connection) == 3


def test_a_job_costs_what_it_does_in_full_batches(connection: Connection) -> None:
    answer(connection, 4, seconds=1.6, batch_size=1)
    answer(connection, 32, seconds=1.6, batch_size=16)
    answer(connection, 9, seconds=1.8, batch_size=9)
    assert demand(connection)["seconds_per_job"] == pytest.approx((32 * 0.1 + 9 * 0.2) / 41)


def test_large_batches_long_ago_do_not_count(connection: Connection) -> None:
    answer(connection, 64, seconds=640, batch_size=64)
    answer(connection, 1000, seconds=3.2, batch_size=16)
    add_jobs(connection, *["a"] * 290)
    found = demand(connection)
    assert found["seconds_per_job"] == pytest.approx(0.2)
    assert found["workers"] == 4  # 290 jobs wait and 290 will, 0.2 s each


def test_a_few_full_batches_do_not_speak_for_unlike_jobs(connection: Connection) -> None:
    """Many choices that came together, and texts that came a few at a time."""
    answer(connection, 8, seconds=0.8, batch_size=8)
    answer(connection, 72, seconds=30, batch_size=3)
    assert demand(connection)["seconds_per_job"] == pytest.approx(0.1)  # a tenth is enough
    answer(connection, 3, seconds=30, batch_size=3)
    assert demand(connection)["seconds_per_job"] == pytest.approx((8 * 0.1 + 75 * 10) / 83)


def test_jobs_for_later_count_once_they_are_due_within_the_target(connection: Connection) -> None:
    add_jobs(connection, "a", run_at="2100-01-01")
    assert workers(connection) == 0
    connection.execute("UPDATE loracomp.job SET run_at = now() + interval '20 seconds'")
    assert workers(connection, 10) == 0
    assert workers(connection, 30) == 1


def test_jobs_in_the_background_keep_one_worker_and_ask_for_no_more(connection: Connection) -> None:
    answer(connection, 1, seconds=10)
    add_jobs(connection, *["a"] * 100, priority=-1)
    found = demand(connection)
    assert (found["workers"], found["open_jobs"], found["background_jobs"]) == (1, 0, 100)


def test_each_base_model_has_its_own(connection: Connection) -> None:
    add_base_model(connection, "other", default=False)
    answer(connection, 1, seconds=10)
    add_jobs(connection, "a", "a", base_model="other")
    assert (workers(connection), workers(connection, base_model=BASE), workers(connection, base_model="other")) == (
        0,
        0,
        1,
    )


def test_a_base_model_that_is_not_there_gives_no_number(connection: Connection) -> None:
    assert connection.execute("SELECT workers FROM loracomp.worker_demand(30, 'nowhere')").fetchone() is None


@pytest.mark.parametrize("seconds", [0, -1, 86401, "NaN"])
def test_the_target_must_be_one_that_can_be_met(connection: Connection, seconds: object) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="target_wait_s must be between 1 and 86400"):
        connection.execute("SELECT * FROM loracomp.worker_demand(%s::double precision)", (seconds,))


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute(URGENCY)
        yield opened
    tidy(connection)


def test_rows_that_no_keeper_has_looked_at_need_one(connection: Connection, alice: Connection) -> None:
    """Otherwise a deployment that was scaled to zero would never ask them."""
    keep(connection)
    assert workers(connection) == 0
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'urgent')")
    assert value(connection, "SELECT count(*) FROM loracomp.job") == 0
    assert workers(connection) == 1
    add_base_model(connection, "other", default=False)
    assert workers(connection, base_model="other") == 0, "rows become jobs of the default base model"
    for job in keep_and_claim(connection):
        assert record(connection, {job.id: job.lease_token}, [prediction_row(job.id)])
    connection.execute("UPDATE loracomp.job SET created_at = 'epoch', run_at = 'epoch'")
    assert workers(connection) == 1, "its answer is not shown yet"
    keep(connection)
    assert workers(connection) == 0


def test_rows_without_a_job_need_as_many_as_their_jobs_will(connection: Connection, alice: Connection) -> None:
    answer(connection, 3, seconds=2)
    keep(connection)
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'urgent' FROM generate_series(1, 70) AS i")
    assert (demand(connection)["open_jobs"], workers(connection)) == (70, 5)  # 140 s in 30 s
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    assert workers(connection) == 0


def test_a_declaration_that_cannot_be_asked_keeps_no_worker_running(connection: Connection, alice: Connection) -> None:
    alice.execute("ALTER TABLE tickets DROP COLUMN body; INSERT INTO tickets VALUES (1, 'a')")
    keep(connection)
    assert value(connection, "SELECT trouble FROM loracomp.declaration") is not None
    connection.execute("UPDATE loracomp.declaration SET retry_at = now() - interval '50 minutes'")
    assert workers(connection) == 0
    connection.execute("UPDATE loracomp.declaration SET retry_at = now() - interval '61 minutes'")
    assert workers(connection) == 1, "the table may have been repaired"
    connection.execute("UPDATE loracomp.declaration SET retry_at = now()")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{subject}')")
    assert workers(connection) == 1
