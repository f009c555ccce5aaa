"""A table with a declaration, for the tests of declarations; jobs are claimed and recorded as a worker would."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from job_data import claim, record
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from people_fixtures import connect, login

TICKETS = "CREATE TABLE tickets (id bigint PRIMARY KEY, subject text, body text, seen integer DEFAULT 0)"
URGENCY = """
SELECT loracomp.create_answers('urgency', source => 'tickets', prompt => 'Ticket: {subject} {body}',
    choices => '{urgent,not urgent}')
"""


@contextmanager
def as_alice(url: str) -> Iterator[Connection]:
    """A submitter who may make tables in schema public."""
    with db.connect(url) as owner:
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {login('alice')}".encode())
        with connect(url, "alice") as opened:
            yield opened
        tidy(owner)


def tidy(owner: Connection) -> None:
    """Drop all that is alice's, and what was declared over it."""
    owner.execute(f"DROP OWNED BY {login('alice')} CASCADE".encode())
    owner.execute("SELECT loracomp.forget_answers(a) FROM loracomp.answers AS a")


def ask(owner: Connection) -> dict[int, str]:
    """What a worker's claim asks: prompts by job, which stay claimed."""
    jobs = claim(owner, 1000)
    return {job.id: job.prompt for job in jobs}


def answer_all(owner: Connection, output: str | None = None, **columns: Any) -> list[str]:
    """Claim and answer until nothing is left, with this output or the prompt's last word; the prompts in order."""
    asked: list[str] = []
    while jobs := claim(owner, 1000):
        asked += [job.prompt for job in jobs]
        rows = [
            {"job_id": job.id, "output": output or job.prompt.split()[-1], "adapter_sha256": [], **columns}
            for job in jobs
        ]
        assert record(owner, {job.id: job.lease_token for job in jobs}, rows) == {job.id for job in jobs}
    return asked


def shown(connection: Connection, view: str = "urgency", key: str = "id") -> Mapping[Any, tuple[str, str | None]]:
    """Status and answer of each row, by key."""
    rows = connection.execute(f"SELECT {key} AS key, status, answer FROM {view}".encode()).fetchall()
    return {row["key"]: (row["status"], row["answer"]) for row in rows}
