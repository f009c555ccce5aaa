"""Random statements on a table while two workers claim and answer: a declaration's view always fits a model of it.

tests/system/attack/histories.py has longer histories, in which workers act between the statements. LORACOMP_FUZZ
multiplies the number of sequences.
"""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg import errors

from answers_data import as_alice
from conftest import create_database, drop_database
from job_data import claim, clear, record
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from people_fixtures import value
from worker_helpers import wait_until

TRIES = int(os.environ.get("LORACOMP_FUZZ", "1"))
NOTES = "CREATE TABLE notes (id integer, part text, body text, mark integer, PRIMARY KEY (id, part))"
DECLARE = "SELECT loracomp.create_answers('kinds', 'notes', 'Note: {body}', filter => '{\"mark\": [0, 1, 2]}')"
KEYS = st.tuples(st.integers(1, 4), st.sampled_from("ab"))
BODIES = st.sampled_from([None, " ", "x", "y", "z"])
MARKS = st.integers(0, 3)
ROWS = st.dictionaries(KEYS, st.tuples(BODIES, MARKS), min_size=1, max_size=5)
Row = tuple[str | None, int]


class Machine(RuleBasedStateMachine):
    url: str
    owner: Connection
    alice: Connection

    def __init__(self) -> None:
        super().__init__()
        clear(self.owner)
        self.alice.execute("DROP TABLE IF EXISTS notes CASCADE")
        self.alice.execute(NOTES)
        self.owner.execute("SELECT loracomp.forget_answers(a) FROM loracomp.declaration AS a")
        self.alice.execute(DECLARE.encode())
        self.rows: dict[tuple[int, str], Row] = {}
        self.owner.execute("TRUNCATE asked")
        self.to_ask = 0
        """How many jobs there may be at most: changed prompts, and all of them again."""

    def write(self, statement: str, parameters: Any, after: dict[tuple[int, str], Row]) -> None:
        self.alice.execute(statement.encode(), parameters)
        self.note(after)

    def note(self, after: dict[tuple[int, str], Row]) -> None:
        self.to_ask += sum(asked_of(row) != asked_of(self.rows.get(key)) for key, row in after.items())
        self.rows = after

    @rule(rows=ROWS)
    def insert(self, rows: dict[tuple[int, str], Row]) -> None:
        """Insert rows by one statement, which fails as a whole if any of their keys exists."""
        try:
            self.write(INSERT, spread(rows), {**self.rows, **rows})
        except errors.UniqueViolation:
            assert rows.keys() & self.rows.keys()

    @rule(rows=ROWS)
    def upsert(self, rows: dict[tuple[int, str], Row]) -> None:
        updating = " ON CONFLICT (id, part) DO UPDATE SET body = excluded.body, mark = excluded.mark"
        self.write(INSERT + updating, spread(rows), {**self.rows, **rows})

    @rule(rows=ROWS)
    def copy(self, rows: dict[tuple[int, str], Row]) -> None:
        try:
            with self.alice.cursor().copy("COPY notes FROM STDIN") as writing:
                for key, row in rows.items():
                    writing.write_row((*key, *row))
        except errors.UniqueViolation:
            return
        self.note({**self.rows, **rows})

    @rule(rows=ROWS)
    def merge(self, rows: dict[tuple[int, str], Row]) -> None:
        """Rows that are there and are given with a mark of 0 are deleted."""
        deleted = {key for key, (_, mark) in rows.items() if mark == 0 and key in self.rows}
        after = {key: row for key, row in {**self.rows, **rows}.items() if key not in deleted}
        self.write(MERGE, spread(rows), after)

    @rule(number=st.integers(1, 4), body=BODIES)
    def update(self, number: int, body: str | None) -> None:
        after = {key: (body, row[1]) if key[0] == number else row for key, row in self.rows.items()}
        self.write("UPDATE notes SET body = %s WHERE id = %s", [body, number], after)

    @rule(mark=MARKS)
    def mark_all(self, mark: int) -> None:
        self.write("UPDATE notes SET mark = %s", [mark], {key: (body, mark) for key, (body, _) in self.rows.items()})

    @rule(by=st.integers(1, 3))
    def move_keys(self, by: int) -> None:
        """Keys take each other's places by way of others, so that no statement meets one that is there."""
        away = {(key[0] + 10, key[1]): row for key, row in self.rows.items()}  # workers may ask for these
        self.write("UPDATE notes SET id = id + 10", None, away)
        back = "UPDATE notes SET id = (id - 11 + %s) %% 4 + 1"
        self.write(back, [by], {((key[0] - 11 + by) % 4 + 1, key[1]): row for key, row in self.rows.items()})

    @rule(number=st.integers(1, 4))
    def delete(self, number: int) -> None:
        after = {key: row for key, row in self.rows.items() if key[0] != number}
        self.write("DELETE FROM notes WHERE id = %s", [number], after)

    @rule()
    def truncate(self) -> None:
        self.write("TRUNCATE notes", None, {})

    @rule(rows=ROWS)
    def roll_back(self, rows: dict[tuple[int, str], Row]) -> None:
        with self.alice.transaction(force_rollback=True):
            self.alice.execute("DELETE FROM notes")
            self.alice.execute(INSERT.encode(), spread(rows))

    @rule()
    def again(self) -> None:
        self.alice.execute("SELECT loracomp.alter_answers('kinds', again => true)")
        self.to_ask += len(self.rows)

    @rule()
    def settle(self) -> None:
        """When nothing is left to do, each row has the answer to its prompt, and nothing is asked twice."""
        self.finish()
        expected = {key: ended(body) for key, (body, mark) in self.rows.items() if mark < 3}
        assert self.shown() == expected
        assert value(self.owner, "SELECT count(*) FROM loracomp.answer_row") == len(expected)
        assert value(self.owner, "SELECT count(*) FROM loracomp.answer_hint") == 0
        open_jobs = "SELECT count(*) FROM loracomp.job WHERE finished_at IS NULL"
        assert value(self.owner, open_jobs) == 0
        assert value(self.owner, "SELECT count(*) FROM asked") <= self.to_ask

    def finish(self) -> None:
        """Wait until workers have done all."""
        raise NotImplementedError

    @invariant()
    def view_fits(self) -> None:
        shown = self.shown()
        assert shown.keys() == {key for key, (_, mark) in self.rows.items() if mark < 3}
        for key, (status, given) in shown.items():
            body = self.rows[key][0]
            assert status in ("waiting", "answered", "stale", "refused")
            if status == "answered":
                assert (status, given) == ended(body), "an old answer is not shown as the row's"
            else:
                assert (given is not None) == (status == "stale")

    def shown(self) -> dict[tuple[int, str], tuple[str, str | None]]:
        rows = self.alice.execute("SELECT id, part, status, answer FROM kinds").fetchall()
        return {(row["id"], row["part"]): (row["status"], row["answer"]) for row in rows}


