"""The job protocol under random interleavings of four workers, expiries and operators, against a model of it.

The test is tested too: without the fence in `record_predictions` it must find what goes wrong.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from job_data import add_jobs, claim, clear, ended, record_predictions, shared_database
from loracomp.database import connections as db
from loracomp.database.revision import packed_folder
from loracomp.records import Failure, Job
from loracomp.worker.leases import release_jobs, renew_leases
from loracomp.worker.recorder import fail_jobs

ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Expected:
    """What the model says of a job."""

    max_attempts: int
    status: str = "queued"
    attempts: int = 0
    expired_leases: int = 0
    token: int | None = None
    lapsed: bool = False
    answer: str | None = None

    def ends(self, status: str) -> None:
        self.status, self.token = status, None

    def taken_back(self) -> None:
        """Do what rescue_jobs does. The attempt counts only if a lease of the job had expired before, because the job
        then ran alone."""
        alone = self.expired_leases > 0
        self.expired_leases += 1
        self.ends("failed" if alone and self.attempts >= self.max_attempts else "queued")
        self.attempts -= not alone


@dataclass(frozen=True)
class Batch:
    worker: str
    jobs: tuple[Job, ...]


class Protocol(RuleBasedStateMachine):
    """Four workers, who may come back with a batch at any time, and operators."""

    connection: ClassVar[db.Connection]
    jobs = Bundle("jobs")
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        clear(self.connection)
        self.expected: dict[int, Expected] = {}
        self.tokens: set[int] = set()

    def held(self, batch: Batch) -> set[int]:
        """Return the ids of the jobs of a batch that, according to the model, the batch's worker still holds."""
        return {job.id for job in batch.jobs if self.expected[job.id].token == job.lease_token}

    # --- submitters

    @rule(target=jobs, count=st.integers(1, 4), max_attempts=st.integers(1, 3))
    def insert(self, count: int, max_attempts: int):
        ids = add_jobs(self.connection, *["ask"] * count, max_attempts=max_attempts)
        self.expected |= {job_id: Expected(max_attempts) for job_id in ids}
        return multiple(*ids)

    # --- workers

    @rule(target=batches, worker=st.sampled_from("abcd"), size=st.integers(1, 5))
    def claim(self, worker: str, size: int):
        for expected in self.expected.values():
            if expected.status == "running" and expected.lapsed:
                expected.taken_back()
        jobs = claim(self.connection, size, worker=worker)
        assert len(jobs) <= size
        assert len({job.lease_token for job in jobs}) <= 1
        for job in jobs:
            expected = self.expected[job.id]
            assert expected.status == "queued"
            assert job.lease_token not in self.tokens
            assert expected.expired_leases == 0 or len(jobs) == 1
            expected.status, expected.token, expected.lapsed = "running", job.lease_token, False
            expected.attempts += 1
        self.tokens |= {job.lease_token for job in jobs}
        return Batch(worker, jobs)

    @rule(batch=batches)
    def record(self, batch: Batch) -> None:
        held = self.held(batch)
        answers = {job.id: f"{batch.worker} {job.lease_token}" for job in batch.jobs}
        rows = [ended(job_id, output=answer) for job_id, answer in answers.items()]
        assert record_predictions(self.connection, batch.jobs, rows) == held
        for job_id in held:
            self.expected[job_id].ends("succeeded")
            self.expected[job_id].answer = answers[job_id]

    @rule(batch=batches, retry=st.booleans())
    def fail(self, batch: Batch, retry: bool) -> None:
        held = self.held(batch)
        failures = [Failure(job.id, "code", "message", retry) for job in batch.jobs]
        assert fail_jobs(self.connection, batch.jobs, failures) == held
        for job_id in held:
            expected = self.expected[job_id]
            expected.ends("queued" if retry and expected.attempts < expected.max_attempts else "failed")

    @rule(batch=batches)
    def release(self, batch: Batch) -> None:
        held = self.held(batch)
        assert release_jobs(self.connection, batch.jobs) == held
        for job_id in held:
            self.expected[job_id].ends("queued")
            self.expected[job_id].attempts -= 1

    @rule(batch=batches)
    def renew(self, batch: Batch) -> None:
        held = self.held(batch)
        assert renew_leases(self.connection, batch.jobs, 60) == held
        for job_id in held:
            self.expected[job_id].lapsed = False

    # --- time and operators

    @rule(batch=batches)
    def lapse(self, batch: Batch) -> None:
        held = self.held(batch)
        self.connection.execute(
            "UPDATE loracomp.job SET lease_expires_at = now() - interval '1 second' WHERE id = ANY (%s)", (list(held),)
        )
        for job_id in held:
            self.expected[job_id].lapsed = True

    @rule()
    def time_passes(self) -> None:
        self.connection.execute("UPDATE loracomp.job SET run_at = now() WHERE status = 'queued' AND run_at > now()")

    @rule(job=jobs)
    def cancel(self, job: int) -> None:
        expected = self.expected[job]
        if expected.status in ENDED:
            with pytest.raises(psycopg.errors.RaiseException):
                self.connection.execute("SELECT loracomp.cancel_job(%s)", (job,))
        else:
            self.connection.execute("SELECT loracomp.cancel_job(%s)", (job,))
            expected.ends("cancelled")

    @rule(job=jobs)
    def retry(self, job: int) -> None:
        with suppress(psycopg.errors.RaiseException):
            self.connection.execute("SELECT loracomp.retry_job(%s)", (job,))
        expected = self.expected[job]
        if expected.status in ("failed", "cancelled"):
            expected.status, expected.attempts, expected.expired_leases = "queued", 0, 0

    # --- what holds at any time

    @invariant()
    def the_database_is_as_the_model(self) -> None:
        rows = self.connection.execute(
            "SELECT id, status, attempts, expired_leases, lease_token, output"
            " FROM loracomp.job LEFT JOIN loracomp.prediction ON job_id = id"
        )
        found = {row.pop("id"): tuple(row.values()) for row in rows}
        assert found == {
            job_id: (e.status, e.attempts, e.expired_leases, e.token, e.answer) for job_id, e in self.expected.items()
        }

    def teardown(self) -> None:
        """Whatever happened, the jobs that are left get done."""
        self.connection.execute(
            "UPDATE loracomp.job SET lease_expires_at = now() - interval '1 second' WHERE status = 'running'"
        )
        unfinished = "SELECT id FROM loracomp.job WHERE status NOT IN ('succeeded', 'failed', 'cancelled')"
        for _ in range(3 * len(self.expected) + 1):
            if not self.connection.execute(unfinished).fetchall():
                return
            self.time_passes()
            jobs = claim(self.connection, 5)
            record_predictions(self.connection, jobs, [ended(job.id) for job in jobs])
        raise AssertionError("jobs are left")


@pytest.fixture(scope="module")
def protocol(server: str, template: str) -> Iterator[type[Protocol]]:
    with shared_database(server, template) as url, db.connect(url) as connection:
        yield type("Protocol", (Protocol,), {"connection": connection})


def test_no_interleaving_breaks_the_protocol(protocol: type[Protocol]):
    run_state_machine_as_test(
        protocol,
        settings=settings(
            max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_without_the_fence_an_interleaving_is_found_that_does(protocol: type[Protocol]):
    connection = protocol.connection
    source = (packed_folder("sql") / "30_queue" / "30_leases.sql").read_text()
    source = source.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    fenced = " AND j.lease_token = i.token\n            WHERE j.id = ANY (hold_jobs.ids)"
    assert source.count(fenced) == 1
    connection.execute(source.replace(fenced, " WHERE j.id = ANY (hold_jobs.ids)").encode())
    try:
        # Either the model sees it, or a constraint of a table.
        with pytest.raises((AssertionError, psycopg.IntegrityError)):
            run_state_machine_as_test(
                protocol,
                settings=settings(
                    max_examples=300, stateful_step_count=30, deadline=None, phases=[Phase.generate],
                    database=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
                ),
            )  # fmt: skip
    finally:
        connection.execute(source.encode())
