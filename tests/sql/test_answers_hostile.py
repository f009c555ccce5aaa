"""Rows and tables that can't be asked are marked, and hold up nobody else's claims."""

import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from answers_data import TICKETS, URGENCY, answer_all, as_alice, shown
from job_data import claim, record
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.records import Job
from people_fixtures import value
from worker_helpers import wait_until

SLOW_S = 30
"""Claims take a fraction of a second on an idle machine. What they would take without limits is a minute and more."""
TOO_LONG = "the prompt is longer than 1000000 characters"
BOBS = "SELECT loracomp.create_answers('bobs', 'others', '{t}', choices => '{yes,no}')"


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    with as_alice(database) as opened:
        yield opened


@pytest.fixture
def bob(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """Owner of a table with nothing odd in it, none of whose rows has been asked."""
    with as_alice(database, "bob") as opened:
        opened.execute("CREATE TABLE others (id integer PRIMARY KEY, t text)")
        yield opened


def timed_ask(connection: Connection) -> list[str]:
    """What one call of each of the keeper's steps asks."""
    return [job.prompt for job in timed_claim(connection)]


def timed_answers(connection: Connection) -> list[str]:
    """Answer what one call of each of the keeper's steps asks; returns the prompts."""
    jobs = timed_claim(connection)
    rows = [{"job_id": job.id, "output": "yes", "adapter_sha256": []} for job in jobs]
    record(connection, {job.id: job.lease_token for job in jobs}, rows)
    return [job.prompt for job in jobs]


def timed_claim(connection: Connection) -> tuple[Job, ...]:
    began = time.monotonic()
    jobs = claim(connection, 1000)
    assert time.monotonic() - began < SLOW_S
    return jobs


def ask_until(connection: Connection, claims: int, done: str, *, forgive: bool = False) -> list[str]:
    """Claim until a query says true, at most so often; the prompts. `forgive`: a declaration is tried again at once."""
    prompts: list[str] = []
    for _ in range(claims):
        prompts += timed_ask(connection)
        if value(connection, done):
            return prompts + [job.prompt for job in claim(connection, 1000)]
        if forgive:
            connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
    raise AssertionError(connection.execute("SELECT * FROM loracomp.declaration").fetchall())


def reasons(connection: Connection, view: str, key: str = "id") -> dict[Any, tuple[str, str | None]]:
    rows = connection.execute(f"SELECT {key} AS key, status, reason FROM {view}".encode()).fetchall()
    return {row["key"]: (row["status"], row["reason"]) for row in rows}


def test_long_rows_are_read_a_few_at_a_time(connection: Connection, alice: Connection, bob: Connection) -> None:
    """Ten pages of 200 were read in a claim, and a page of more than 268 MB never."""
    alice.execute(TICKETS)
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets SELECT i, 'a', repeat('word ', 250000) FROM generate_series(1, 250) AS i")
    alice.execute("INSERT INTO tickets SELECT i, 'short', i FROM generate_series(251, 260) AS i")
    bob.execute(BOBS)
    bob.execute("INSERT INTO others VALUES (1, 'one')")
    prompts = timed_ask(connection)
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") < 250, "a claim ends in time"
    prompts += [prompt for _ in range(15) for prompt in timed_ask(connection)]
    assert "one" in prompts, "owners take turns at random"
    done = "SELECT count(*) = 261 AND NOT EXISTS (SELECT FROM loracomp.answer_hint) FROM loracomp.answer_row"
    prompts += ask_until(connection, 250, done, forgive=True)
    assert sorted(prompts) == [*(f"Ticket: short {i}" for i in range(251, 261)), "one"]
    assert {row for key, row in reasons(alice, "urgency").items() if key <= 250} == {("refused", TOO_LONG)}


def test_a_page_has_a_megabyte_of_text(connection: Connection, alice: Connection) -> None:
    """Only rows that can become jobs count."""
    alice.execute(TICKETS)
    alice.execute("INSERT INTO tickets SELECT i, 'a', repeat('word ', 60000) FROM generate_series(1, 20) AS i")
    alice.execute(URGENCY)
    sizes = [len(timed_ask(connection)) for _ in range(8)]
    assert sum(sizes) == 20 and max(sizes) <= 4


@pytest.mark.parametrize("kind", ["text", "varchar", "jsonb"])
def test_a_text_that_is_too_long_even_to_be_read_marks_its_row_alone(
    connection: Connection, alice: Connection, kind: str
) -> None:
    alice.execute(f"CREATE TABLE notes (id integer PRIMARY KEY, t {kind})".encode())
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    rows = f"SELECT i, to_json('short ' || i)::text::{kind} FROM generate_series(1, 40) AS i"
    alice.execute(f"INSERT INTO notes {rows}".encode())
    alice.execute(f"UPDATE notes SET t = to_json(repeat('x', 120000000))::text::{kind} WHERE id = 20".encode())
    prompts = ask_until(connection, 5, "SELECT count(*) = 40 FROM loracomp.answer_row", forgive=True)
    assert len(prompts) == 39
    assert reasons(alice, "says")[20] == ("refused", TOO_LONG)
    alice.execute("UPDATE notes SET t = '\"now short\"' WHERE id = 20")
    connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
    assert timed_ask(connection) == ['"now short"']


@pytest.mark.parametrize("found_by", ["hint", "look"])
def test_a_virtual_column_that_fails_marks_its_row_alone(
    connection: Connection, alice: Connection, found_by: str
) -> None:
    """Its readers may not see the value that the error quotes."""
    if connection.info.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    alice.execute(
        "CREATE TABLE notes (id integer PRIMARY KEY, a text, b integer,"
        " t text GENERATED ALWAYS AS ((a::integer / b)::text) VIRTUAL)"
    )
    declare = "SELECT loracomp.create_answers('says', 'notes', '{t}')"
    if found_by == "hint":
        alice.execute(declare)
    alice.execute("INSERT INTO notes SELECT i, i * 2, 2 FROM generate_series(1, 300) AS i")
    alice.execute("UPDATE notes SET b = 0 WHERE id IN (1, 150, 300); UPDATE notes SET a = 'SECRET' WHERE id = 77")
    if found_by == "look":
        alice.execute(declare)
    prompts = ask_until(connection, 10, "SELECT count(*) = 300 FROM loracomp.answer_row")
    assert sorted(map(int, prompts)) == [i for i in range(1, 301) if i not in (1, 77, 150, 300)]
    said = reasons(alice, "says")
    assert said[1] == said[150] == said[300] == ("refused", "its prompt can't be made: division by zero")
    assert said[77] == ("refused", "its prompt can't be made: invalid input syntax for type integer: ...")
    connection.execute("SELECT loracomp.begin_scan(a.id) FROM loracomp.declaration AS a")
    assert timed_ask(connection) == []
    alice.execute("UPDATE notes SET b = 2 WHERE id = 150")
    assert timed_ask(connection) == ["150"]


def test_a_virtual_column_that_takes_long_is_read_row_by_row(
    connection: Connection, alice: Connection, bob: Connection
) -> None:
    """What one row takes can't be limited, so its declaration is left out for five times as long."""
    if connection.info.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    slow = "length(repeat(t, 60000000))::text"  # some 0.1 s
    alice.execute(f"CREATE TABLE notes (id integer PRIMARY KEY, t text, v text GENERATED ALWAYS AS ({slow}) VIRTUAL)")
    alice.execute("INSERT INTO notes SELECT i, 'word' FROM generate_series(1, 200) AS i")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{v}')")
    bob.execute(BOBS)
    bob.execute("INSERT INTO others SELECT i, i FROM generate_series(1, 20) AS i")
    asked = "SELECT count(*) >= {} FROM loracomp.job AS j WHERE j.submitted_by LIKE '{}%%'"
    ask_until(connection, 15, asked.format(20, "bob"))
    ask_until(connection, 15, asked.format(1, "alice"), forgive=True)
    assert value(connection, "SELECT count(*) FROM loracomp.job AS j WHERE j.submitted_by LIKE 'alice%'") < 200


def test_rows_that_take_longer_than_the_keeper_waits_hold_up_no_others(
    connection: Connection, alice: Connection, bob: Connection
) -> None:
    if connection.info.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    slow = "length(repeat(t, 500000000))::text"
    alice.execute(f"CREATE TABLE notes (id integer PRIMARY KEY, t text, v text GENERATED ALWAYS AS ({slow}) VIRTUAL)")
    alice.execute("INSERT INTO notes SELECT i, 'ab' FROM generate_series(1, 200) AS i")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{v}')")
    bob.execute("INSERT INTO others VALUES (1, 'one')")
    bob.execute(BOBS)
    connection.execute("SET statement_timeout = '2s'")
    for _ in range(4):
        connection.execute("SELECT loracomp.ask_rows()")
    connection.execute("SET statement_timeout = '20s'")
    assert value(connection, "SELECT count(*) FROM loracomp.job AS j WHERE j.submitted_by LIKE 'bob%'") == 1
    assert value(alice, "SELECT state FROM loracomp.list_answers()") == "reading its rows takes too long"
    assert value(connection, "SELECT max(retry_at) > now() + interval '5 minutes' FROM loracomp.declaration")


@pytest.mark.parametrize("found_by", ["hint", "look"])
def test_a_key_that_fits_in_no_index_of_ours_refuses_its_row_alone(
    connection: Connection, alice: Connection, found_by: str
) -> None:
    """Random letters aren't compressed; a table's own index has room for a little more, or for far more that is."""
    alice.execute("CREATE TABLE notes (id text PRIMARY KEY, t text)")
    declare = "SELECT loracomp.create_answers('says', 'notes', '{t}')"
    drawn = random.Random(1)
    keys = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz0123456789+-*/()", k=n)) for n in range(2500, 2675, 5)]
    keys.append("compressed" * 5000)
    if found_by == "hint":
        alice.execute(declare)
    with alice.cursor() as cursor:
        cursor.executemany("INSERT INTO notes VALUES (%s, 'some text')", [[key] for key in keys])
    if found_by == "look":
        alice.execute(declare)
    answer_all(connection, "yes")
    fitting = {key for key in keys if len(key) <= 2572}
    assert shown(alice, "says") == {key: ("answered", "yes") if key in fitting else ("refused", None) for key in keys}
    assert reasons(alice, "says")[keys[-1]] == ("refused", "the key is longer than 2600 bytes")
    alice.execute("UPDATE notes SET id = 'short' WHERE id = %s", [keys[-1]])
    alice.execute("UPDATE notes SET id = %s WHERE id = %s", [keys[-1], keys[0]])
    assert answer_all(connection, "yes") == ["some text"]
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") == len(fitting)
    assert shown(alice, "says")[keys[-1]] == ("refused", None)


def test_a_changed_table_restarts_no_look_at_the_rows_of_another(
    connection: Connection, alice: Connection, bob: Connection
) -> None:
    alice.execute(TICKETS)
    alice.execute(URGENCY)
    bob.execute("INSERT INTO others SELECT i, i FROM generate_series(1, 2400) AS i")  # a claim reads 2,000 at most
    bob.execute(BOBS)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    alice.execute("ALTER TABLE tickets DROP COLUMN body")
    asked = set()
    for _ in range(16):
        alice.execute("UPDATE tickets SET subject = subject || 'x'")
        asked.update(timed_ask(connection))
    assert asked == {str(i) for i in range(1, 2401)}
    assert "column body was dropped" in value(alice, "SELECT state FROM loracomp.list_answers()")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{subject}')")
    done = "SELECT EXISTS (SELECT FROM loracomp.job WHERE prompt LIKE 'axx%')"
    assert ask_until(connection, 16, done) == ["a" + 16 * "x"], "in the first call, or a later one"


def test_a_table_that_cannot_be_read_leaves_no_more_behind_however_often_it_is_written(
    connection: Connection, alice: Connection, bob: Connection
) -> None:
    alice.execute(TICKETS)
    alice.execute(URGENCY)
    alice.execute("ALTER TABLE tickets DROP CONSTRAINT tickets_pkey")
    for number in range(30):
        alice.execute("TRUNCATE tickets")
        alice.execute("INSERT INTO tickets VALUES (1, %s)", [number])
    bob.execute("INSERT INTO others VALUES (1, 'one')")
    bob.execute(BOBS)
    assert timed_ask(connection) == ["one"]

    def is_thinned() -> bool:
        connection.execute("SELECT loracomp.ask_rows()")  # a call may have no time left for a second declaration
        return value(connection, "SELECT count(*) FROM loracomp.scan_request") == 1

    wait_until(is_thinned)
    assert value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 1


def test_a_look_at_all_rows_ends_though_hints_are_missed_all_the_time(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text)")
    alice.execute("INSERT INTO notes SELECT i, i FROM generate_series(1, 2400) AS i")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    asked = []
    for number in range(2401, 2415):
        connection.execute("ALTER TABLE loracomp.answer_hint RENAME TO away")
        alice.execute("INSERT INTO notes VALUES (%s, %s)", [number, number])
        connection.execute("ALTER TABLE loracomp.away RENAME TO answer_hint")
        asked += timed_ask(connection)
    assert len(asked) >= 2400
    asked += [prompt for _ in range(8) for prompt in timed_ask(connection)]
    assert sorted(map(int, asked)) == list(range(1, 2415)), "what was missed is asked by the next look"


OTHER_TYPES = (
    ("jsonb", "to_jsonb(t)", "'7'"),
    ("text", "t::text", "'8'"),
    ("text[]", "ARRAY[t]", "'{9}'"),
    ("varchar(40)", "t[1]", "'10'"),
    ("integer", "11", "12"),
    ("text", "t::text", "'13'"),
)


def test_a_column_of_another_type_is_read_as_it_now_is(connection: Connection, alice: Connection) -> None:
    """How long a text is, is known without reading it; of other types that can't be asked."""
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text)")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    for number, (kind, converted, written) in enumerate(OTHER_TYPES):
        alice.execute(f"ALTER TABLE notes ALTER t TYPE {kind} USING {converted}".encode())
        alice.execute(f"INSERT INTO notes VALUES ({number}, {written})".encode())
        alice.execute(f"UPDATE notes SET t = {written}".encode())
        answer_all(connection, "yes")
        assert set(shown(alice, "says").values()) == {("answered", "yes")}, kind
        alice.execute("UPDATE says SET correct = 'yes'")