class AmongWorkers(Machine):
    """Two workers claim and answer all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.done = Event()
        self.pool = ThreadPoolExecutor(2)
        self.working = [self.pool.submit(self.serve) for _ in range(2)]

    def serve(self) -> None:
        with db.connect(self.url) as connection:
            while not self.done.is_set():
                answer(connection, claim(connection, 3))

    def finish(self) -> None:
        wait_until(lambda: any(each.done() for each in self.working) or not value(self.owner, BUSY))

    def teardown(self) -> None:
        self.done.set()
        self.pool.shutdown()
        for each in self.working:
            each.result()


BUSY = """
SELECT EXISTS (SELECT FROM loracomp.answer_hint) OR EXISTS (SELECT FROM loracomp.job WHERE finished_at IS NULL)
    OR EXISTS (SELECT FROM loracomp.ended_job) OR loracomp.rows_wait()
"""
COUNT_ASKED = """
CREATE TABLE asked (job_id bigint);
CREATE FUNCTION note_asked() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.asked SELECT j.id FROM new_job AS j; RETURN NULL; END $$;
CREATE TRIGGER note_asked AFTER INSERT ON loracomp.job REFERENCING NEW TABLE AS new_job
    FOR EACH STATEMENT EXECUTE FUNCTION note_asked()
"""
INSERT = "INSERT INTO notes SELECT * FROM unnest(%s::int[], %s::text[], %s::text[], %s::int[])"
MERGE = """
MERGE INTO notes AS n
USING unnest(%s::int[], %s::text[], %s::text[], %s::int[]) AS g (id, part, body, mark)
ON (n.id, n.part) = (g.id, g.part)
WHEN MATCHED AND g.mark = 0 THEN DELETE
WHEN MATCHED THEN UPDATE SET body = g.body, mark = g.mark
WHEN NOT MATCHED THEN INSERT VALUES (g.id, g.part, g.body, g.mark)
"""


def spread(rows: dict[tuple[int, str], Row]) -> list[list[Any]]:
    whole = [(*key, *row) for key, row in rows.items()]
    return [list(column) for column in zip(*whole, strict=True)]


def asked_of(row: Row | None) -> str | None:
    """The prompt's part that decides whether it is asked."""
    return None if row is None or row[1] == 3 or ended(row[0])[0] == "refused" else row[0]


def ended(body: str | None) -> tuple[str, str | None]:
    """The status and the answer of a row with this text. Workers answer with a prompt's last word."""
    return ("refused", None) if body in (None, " ") else ("answered", body)


def answer(owner: Connection, jobs: Any) -> None:
    rows = [{"job_id": job.id, "output": job.prompt.split()[-1]} for job in jobs]
    record(owner, {job.id: job.lease_token for job in jobs}, rows)


@pytest.fixture
def parties(server: str, template: str, logins: None) -> Iterator[dict[str, Any]]:
    name = f"answers_{os.getpid()}_{random.randrange(10**6)}"
    url = create_database(server, name, template)
    with db.connect(url) as owner, as_alice(url) as alice:
        owner.execute(COUNT_ASKED)
        yield {"url": url, "owner": owner, "alice": alice}
    drop_database(server, name)


def test_the_view_fits_a_model(parties: dict[str, Any]) -> None:
    run_state_machine_as_test(
        type("Made", (AmongWorkers,), parties),
        settings=settings(
            max_examples=5 * TRIES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
