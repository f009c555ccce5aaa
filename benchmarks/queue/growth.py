"""Measures claims with long queues, long histories and many submitters; and inserts with and without NOTIFY."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Json

from loracomp.database import connections as db
from loracomp.records import Job
from loracomp.worker.claim import claim_jobs
from loracomp.worker.record import record_predictions

from .place import COMMIT, one, queue, settle
from .systems.command import PROMPT
from .systems.loracomp import BASE_MODEL, NoModel

BATCH = 16
ROUNDS = 5
HISTORY = """
INSERT INTO loracomp.job (prompt, status, created_at, finished_at, attempts, claimed_together, worker, base_model,
    max_new_tokens)
SELECT %s, 'succeeded', now() - interval '1 day', now() - interval '1 day', 1, 64, 'before', %s, 64
FROM generate_series(1, %s)
"""
EVENTS = """
INSERT INTO loracomp.audit_event (at, entity, entity_id, action, old_status, new_status, attempt, worker)
SELECT j.finished_at, 'job', j.id, 'update', s.old_status, s.new_status, 1, 'before'
FROM loracomp.job AS j, (VALUES ('queued', 'running'), ('running', 'succeeded')) AS s (old_status, new_status)
"""
SPREAD = "UPDATE loracomp.job SET submitted_by = 'submitter ' || id %% %s"
TRACES = """
INSERT INTO loracomp.prediction
SELECT p.* FROM json_populate_record(NULL::loracomp.prediction, %s) AS t
CROSS JOIN loracomp.job AS j CROSS JOIN LATERAL json_populate_record(t, json_build_object(
    'job_id', j.id, 'submitted_by', j.submitted_by
)) AS p
"""


def growth(
    maintenance: str, points: Sequence[tuple[int, int, int]], claims: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Milliseconds of claim and record, measured in turns, for each depth, history and number of submitters.

    The submitters share the queue evenly; 0 counts as one. A queue has at least twice the jobs that are claimed. All
    databases are filled first, so that the disk's delayed writes affect all equally.
    """
    least = 2 * claims * BATCH
    distinct = dict.fromkeys((max(depth, least), history, max(1, each)) for depth, history, each in points)
    with ExitStack() as stack:
        probes = [stack.enter_context(probe(maintenance, *point)) for point in distinct]
        settle(maintenance)
        for number in range(ROUNDS):
            for each in probes:
                each.measure((claims + number) // ROUNDS)
            say(f"round {number + 1} of {ROUNDS}")
    return [each.row() for each in probes]


@dataclass
class Probe:
    """A queue of some depth and history, with the measured milliseconds of claims, records and empty commits."""

    depth: int
    history: int
    submitters: int
    connection: db.Connection
    model: NoModel = field(default_factory=NoModel)
    claimed: list[float] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)
    committed: list[float] = field(default_factory=list)

    def measure(self, claims: int) -> None:
        for _ in range(claims):
            with timed(self.claimed):
                jobs = claim_jobs(self.connection, worker="probe", base_model=BASE_MODEL, batch_size=BATCH, lease_s=60)
            rows = self.model.predictions(self.model.prepare(self.connection, jobs))
            with timed(self.recorded):
                assert len(record_predictions(self.connection, jobs, rows)) == len(jobs)
            with timed(self.committed):
                self.connection.execute(COMMIT)

    def row(self) -> dict[str, Any]:
        return {
            "depth": self.depth, "history": self.history, "submitters": self.submitters,
            "claim_p50_ms": round(median(self.claimed), 2),
            "claim_p99_ms": round(quantiles(self.claimed, n=100)[-1], 2),
            "record_p50_ms": round(median(self.recorded), 2), "commit_p50_ms": round(median(self.committed), 2),
        }  # fmt: skip


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    into.append((time.perf_counter() - started) * 1000)


@contextmanager
def probe(maintenance: str, depth: int, history: int, submitters: int) -> Iterator[Probe]:
    """A database that is filled to this depth and history."""
    with queue("loracomp", sys.executable, maintenance) as made, db.connect(made.url) as connection:
        if history:
            fill(connection, history)
        made.fill(depth)
        if submitters > 1:
            connection.execute(SPREAD, (submitters,))
            connection.execute("VACUUM FULL ANALYZE loracomp.job")
        yield Probe(depth, history, submitters, connection)


def fill(connection: db.Connection, history: int) -> None:
    """Insert jobs that succeeded a day ago, with their traces and audit events."""
    # Disable triggers, which would fill in given columns and check foreign keys that are known to be valid.
    connection.execute("SET session_replication_role = replica")
    connection.execute(HISTORY, (PROMPT, BASE_MODEL, history))
    connection.execute(EVENTS)
    model, job = NoModel(), Job(1, 1, "predict", PROMPT, None, 64)
    (made,) = model.predictions(model.prepare(connection, [job]))
    defaults = {"worker": "before", "attempt": 1, "created_at": "2020-01-01"}
    given = {**asdict(made), **asdict(made.answer), **asdict(made.versions), **model.trace_columns(1), **defaults}
    unused = ("trace", "answer", "versions")
    connection.execute(TRACES, (Json({name: value for name, value in given.items() if name not in unused}),))
    connection.execute("RESET session_replication_role")


def inserts(maintenance: str, seconds: float, clients: int = 4) -> list[dict[str, Any]]:
    """Jobs/s that several clients insert, with 1 or 1,000 jobs in a transaction, with and without NOTIFY."""
    rows = []
    for hint in ("on", "off"):
        for size in (1, 1000):
            with queue("loracomp", sys.executable, maintenance) as made:
                name = conninfo_to_dict(made.url)["dbname"]
                one(made.url, f"ALTER DATABASE {name} SET loracomp.notify = '{hint}'", rows=False)
                with ThreadPoolExecutor(clients) as pool:
                    counts = list(pool.map(lambda _: insert_for(made.url, size, seconds), range(clients)))  # noqa: B023
            rows.append({"hint": hint, "rows_an_insert": size, "clients": clients,
                         "jobs_per_s": round(sum(counts) / seconds)})  # fmt: skip
    return rows


def insert_for(url: str, size: int, seconds: float) -> int:
    inserted = 0
    with db.connect(url, vectors=False) as connection:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            connection.execute(
                "INSERT INTO loracomp.job (prompt) SELECT %s FROM generate_series(1, %s)", (PROMPT, size)
            )
            inserted += size
    return inserted
