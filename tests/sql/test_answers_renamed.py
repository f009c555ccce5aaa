"""A renamed table or column is followed at once, whatever has its old name now."""

from collections.abc import Iterator

import pytest

from answers_data import TICKETS, URGENCY, answer_all, as_alice, keep, shown
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value

RENAMES = {
    "the table": "ALTER TABLE tickets RENAME TO old_tickets",
    "the schema": "ALTER TABLE tickets SET SCHEMA other",
    "the key": "ALTER TABLE tickets RENAME id TO number; ALTER TABLE tickets RENAME seen TO id",
    "the prompt's columns": "ALTER TABLE tickets RENAME body TO text; ALTER TABLE tickets RENAME subject TO body;"
    "ALTER TABLE tickets RENAME text TO subject",
    "a swap of tables": "ALTER TABLE tickets RENAME TO old_tickets;"
    "CREATE TABLE tickets (LIKE old_tickets INCLUDING ALL);"
    "INSERT INTO tickets VALUES (1, 'secret', 'seen', 1), (2, 'secret', 'seen', 1); GRANT SELECT ON tickets TO public",
    "odd names": """ALTER TABLE tickets RENAME id TO "a %s {b} 'c'";"""
    """ALTER TABLE tickets RENAME TO "%I $1 'c' $sees$" """,
}
LABELLED = """
SELECT e.prompt FROM loracomp.example AS e JOIN loracomp.task AS t ON t.id = e.task_id WHERE t.name LIKE 'answers/%'
"""


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """A policy shows her readers the first of her two tickets."""
    with as_alice(database) as opened:
        connection.execute(f"CREATE SCHEMA other AUTHORIZATION {login('alice')}".encode())
        opened.execute(TICKETS)
        opened.execute("INSERT INTO tickets (id, subject, body, seen) VALUES (1, 'a', 'one', 2), (2, 'b', 'two', 1)")
        opened.execute(URGENCY)
        opened.execute("ALTER TABLE tickets ENABLE ROW LEVEL SECURITY; CREATE POLICY first ON tickets USING (id = 1)")
        opened.execute(f"GRANT SELECT ON tickets TO {login('bob')}; GRANT USAGE ON SCHEMA other TO public".encode())
        opened.execute(f"GRANT SELECT, UPDATE (correct) ON urgency TO {login('bob')}".encode())
        answer_all(connection)
        yield opened
    connection.execute("DROP SCHEMA IF EXISTS other CASCADE")


@pytest.mark.parametrize("what", RENAMES)
@pytest.mark.parametrize("key", ["one column", "two columns"])
def test_readers_and_corrections_know_the_table_before_a_row_is_written(
    connection: Connection, alice: Connection, database: str, what: str, key: str
) -> None:
    if key == "two columns":
        alice.execute("SELECT loracomp.drop_answers('urgency')")
        alice.execute("ALTER TABLE tickets DROP CONSTRAINT tickets_pkey, ADD PRIMARY KEY (id, seen)")
        alice.execute(URGENCY)
        alice.execute(f"GRANT SELECT, UPDATE (correct) ON urgency TO {login('bob')}".encode())
        answer_all(connection)
    for statement in RENAMES[what].split(";"):
        alice.execute(statement.encode())
    with connect(database, "bob") as bob:
        assert shown(bob) == {1: ("answered", "one")}
        assert bob.execute("UPDATE urgency SET correct = 'urgent'").rowcount == 1
    assert value(connection, LABELLED) == "Ticket: a one"
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")
    prompts = [row["prompt"] for row in connection.execute(LABELLED + " ORDER BY e.id")]
    assert prompts == ["Ticket: a one", "Ticket: b two"]
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{urgent,so so}')")
    keep(connection)  # which deletes the examples with the old choices
    relabelled = LABELLED.replace("e.prompt", "DISTINCT e.prompt, e.choices")
    assert sorted((row["prompt"], *row["choices"]) for row in connection.execute(relabelled)) == [
        ("Ticket: a one", "urgent", "so so"), ("Ticket: b two", "urgent", "so so"),
    ]  # fmt: skip


def test_a_partitioned_table_that_was_renamed(connection: Connection, alice: Connection, database: str) -> None:
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text) PARTITION BY HASH (id)")
    alice.execute("CREATE TABLE all_notes PARTITION OF notes FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    alice.execute("INSERT INTO notes VALUES (1, 'one'), (2, 'two')")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    alice.execute("ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY first ON notes USING (id = 1)")
    alice.execute(f"GRANT SELECT ON notes, says TO {login('bob')}".encode())
    answer_all(connection)
    alice.execute("ALTER TABLE notes RENAME TO words; ALTER TABLE words RENAME id TO number")
    with connect(database, "bob") as bob:
        assert shown(bob, "says") == {1: ("answered", "one")}


def test_a_new_prompt_knows_the_filters_new_name(connection: Connection, alice: Connection) -> None:
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text, kind text)")
    alice.execute("INSERT INTO notes VALUES (1, 'one', 'a'), (2, 'two', 'b')")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}', filter => '{\"kind\": \"a\"}')")
    alice.execute("ALTER TABLE notes RENAME kind TO sort")
    alice.execute("SELECT loracomp.alter_answers('says', prompt => 'say {t}')")
    assert answer_all(connection) == ["say one"]


@pytest.mark.parametrize("paused", [False, True])
def test_new_names_are_noted_before_a_row_is_written(connection: Connection, alice: Connection, paused: bool) -> None:
    """A restored declaration finds its columns by them."""
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => %s)", [paused])
    keep(connection)
    alice.execute("ALTER TABLE tickets RENAME body TO words; ALTER TABLE tickets RENAME id TO number")
    alice.execute("ALTER TABLE tickets RENAME subject TO body")
    keep(connection)
    noted = connection.execute("SELECT names, prompt FROM loracomp.declaration").fetchall()
    assert noted == [{"names": ["public.tickets", "body", "words", "number"], "prompt": "Ticket: {body} {words}"}]
    assert value(connection, "SELECT count(*) FROM loracomp.due_declarations()") == 0