def test_a_page_of_which_a_row_cannot_be_inserted_is_halved(connection: Connection, alice: Connection) -> None:
    """Whatever the reason; here a constraint that jobs get later. A fault of all jobs is none of a row."""
    alice.execute(TICKETS)
    alice.execute("INSERT INTO tickets SELECT i, 'a', i FROM generate_series(1, 100) AS i")
    alice.execute(URGENCY)
    connection.execute("ALTER TABLE loracomp.job ADD CONSTRAINT odd CHECK (prompt NOT LIKE '%a 42')")
    try:
        prompts = ask_until(connection, 20, "SELECT count(*) = 100 FROM loracomp.answer_row")
        assert len(prompts) == 99
        assert reasons(alice, "urgency")[42][0] == "refused"
        assert "it can't be asked: new row for relation" in (reasons(alice, "urgency")[42][1] or "")
    finally:
        connection.execute("ALTER TABLE loracomp.job DROP CONSTRAINT odd")
    alice.execute("INSERT INTO tickets VALUES (101, 'a', 'b')")
    connection.execute("ALTER TABLE loracomp.job ADD CONSTRAINT odd CHECK (FALSE) NOT VALID")
    try:
        assert timed_ask(connection) == []
        assert shown(alice)[101] == ("waiting", None)
        assert "odd" in value(alice, "SELECT state FROM loracomp.list_answers()")
    finally:
        connection.execute("ALTER TABLE loracomp.job DROP CONSTRAINT odd")


