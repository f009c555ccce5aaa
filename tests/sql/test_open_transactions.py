"""A transaction that one submitter leaves open holds up neither another submitter nor a worker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import errors

from answers_data import EMBED, work
from job_data import BASE, add_base_model, add_jobs, prediction_row, record
from job_data import claim as claim_jobs
from job_fixtures import shared_database
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value, values
from routing_data import add_adapter

# What alice leaves open: each function that a submitter may call and that is not immutable, for her own jobs and rows,
# and for nothing.
JOB, TRACE = "(SELECT j FROM loracomp.job AS j LIMIT 1)", "(SELECT p FROM loracomp.prediction AS p LIMIT 1)"
WRITING = {
    "submit_job": ["submit_job('a', idempotency_key => 'key', priority => 10)"],
    "submit_jobs": ["""submit_jobs('[{{"prompt": "a"}}, {{"prompt": ""}}]')"""],
    "submit_one": ["""submit_one('{{"prompt": "a"}}')"""],
    "insert_job": ["""insert_job('{{"prompt": "a"}}')"""],
    "cancel_job": ["cancel_job({waits})"],
    "cancel_jobs": [
        "cancel_jobs('{{{waits}}}')",
        "cancel_jobs('{{}}')",
        """cancel_jobs(tags => '{{"of": "alice"}}')""",
    ],
    "set_priority": ["set_priority(5, '{{{waits}}}')", "set_priority(5, '{{}}')"],
    "erase_jobs": ["erase_jobs('{{{waits}}}')", "erase_jobs('{{}}')", """erase_jobs(tags => '{{"of": "alice"}}')"""],
    "retry_job": ["retry_job({failed})"],
    "wait_for_job": ["wait_for_job({failed}, '0')"],
    "create_answers": ["create_answers('of_plain', 'alice_plain', '{{subject}}')"],
    "alter_answers": [
        "alter_answers('alice_urgency')",
        "alter_answers('alice_urgency', paused => true)",
        "alter_answers('alice_urgency', again => true)",
        "alter_answers('alice_urgency', prompt => '{{body}}', choices => '{{urgent,other}}')",
    ],
    "drop_answers": ["drop_answers('alice_urgency')"],
    "try_prompts": ["try_prompts('alice_plain', '{{subject}}')"],
    "rows_to_correct": ["rows_to_correct('alice_urgency', 100)"],
    "correct_answer": [
        "correct_answer('alice_urgency', 1, NULL)",
        "correct_answer('alice_urgency', '3', 'urgent')",
        "correct_answer('alice_urgency', {asked}, 'urgent')",
    ],
    "correct_row": ["correct_row('alice_urgency', '{{3}}', 'urgent')"],
}
READING = {
    "job_from_json": """job_from_json('{{"prompt": "a"}}')""",
    "list_answers": "list_answers()",
    "list_answer_rows": "list_answer_rows('alice_urgency')",
    "answers_since": "answers_since('alice_urgency')",
    "estimated_rows": "estimated_rows('alice_tickets')",
    "readable_tasks": "readable_tasks()",
    "readable_example": "readable_example(1, 1)",
    "readable_adapter": "readable_adapter(1)",
    "attempts_of": "attempts_of({waits})",
    "explain_job": "explain_job({failed})",
    **{f"explain_{part}": f"explain_{part}({JOB})" for part in ("state", "next", "request")},
    **{f"explain_{part}": f"explain_{part}({TRACE})" for part in ("route", "composition", "run")},
    "explain_answer": f"explain_answer({JOB}, {TRACE})",
}
OPEN = [
    *(f"SELECT loracomp.{call}" for calls in WRITING.values() for call in calls),
    "; ".join(f"SELECT loracomp.{call}" for call in READING.values()),
    "UPDATE alice_urgency SET correct = 'urgent' WHERE id = 4",
    "UPDATE alice_tickets SET body = 'other'",
    "TRUNCATE alice_tickets",
    "DROP VIEW alice_urgency",
    "DROP TABLE alice_plain",
    "LOCK TABLE alice_tickets",
    "SELECT FROM loracomp.job_trace, loracomp.retrieved_example, loracomp.queue_health LIMIT 1",
]
BOBS = [
    "INSERT INTO loracomp.job (prompt) VALUES ('a')",
    "SELECT loracomp.submit_job('a', idempotency_key => 'key')",
    "SELECT loracomp.set_priority(5, '{{{waits}}}')",
    "SELECT loracomp.cancel_job({waits})",
    "SELECT loracomp.retry_job({failed})",
    "SELECT loracomp.erase_jobs('{{{waits}}}')",
    "SELECT loracomp.erase_jobs('{{}}')",
    "SELECT loracomp.try_prompts('bob_plain', '{{subject}}')",
    "SELECT loracomp.create_answers('bobs_plain', 'bob_plain', '{{subject}}')",
    "SELECT loracomp.alter_answers('bob_urgency', prompt => '{{body}}', choices => '{{urgent,other}}', again => true)",
    "SELECT loracomp.rows_to_correct('bob_urgency', 100)",
    "SELECT loracomp.correct_row('bob_urgency', '{{3}}', 'urgent')",
    "UPDATE bob_urgency SET correct = NULL WHERE id = 1",
    "UPDATE bob_tickets SET body = 'other'",
    "SELECT loracomp.drop_answers('bob_urgency')",
    "SELECT * FROM bob_urgency",
    "SELECT loracomp.list_answers()",
    "SELECT * FROM loracomp.job_trace",
]


@dataclass(frozen=True)
class Scene:
    """Alice and bob have a declaration each, with corrections, and jobs that wait, have failed and are running."""

    url: str
    alice: dict[str, Any]
    bob: dict[str, Any]
    running: dict[int, int]


@pytest.fixture(scope="module")
def scene(server: str, template: str, logins: None) -> Iterator[Scene]:
    with shared_database(server, template) as url, db.connect(url) as owner:
        add_base_model(owner)
        owner.execute("SELECT loracomp.add_task('tea')")
        add_adapter(owner, "tea", base_model=BASE)
        owner.execute("GRANT CREATE ON SCHEMA public TO loracomp_submitter")
        for name in ("alice", "bob"):
            with connect(url, name) as person:
                prepare(owner, person, name)
        work(owner)
        people = {}
        for name in ("alice", "bob"):
            with connect(url, name) as person:
                person.execute(f"UPDATE {name}_urgency SET correct = 'urgent' WHERE id <= 2".encode())
                waits, failed = add_jobs(person, "waits", "fails", tags=f'{{"of": "{name}"}}', run_at="3000-01-01")
                person.execute("SELECT loracomp.cancel_job(%s)", [failed])
                person.execute(f"UPDATE {name}_tickets SET body = 'asked' WHERE id = 5".encode())
                add_jobs(person, "runs")
                people[name] = {"waits": waits, "failed": failed, "asked": 5}
        running = {job.id: job.lease_token for job in claim_jobs(owner, 100, lease_s=3600)}
        assert len(running) == 4
        with connect(url, "bob") as bob:
            bob.execute("UPDATE bob_tickets SET body = 'to be asked' WHERE id = 6")
            add_jobs(bob, "to be claimed")
        yield Scene(url, people["alice"], people["bob"], running)
        for name in ("alice", "bob"):
            owner.execute(f"DROP OWNED BY {login(name)} CASCADE".encode())


def prepare(owner: Connection, person: Connection, name: str) -> None:
    for table in ("tickets", "plain"):
        person.execute(f"CREATE TABLE {name}_{table} (id bigint PRIMARY KEY, subject text, body text)".encode())
        person.execute(
            f"INSERT INTO {name}_{table} SELECT i, 'row ' || i, 'wrong' FROM generate_series(1, 8) AS i".encode()
        )
    person.execute(
        f"SELECT loracomp.create_answers('{name}_urgency', '{name}_tickets', '{{subject}} {{body}}',"
        " choices => '{urgent,not urgent}')".encode()
    )


@contextmanager
def left_open(scene: Scene, statement: str, who: str = "alice") -> Iterator[None]:
    with connect(scene.url, who) as person, person.transaction(force_rollback=True):
        person.execute("SET LOCAL lock_timeout = '5s'")
        for each in statement.format(**scene.alice).split("; "):
            person.execute(each.encode())
        yield


def waiting(connection: Connection, statements: list[str]) -> list[str]:
    """Those of these statements that wait for a lock; each is undone."""
    found = []
    for statement in statements:
        with connection.transaction(force_rollback=True):
            try:
                with connection.transaction():
                    connection.execute(statement.encode())
            except errors.LockNotAvailable:
                found.append(statement)
    return found


def test_each_function_of_submitters_is_left_open_here(scene: Scene) -> None:
    with db.connect(scene.url) as owner:
        found = values(
            owner,
            "SELECT proname FROM pg_proc WHERE pronamespace = 'loracomp'::regnamespace AND provolatile <> 'i'"
            " AND has_function_privilege('loracomp_submitter', oid, 'EXECUTE')",
        )
    assert found == {*WRITING, *READING}


@pytest.mark.parametrize("statement", OPEN)
def test_another_submitter_does_not_wait(scene: Scene, statement: str) -> None:
    with left_open(scene, statement), connect(scene.url, "bob") as bob:
        bob.execute("SET lock_timeout = '500ms'")
        assert waiting(bob, [each.format(**scene.bob) for each in BOBS]) == []


@pytest.mark.parametrize("statement", OPEN)
def test_a_worker_asks_claims_and_records_what_is_anothers(scene: Scene, statement: str) -> None:
    with left_open(scene, statement), connect(scene.url, "wendy") as wendy:
        # Recording waits two seconds for jobs of the batch that somebody has locked, and leaves these out.
        wendy.execute("SET lock_timeout = '3s'")
        with wendy.transaction(force_rollback=True):
            assert {"to be claimed", "row 6 to be asked"} <= {job.prompt for job in claim_jobs(wendy, 100)}
            assert bobs_jobs(scene) <= record(wendy, scene.running, [row(job_id) for job_id in scene.running])
            ids = value(wendy, "SELECT array_agg(example_id) FROM loracomp.take_unembedded(NULL, NULL, NULL, 0, 100)")
            wendy.execute(EMBED, {"ids": ids, "n": len(ids)})


def bobs_jobs(scene: Scene) -> set[int]:
    with connect(scene.url, "bob") as bob:
        return values(bob, "SELECT id FROM loracomp.job WHERE status = 'running'")


def row(job_id: int) -> dict[str, Any]:
    return prediction_row(job_id, output="urgent", adapter_sha256=[])


@pytest.mark.parametrize("statement", ["refresh_reports()", "purge_jobs('1 day')", "erase_jobs('{{}}')"])
def test_declarations_do_not_wait_for_an_administrator_who_computes_reports(scene: Scene, statement: str) -> None:
    with left_open(scene, f"SELECT loracomp.{statement}", "adam"), connect(scene.url, "bob") as bob:
        bob.execute("SET lock_timeout = '500ms'")
        assert waiting(bob, [each.format(**scene.bob) for each in BOBS]) == []
        with connect(scene.url, "wendy") as wendy, wendy.transaction(force_rollback=True):
            assert "row 6 to be asked" in {job.prompt for job in claim_jobs(wendy, 100)}
