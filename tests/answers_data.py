"""Helpers for tests of declarations: a table with a declaration, and calls that claim and record jobs as a worker
would."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from job_data import claim, record
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.engine.measuring import Measurement, record_measurements
from loracomp.records import Job
from people_fixtures import connect, login, value

TICKETS = "CREATE TABLE tickets (id bigint PRIMARY KEY, subject text, body text, seen integer DEFAULT 0)"
URGENCY = """
SELECT loracomp.create_answers('urgency', source => 'tickets', prompt => 'Ticket: {subject} {body}',
    choices => '{urgent,not urgent}')
"""

ADD_TICKETS = """
INSERT INTO tickets (id, subject, body)
SELECT i, format('row %%s', i), 'wrong' FROM generate_series(%s::int, %s::int) AS i
"""
UNEMBEDDED = """
SELECT array_agg(e.id) AS ids FROM loracomp.example AS e
WHERE NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id)
"""
EMBED = (
    "SELECT loracomp.add_embeddings(%(ids)s, array_fill((ARRAY[1] || array_fill(0, '{831}'))::vector, ARRAY[%(n)s]))"
)


FORGIVE = """
UPDATE loracomp.declaration SET retry_at = '-infinity' WHERE id IN (
    SELECT id FROM loracomp.declaration
    WHERE trouble IS NULL AND NOT paused AND retry_at > clock_timestamp() FOR UPDATE SKIP LOCKED
)
"""
"""Declarations that rest because a call took more than a second, which any call may on a busy machine."""


@contextmanager
def as_alice(url: str, name: str = "alice") -> Iterator[Connection]:
    """Connect as a submitter who may make tables in schema public: alice, or the role named `name`."""
    with db.connect(url) as owner:
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {login(name)}".encode())
        with connect(url, name) as opened:
            yield opened
        tidy(owner, name)


def tidy(owner: Connection, name: str = "alice") -> None:
    """Drop everything that alice owns, and the declarations over her tables."""
    owner.execute(f"DROP OWNED BY {login(name)} CASCADE".encode())
    owner.execute("SELECT loracomp.forget_answers(a) FROM loracomp.declaration AS a")


def keep(owner: Connection) -> None:
    """Call the keeper's steps for declarations until none finds anything to do."""
    handled = 1
    while handled:
        handled = sum(value(owner, QUERIES[step]) for step in ("take_answers", "measure_corrections", "ask_rows"))
        handled += owner.execute(FORGIVE).rowcount


def keep_and_claim(owner: Connection) -> tuple[Job, ...]:
    keep(owner)
    return claim(owner, 1000)


def ask(owner: Connection) -> dict[int, str]:
    """Claim the jobs that are queued now, and keep them claimed; returns their prompts by job."""
    return {job.id: job.prompt for job in keep_and_claim(owner)}


def answer_all(owner: Connection, output: str | None = None, **columns: Any) -> list[str]:
    """Claim and answer jobs until nothing is left, with this output or the prompt's last word; returns the prompts in
    order."""
    prompts: list[str] = []
    while jobs := keep_and_claim(owner):
        prompts += [job.prompt for job in jobs]
        rows = [
            {"job_id": job.id, "output": output or job.prompt.split()[-1], "adapter_sha256": [], **columns}
            for job in jobs
        ]
        assert record(owner, {job.id: job.lease_token for job in jobs}, rows) == {job.id for job in jobs}
    return prompts


def shown(connection: Connection, view: str = "urgency", key: str = "id") -> Mapping[Any, tuple[str, str | None]]:
    """Return the status and the answer of each row, by key."""
    rows = connection.execute(f"SELECT {key} AS key, status, answer FROM {view}".encode()).fetchall()
    return {row["key"]: (row["status"], row["answer"]) for row in rows}


def work(owner: Connection, output: str = "urgent") -> list[Any]:
    """Embed, claim, answer and measure as a worker would, until nothing is left; returns the jobs."""
    done: list[Any] = []
    while True:
        if ids := value(owner, UNEMBEDDED):
            owner.execute(EMBED, {"ids": ids, "n": len(ids)})
        if not (jobs := keep_and_claim(owner)):
            return done
        done += jobs
        record_measured(owner, [job for job in jobs if job.kind == "measure"])
        asked = [job for job in jobs if job.kind == "predict"]
        record(owner, {job.id: job.lease_token for job in asked}, [answered(owner, job.id, output) for job in asked])


def record_measured(owner: Connection, jobs: Sequence[Job]) -> None:
    """Record that the adapter helps on the examples of these jobs."""
    results = [Measurement(job.id, "tokens", -1.0, True, (adapter(owner),), (0.5,), (True,)) for job in jobs]
    assert record_measurements(owner, jobs, results) == {job.id for job in jobs}


def adapter(owner: Connection) -> int:
    return value(owner, "SELECT id FROM loracomp.adapter")


def answered(owner: Connection, job_id: int, output: str) -> dict[str, Any]:
    """Return the answer that the job's policy would give, calibrated by the corrections. The nearest example is of
    another task."""
    row = {"job_id": job_id, "output": output, "adapter_sha256": []}
    examples = value(owner, "SELECT array_agg(example_id) FROM loracomp.measurement")
    if not examples or value(owner, "SELECT policy FROM loracomp.job WHERE id = %s", [job_id]) != "measured":
        return row
    near = {"example_ids": [0], "example_tasks": ["tea"], "similarities": [1.0]}
    mix = {"composed_tasks": ["tea"], "adapter_ids": [1], "adapter_sha256": ["a" * 64], "adapter_weights": [1.0]}
    return {**row, **near, **mix, "calibration_examples": examples}