def test_the_answers_of_a_dropped_table_are_deleted_by_many_claims(connection: Connection, alice: Connection) -> None:
    alice.execute(TICKETS)
    alice.execute(URGENCY)
    connection.execute(
        "INSERT INTO loracomp.answer_row (declaration_id, key, status, prompt_hash)"
        " SELECT a.id, ARRAY[i::text], 'failed', '' FROM loracomp.declaration AS a, generate_series(1, 5000) AS i"
    )
    alice.execute("DROP TABLE tickets CASCADE")
    left = []
    for _ in range(3):
        timed_ask(connection)
        left.append(value(connection, "SELECT count(*) FROM loracomp.answer_row"))
    assert left == [3000, 1000, 0]
    assert value(connection, "SELECT count(*) FROM loracomp.declaration") == 0


TYPES = ("text", "varchar", "char(300)", "jsonb", "text[]", "integer")
CHANGES = ("UPDATE odd SET u = 'changed'", "DELETE FROM odd WHERE u IS NULL", "TRUNCATE odd", "SELECT", "SELECT")
WAITING = "SELECT count(*) FROM odds WHERE status = 'waiting'"
KEYS = ("integer", "text", "numeric", "timestamptz", "char(2630)")


def odd_text(drawn: random.Random) -> str:
    """SQL for a text."""
    return drawn.choice(
        [
            "NULL",
            "''",
            "E' \\n '",
            "'some text'",
            "repeat('x', 200000)",
            "repeat('word ', 250000)",
            "repeat('x', 5000000)",
            "repeat(md5('x'), 40000)",
            "'{a'",
        ]
    )


def odd_value(drawn: random.Random, kind: str) -> str:
    text = odd_text(drawn)
    return {
        "jsonb": f"to_jsonb({text}::text)",
        "text[]": f"ARRAY[{text}::text, {text}]",
        "integer": drawn.choice(["0", "7", "NULL"]),
    }.get(kind, f"left({text}, 300)" if kind == "char(300)" else text)


def odd_key(drawn: random.Random, kind: str, number: int) -> str:
    letters = "".join(drawn.choices("abcdefghij0123456789+-*/", k=drawn.choice([5, 2540, 2600])))
    return {
        "integer": str(number),
        "numeric": f"{number} * 10::numeric ^ {drawn.choice([0, 50, 3000, 100000])}",
        "timestamptz": f"to_timestamp({number})",
        "text": drawn.choice([f"'{number} {letters}'", f"'{number}' || repeat('y', 20000)"]),
    }.get(kind, f"'{number} {letters}'")


def insert_odd(
    alice: Connection, drawn: random.Random, kind: str, key: str, numbers: Iterable[int], *, with_virtual: bool
) -> None:
    for number in numbers:
        names, more = "id, t, u", ""
        if with_virtual:
            names, more = "id, t, u, d", f", {drawn.choice([0, 0, 5, 'NULL'])}"
        row = f"{odd_key(drawn, key, number)}, {odd_value(drawn, kind)}, {odd_text(drawn)}{more}"
        alice.execute(f"INSERT INTO odd ({names}) VALUES ({row})".encode())


@pytest.mark.parametrize("seed", range(8))
def test_odd_tables_hold_up_no_others(connection: Connection, alice: Connection, bob: Connection, seed: int) -> None:
    """Random tables, rows and changes of alice's: all of bob's rows are asked meanwhile, and hers in the end."""
    drawn = random.Random(seed)
    kind, key = drawn.choice(TYPES), drawn.choice(KEYS)
    virtual = ", d integer, v text GENERATED ALWAYS AS ((100 / d)::text) VIRTUAL"
    with_virtual = connection.info.server_version >= 180000 and drawn.random() < 0.5
    columns = f"id {key} PRIMARY KEY, t {kind}, u text{virtual if with_virtual else ''}"
    alice.execute(f"CREATE TABLE odd ({columns})".encode())
    prompt = "Odd {t} {u}" + " {v}" * with_virtual
    backfill = drawn.random() < 0.5
    declare = f"SELECT loracomp.create_answers('odds', 'odd', '{prompt}')"
    if not backfill:
        alice.execute(declare.encode())
    insert_odd(alice, drawn, kind, key, range(1, 41), with_virtual=with_virtual)
    if backfill:
        alice.execute(declare.encode())
    bob.execute("INSERT INTO others SELECT i, 'bob ' || i FROM generate_series(1, 300) AS i")
    bob.execute(BOBS)
    bob.execute("INSERT INTO others SELECT i, 'bob ' || i FROM generate_series(301, 400) AS i")
    prompts: list[str] = []
    for _ in range(12):
        prompts += timed_answers(connection)
        alice.execute(drawn.choice(CHANGES).encode())
    assert {f"bob {i}" for i in range(1, 401)} <= set(prompts)
    insert_odd(alice, drawn, kind, key, range(41, 51), with_virtual=with_virtual)
    assert value(alice, WAITING)
    for _ in range(40):
        timed_answers(connection)
        connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
        if not value(alice, WAITING):
            break
    assert value(alice, WAITING) == 0, alice.execute("SELECT state FROM loracomp.list_answers()").fetchall()
    assert {row for row in reasons(alice, "odds").values() if row[0] == "refused" and row[1] is None} == set()
    alice.execute(
        drawn.choice(["ALTER TABLE odd DROP COLUMN u", "ALTER TABLE odd ALTER u TYPE bytea USING ''"]).encode()
    )
    alice.execute("UPDATE odd SET t = NULL")
    bob.execute("INSERT INTO others VALUES (500, 'bob 500')")
    assert "bob 500" in timed_ask(connection) + timed_ask(connection)
