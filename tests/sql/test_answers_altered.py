"""A declaration that is changed, and a declared table whose key or owner changes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from psycopg import errors

from answers_data import ADD_TICKETS, TICKETS, URGENCY, answer_all, as_alice, ask, keep, shown, tidy
from job_data import add_jobs, claim, prediction_row, record
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from people_fixtures import connect, login, one, value


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """She has four tickets, three of them seen so many times as their number says."""
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute("INSERT INTO tickets SELECT i, 'a', 'urgent', i FROM generate_series(1, 4) AS i")
        yield opened
    tidy(connection)


# Another filter, length, and tags


def test_with_another_filter_rows_are_asked_and_lose_their_answers(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY.replace("}')", "}', filter => '{\"seen\": [1, 2]}')"))
    alice.execute(f"GRANT SELECT ON urgency TO {login('ana')}".encode())
    alice.execute("ALTER TABLE tickets RENAME id TO number; ALTER TABLE tickets RENAME seen TO looked")
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent'")
    before = value(alice, "SELECT 'urgency'::regclass::oid")
    alice.execute("""SELECT loracomp.alter_answers('urgency', filter => '{"looked": [2, 3]}')""")
    assert shown(alice) == {2: ("answered", "urgent"), 3: ("waiting", None)}, (
        "at once, and with the names that readers know"
    )
    assert len(answer_all(connection)) == 1, "the row that passes both filters keeps its answer"
    assert shown(alice) == {2: ("answered", "urgent"), 3: ("answered", "urgent")}
    assert value(connection, "SELECT array_agg(key ORDER BY key) FROM loracomp.answer_row") == [["2"], ["3"]]
    assert (
        value(connection, "SELECT count(*) FROM loracomp.example AS e JOIN loracomp.declaration AS a USING (task_id)")
        == 1
    )
    assert value(alice, "SELECT 'urgency'::regclass::oid") == before
    assert value(alice, f"SELECT has_table_privilege('{login('ana')}', 'urgency', 'select')")
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 3")
    alice.execute("SELECT loracomp.alter_answers('urgency', filter => '{}')")
    assert len(answer_all(connection)) == 2
    with pytest.raises(errors.UndefinedColumn, match="has no column colour"):
        alice.execute("""SELECT loracomp.alter_answers('urgency', filter => '{"colour": 1}')""")


def test_a_filter_takes_no_columns_away_that_the_views_owner_has_added(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    alice.execute(
        "CREATE OR REPLACE VIEW urgency AS SELECT id, 'a' AS answer, 1::float8 AS confidence, NULL::boolean AS certain,"
        " 'answered' AS status,"
        " 'b' AS reason, 'mix' AS answered_by, now() AS answered_at, 'c' AS correct, 1 AS mine FROM tickets"
    )
    with pytest.raises(errors.FeatureNotSupported, match=r"view public\.urgency has columns that its owner has added"):
        alice.execute("""SELECT loracomp.alter_answers('urgency', filter => '{"seen": 1}')""")


def test_another_length_asks_all_rows_again_and_other_tags_none(connection: Connection, alice: Connection) -> None:
    alice.execute(
        "SELECT loracomp.create_answers('said', 'tickets', '{body} {id}', max_new_tokens => 5, tags => '{\"a\": 1}')"
    )
    assert len(answer_all(connection)) == 4
    alice.execute("UPDATE said SET correct = 'so' WHERE id = 1")
    alice.execute("SELECT loracomp.alter_answers('said', tags => '{\"b\": 2}', priority => 3, max_new_tokens => 5)")
    assert answer_all(connection) == []
    alice.execute("INSERT INTO tickets VALUES (5, 'a', 'urgent')")
    jobs = "SELECT array_agg(DISTINCT (tags, priority, max_new_tokens)::text) FROM loracomp.job WHERE status = 'queued'"
    keep(connection)
    assert value(connection, jobs) == ['("{""b"": 2}",3,5)']
    answer_all(connection)
    alice.execute("SELECT loracomp.alter_answers('said', max_new_tokens => 9)")
    keep(connection)
    assert value(connection, jobs) == ['("{""b"": 2}",-1,9)']
    assert len(answer_all(connection)) == 5
    assert value(alice, "SELECT correct FROM said WHERE id = 1") == "so", "its prompt is the same"


LABELLED = """
SELECT e.prompt, e.label, e.choices
FROM loracomp.example AS e JOIN loracomp.declaration AS a USING (task_id) ORDER BY e.label
"""
OPEN_JOBS = "SELECT DISTINCT choices, max_new_tokens FROM loracomp.job WHERE finished_at IS NULL"


def test_choices_become_texts_and_corrections_stay(connection: Connection, alice: Connection) -> None:
    """Waiting, answered and corrected rows, and a job that a worker is running."""
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 1")
    alice.execute("INSERT INTO tickets VALUES (5, 'a', 'urgent'), (6, 'b', 'urgent')")
    keep(connection)
    (running,) = claim(connection, 1)
    alice.execute("SELECT loracomp.alter_answers('urgency', max_new_tokens => 7)")
    keep(connection)
    assert {status for status, _ in shown(alice).values()} == {"stale", "waiting"}
    assert connection.execute(OPEN_JOBS).fetchall() == [{"choices": None, "max_new_tokens": 7}]
    assert record(connection, {running.id: running.lease_token}, [{"job_id": running.id, "output": "urgent"}]) == set()
    assert len(answer_all(connection, "any text")) == 6
    assert {*shown(alice).values()} == {("answered", "any text")}
    assert value(alice, "SELECT correct FROM urgency WHERE id = 1") == "not urgent"
    assert connection.execute(LABELLED).fetchall() == [
        {"prompt": "Ticket: a urgent", "label": "not urgent", "choices": None}
    ]
    alice.execute("UPDATE urgency SET correct = 'another text' WHERE id = 2")


def test_texts_become_choices_and_only_corrections_that_are_choices_stay(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("SELECT loracomp.create_answers('urgency', 'tickets', 'Ticket: {id}', max_new_tokens => 7)")
    answer_all(connection, "any text")
    alice.execute("UPDATE urgency SET correct = CASE id WHEN 1 THEN 'urgent' ELSE 'another text' END WHERE id < 3")
    alice.execute("INSERT INTO tickets VALUES (5, 'a', 'urgent')")
    keep(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{urgent,later}')")
    keep(connection)
    assert connection.execute(OPEN_JOBS).fetchall() == [{"choices": ["urgent", "later"], "max_new_tokens": None}]
    assert len(answer_all(connection, "later")) == 5
    assert {*shown(alice).values()} == {("answered", "later")}
    corrected = alice.execute("SELECT id, correct FROM urgency WHERE correct IS NOT NULL").fetchall()
    assert corrected == [{"id": 1, "correct": "urgent"}]
    assert connection.execute(LABELLED).fetchall() == [
        {"prompt": "Ticket: 1", "label": "urgent", "choices": ["urgent", "later"]}
    ]
    with pytest.raises(errors.CheckViolation, match="correct must be one of the choices"):
        alice.execute("UPDATE urgency SET correct = 'another text' WHERE id = 2")


def test_a_choice_that_is_too_long_to_be_a_corrected_text_is_none(connection: Connection, alice: Connection) -> None:
    long = "x" * 4001
    alice.execute("SELECT loracomp.create_answers('urgency', 'tickets', '{id}', choices => %s)", [[long, "short"]])
    answer_all(connection, "short")
    alice.execute("UPDATE urgency SET correct = CASE id WHEN 1 THEN %s ELSE 'short' END WHERE id < 3", [long])
    alice.execute("SELECT loracomp.alter_answers('urgency', max_new_tokens => 7)")
    answer_all(connection, "any text")
    corrected = alice.execute("SELECT id, correct FROM urgency WHERE correct IS NOT NULL").fetchall()
    assert corrected == [{"id": 2, "correct": "short"}]


def test_described_choices_reach_the_jobs_and_other_descriptions_ask_all_rows_again(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY.replace("}')", "}', descriptions => '{at once,\"some day\"}')"))
    described = "SELECT DISTINCT descriptions FROM loracomp.job WHERE status = 'queued'"
    keep(connection)
    assert value(connection, described) == ["at once", "some day"]
    compared = "SELECT substr(prompt, lower(text_at), upper(text_at) - lower(text_at)) FROM loracomp.job LIMIT 1"
    assert value(connection, compared) == "a urgent", "what the row's columns have put into the prompt"
    assert len(answer_all(connection)) == 4
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    alice.execute("SELECT loracomp.alter_answers('urgency', descriptions => '{at once,\"some day\"}')")
    assert answer_all(connection) == [], "they mean the same as before"
    alice.execute("SELECT loracomp.alter_answers('urgency', descriptions => '{now,later}')")
    assert value(alice, "SELECT descriptions FROM loracomp.list_answers('urgency')") == ["now", "later"]
    keep(connection)
    assert value(connection, described) == ["now", "later"]
    assert len(answer_all(connection)) == 4
    assert value(alice, "SELECT correct FROM urgency WHERE id = 1") == "urgent"
    with pytest.raises(errors.InvalidParameterValue, match="descriptions must be given with other choices") as refused:
        alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{urgent,so so}')")
    assert "descriptions => '{}'" in (refused.value.diag.message_hint or "")
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{urgent,so so}', descriptions => '{}')")
    keep(connection)
    assert value(connection, described) is None
    alice.execute("SELECT loracomp.alter_answers('urgency', descriptions => '{now,later}')")
    alice.execute("SELECT loracomp.alter_answers('urgency', max_new_tokens => 7)")
    assert value(alice, "SELECT descriptions FROM loracomp.list_answers('urgency')") is None, "with the choices"


@pytest.mark.parametrize(
    ("setting", "message"),
    {
        "choices => '{a}'": "choices must be a list of 2 to 1000",
        "choices => '{a,a}'": "choices must be distinct",
        "choices => '{a,NULL}'": "choices must not be null or blank",
        "choices => '{a,b}', descriptions => '{x}'": "descriptions must be a list of one for each of the choices",
        "choices => '{a,b}', descriptions => '{x,NULL}'": "descriptions must not be null or blank",
        "max_new_tokens => -4": "max_new_tokens must be between 1 and 100000",
        "tags => '[1]'": "tags must be a json object",
        "priority => 4000": "priority must be between minus 10 and 10",
        "policy => 'other'": "policy other does not exist",
        "choices => '{a,b}', max_new_tokens => 4": "give choices or max_new_tokens not both",
    }.items(),
)
def test_what_no_job_can_have_is_refused_by_its_name(
    connection: Connection, alice: Connection, setting: str, message: str
) -> None:
    """The error doesn't show a row of loracomp.job, which nobody has written."""
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', '{body}')")
    for call in ("create_answers('more', 'tickets', '{body}', ", "alter_answers('said', "):
        with pytest.raises(errors.IntegrityError) as refused:
            alice.execute(f"SELECT loracomp.{call}{setting})".encode())
        assert refused.value.diag.message_primary == message
        assert refused.value.diag.message_detail is None


# The table's key, its owner, and its locks


def test_a_key_becomes_bigint_and_keeps_answers_corrections_and_rights(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text)")
    alice.execute("INSERT INTO notes VALUES (1, 'one'), (2, 'two')")
    for name in ("says", "means"):
        alice.execute("SELECT loracomp.create_answers(%s, 'notes', '{t}')", [name])
    alice.execute(f"GRANT SELECT ON says TO {login('ana')}".encode())
    alice.execute(f"GRANT SELECT, UPDATE (correct) ON says TO {login('bob')}".encode())
    answer_all(connection)
    alice.execute("UPDATE says SET correct = 'three' WHERE id = 2")
    with pytest.raises(errors.FeatureNotSupported, match="cannot alter type of a column used by a view"):
        alice.execute("ALTER TABLE notes ALTER id TYPE bigint")
    alice.execute("SELECT loracomp.alter_key('notes', 'id', 'bigint')")
    alice.execute("INSERT INTO notes VALUES (10000000000, 'much')")
    assert answer_all(connection) == ["much", "much"]
    expected = {1: ("answered", "one"), 2: ("answered", "two"), 10**10: ("answered", "much")}
    assert shown(alice, "says") == shown(alice, "means") == expected
    assert value(alice, "SELECT correct FROM says WHERE id = 2") == "three"
    with connect(database, "ana") as ana:
        assert shown(ana, "says") == expected
        with pytest.raises(errors.InsufficientPrivilege):
            ana.execute("UPDATE says SET correct = 'four' WHERE id = 1")
    with connect(database, "bob") as bob:
        bob.execute("UPDATE says SET correct = 'four' WHERE id = 10000000000")
        with pytest.raises(errors.NoDataFound, match=r"table public\.notes has no declaration of yours"):
            bob.execute("SELECT loracomp.alter_key('notes', 'id', 'integer')")
        old = value(connection, "SELECT view::oid FROM loracomp.declaration LIMIT 1")
        with pytest.raises(errors.NoDataFound, match="no view of a declaration of yours is missing"):
            bob.execute("SELECT loracomp.bring_view_back(%s, 'public', 'mine', 'id', 'integer')", [old])
    with pytest.raises(errors.FeatureNotSupported, match="column id of the primary key has a name, type"):
        alice.execute("SELECT loracomp.alter_key('notes', 'id', 'real')")
    for column, refusal in (("nope", "no column nope"), ("", 'no column ""'), (None, "no column null")):
        with pytest.raises(errors.InvalidParameterValue, match=f"table public.notes has {refusal}"):
            alice.execute("SELECT loracomp.alter_key('notes', %s, 'bigint')", [column])
    with pytest.raises(errors.InvalidParameterValue, match="type must not be null"):
        alice.execute("SELECT loracomp.alter_key('notes', 'id', NULL)")
    assert shown(alice, "says") == expected


@pytest.mark.parametrize(("zone", "kept"), [("UTC", 9), ("Europe/Berlin", 0)])
@pytest.mark.parametrize(("before", "after"), [("timestamp", "timestamptz"), ("timestamptz", "timestamp")])
def test_a_time_that_the_session_converts_to_another_keeps_no_other_rows_answer(
    connection: Connection, alice: Connection, before: str, after: str, zone: str, kept: int
) -> None:
    """Each hour's row would get the answer of another hour's."""
    alice.execute(f"CREATE TABLE notes (at {before} PRIMARY KEY, t text)".encode())
    alice.execute("SET TimeZone = 'UTC'")
    alice.execute(
        "INSERT INTO notes SELECT format('2026-01-01 %s:00', i)::timestamp, i FROM generate_series(8, 16) AS i"
    )
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    answer_all(connection)
    alice.execute("UPDATE says SET correct = 'noon' WHERE at = '2026-01-01 12:00'")
    alice.execute("SELECT set_config('TimeZone', %s, false), loracomp.alter_key('notes', 'at', %s)", [zone, after])
    now_shown = (
        "SELECT count(v.answer) AS answered, bool_and(v.answer = t.t) AS fits, min(t.t) FILTER (WHERE correct = 'noon')"
        " AS noon FROM says AS v JOIN notes AS t USING (at)"
    )
    noon = "12" if kept else None
    assert one(alice, now_shown) == {"answered": kept, "fits": True if kept else None, "noon": noon}
    answer_all(connection)
    assert one(alice, now_shown) == {"answered": 9, "fits": True, "noon": noon}


def test_a_row_that_was_written_before_its_key_is_altered_stays_stale(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("UPDATE tickets SET body = 'not urgent' WHERE id < 3")
    alice.execute("SELECT loracomp.alter_key('tickets', 'id', 'numeric')")
    assert shown(alice)[1] == ("stale", "urgent")
    assert answer_all(connection) == ["Ticket: a not urgent"] * 2


def test_a_key_of_several_columns_keeps_answers_whatever_the_others_types(
    connection: Connection, alice: Connection
) -> None:
    columns = ["a character(3)", "b name", "c date", "d timestamptz", "e numeric(5,2)", "f varchar(5)"]
    names = ", ".join(column[0] for column in columns)
    alice.execute(f"CREATE TABLE notes (id integer, {', '.join(columns)}, PRIMARY KEY (id, {names}))".encode())
    alice.execute("INSERT INTO notes VALUES (1, 'abc', 'name', '2024-02-03', '2024-02-03 04:05:06Z', 2.50, 'text')")
    alice.execute("SELECT loracomp.create_answers('kinds', 'notes', '{id}')")
    answer_all(connection)
    alice.execute("UPDATE kinds SET correct = 'one'")
    alice.execute("SELECT loracomp.alter_key('notes', 'id', 'bigint')")
    assert answer_all(connection) == []
    assert alice.execute("SELECT answer, correct FROM kinds").fetchall() == [{"answer": "1", "correct": "one"}]


def test_a_key_keeps_its_collation(connection: Connection, alice: Connection) -> None:
    alice.execute(
        "CREATE TABLE notes (id text COLLATE \"C\" PRIMARY KEY, body text); INSERT INTO notes VALUES ('1', 'a')"
    )
    alice.execute("SELECT loracomp.create_answers('said', 'notes', 'Say {body}')")
    for kind, collation in (("varchar", '"C"'), ("text", '"C"')):
        alice.execute("SELECT loracomp.alter_key('notes', 'id', %s::regtype)", [kind])
        found = (
            "SELECT nullif(attcollation, 0)::regcollation::text FROM pg_attribute WHERE attrelid = 'notes'::regclass"
        )
        assert value(alice, f"{found} AND attname = 'id'") == collation


def test_a_key_that_the_new_type_cannot_have_stops_no_declaration(connection: Connection, alice: Connection) -> None:
    alice.execute("CREATE TABLE notes (id numeric PRIMARY KEY, t text)")
    alice.execute("INSERT INTO notes VALUES (3000000000, 'gone'), (1.5, 'half'), (7, 'seven')")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    answer_all(connection)
    with alice.transaction():
        alice.execute("DELETE FROM notes WHERE id > 100")
        alice.execute("SELECT loracomp.alter_key('notes', 'id', 'integer')")
    assert answer_all(connection) == ["half"], "its key is 2 now"
    alice.execute("INSERT INTO notes VALUES (4, 'new')")
    assert answer_all(connection) == ["new"]
    assert value(alice, "SELECT count(*) FROM loracomp.list_answer_rows('says')") == 3


def test_a_view_that_its_owner_has_changed_is_not_made_again_without_saying_so(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text)")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    alice.execute("ALTER VIEW says SET (security_invoker = true)")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="says was changed since it was declared"):
        alice.execute("SELECT loracomp.alter_key('notes', 'id', 'bigint')")
    alice.execute("SELECT loracomp.alter_answers('says', filter => '{}')")
    alice.execute("ALTER TABLE notes RENAME TO remarks")
    alice.execute("SELECT loracomp.alter_key('remarks', 'id', 'bigint')")


def test_a_key_becomes_a_text_and_a_number_again(connection: Connection, alice: Connection) -> None:
    """Postgres asked for USING, which alter_key doesn't take."""
    alice.execute(URGENCY)
    answer_all(connection)
    for type_ in ("text", "bigint"):
        alice.execute("SELECT loracomp.alter_key('tickets', 'id', %s::regtype)", [type_])
        assert answer_all(connection) == [], "the keys are written as the same texts"
    assert shown(alice) == dict.fromkeys(range(1, 5), ("answered", "urgent"))


def test_a_new_owner_of_the_table_sees_its_declaration(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    for kind, name in (("TABLE", "tickets"), ("VIEW", "urgency")):
        connection.execute(f"ALTER {kind} public.{name} OWNER TO {login('bob')}".encode())
    try:
        connection.execute("INSERT INTO public.tickets VALUES (5, 'a', 'urgent')")
        keep(connection)
        with connect(database, "bob") as bob:
            state = value(bob, "SELECT state FROM loracomp.list_answers()")
            assert f"belongs to {login('bob')} now, who may drop this declaration and make another" in state
            assert value(bob, "SELECT count(*) FROM loracomp.list_answer_rows('urgency')") == 4
            for call in (
                "SELECT * FROM loracomp.answers_since('urgency')",
                "SELECT loracomp.alter_key('tickets', 'id', 'numeric')",
                "SELECT loracomp.correct_row('urgency', '{1}', 'urgent')",
            ):
                with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"belongs to .* now, who may drop this"):
                    bob.execute(call.encode())
            bob.execute("SELECT loracomp.drop_answers('urgency')")
        assert value(connection, "SELECT count(*) FROM loracomp.declaration") == 0
    finally:
        connection.execute("DROP TABLE public.tickets CASCADE")


def test_to_declare_waits_for_a_vacuum(connection: Connection, alice: Connection, database: str) -> None:
    with db.connect(database) as vacuum, ThreadPoolExecutor(1) as pool:
        with vacuum.transaction():
            vacuum.execute("LOCK TABLE public.tickets IN SHARE UPDATE EXCLUSIVE MODE")
            declared = pool.submit(alice.execute, URGENCY)
            assert not wait([declared], 2).done
        declared.result(20)
    assert len(ask(connection)) == 4


# What is listed and read


def test_rows_that_nobody_has_looked_at_are_open(connection: Connection, alice: Connection) -> None:
    """A script that waits for 0 would end at once otherwise."""
    open_rows = "SELECT open FROM loracomp.list_answers()"
    alice.execute(URGENCY)
    assert value(alice, open_rows) > 0, "the rows that are there are still to be scanned"
    answer_all(connection)
    assert value(alice, open_rows) == 0
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'urgent' FROM generate_series(11, 1010) AS i")
    alice.execute("UPDATE tickets SET body = 'b' WHERE id = 11")
    assert value(alice, open_rows) == 1000
    ask(connection)
    alice.execute("UPDATE tickets SET body = 'c' WHERE id = 11")
    assert value(alice, open_rows) == 1000
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    assert value(alice, open_rows) > 1000
    assert value(alice, "SELECT open FROM loracomp.list_answers(counted => false)") == 0


def test_rows_that_a_scan_will_find_take_their_time(connection: Connection, alice: Connection) -> None:
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'urgent' FROM generate_series(5, 1200) AS i")
    alice.execute("SELECT pg_stat_force_next_flush()")
    alice.execute("ANALYZE tickets")
    waiting = "SELECT rows_waiting FROM loracomp.queue_health"
    left = "SELECT extract(epoch FROM time_left)::int FROM loracomp.list_answers()"
    alice.execute(URGENCY)
    assert value(alice, waiting) == 1200
    answer_all(connection)
    assert (value(alice, waiting), value(alice, left)) == (0, 0)
    connection.execute("UPDATE loracomp.answer_row SET answered_at = now() - interval '3 minutes'")
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    assert (value(alice, waiting), value(alice, left)) == (1200, 300), "1200 at 240 a minute"
    connection.execute("UPDATE loracomp.answer_row SET answered_at = now() WHERE key[1]::int <= 600")
    assert value(alice, left) == 120, "600 in the last minute"
    ask(connection)
    assert value(alice, waiting) < 1200


def test_unrelated_serializable_transactions_do_not_fail(
    connection: Connection, alice: Connection, database: str
) -> None:
    """Each reads the answers to one table, and writes to another."""
    alice.execute("INSERT INTO tickets VALUES (5, 'a', 'urgent')")
    for number in range(4):
        alice.execute(f"CREATE TABLE notes_{number} (id integer PRIMARY KEY, t text)".encode())
        alice.execute(f"SELECT loracomp.create_answers('says_{number}', 'notes_{number}', '{{t}}')".encode())
        alice.execute(f"INSERT INTO notes_{number} VALUES (1, 'one')".encode())
    answer_all(connection)
    with connect(database, "alice") as first, connect(database, "alice") as second:
        for each in (first, second):
            each.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        assert shown(first, "says_0") == shown(second, "says_1") == {1: ("answered", "one")}
        first.execute("INSERT INTO notes_2 VALUES (2, 'two')")
        second.execute("UPDATE notes_3 SET t = 'two'")
        for each in (first, second):
            each.execute("COMMIT")
    assert answer_all(connection) == ["two", "two"]


def test_a_feed_waits_for_no_transaction_of_another_database(
    connection: Connection, alice: Connection, server: str
) -> None:
    alice.execute(URGENCY)
    with db.connect(server, vectors=False) as other, other.transaction():
        other.execute("SELECT pg_current_xact_id()")
        answer_all(connection)
        assert value(alice, "SELECT count(*) FROM loracomp.answers_since('urgency')") == 4


def test_prompts_are_tried_wherever_the_first_row_that_passes_is(connection: Connection, alice: Connection) -> None:
    alice.execute("INSERT INTO tickets SELECT i, NULL, ' ', 7 FROM generate_series(5, 1600) AS i")
    alice.execute("UPDATE tickets SET body = 'late' WHERE id = 1550")
    tried = "SELECT array_agg(p.filled) FROM loracomp.try_prompts('tickets', '{body}', '{\"seen\": 7}') AS p"
    assert value(alice, tried) == ["late"]


ESTIMATE = "SELECT * FROM loracomp.estimate_answers('tickets', %s, %s)"


def test_a_small_table_is_counted_before_it_is_declared(connection: Connection, alice: Connection) -> None:
    alice.execute("INSERT INTO tickets VALUES (5, '', NULL, 1), (6, 'long', repeat('x', 40000), 7), (7, 'b', '', 7)")
    alice.execute("INSERT INTO tickets VALUES (8, 'a', 'urgent', 7)")
    counted = one(alice, ESTIMATE, ["{subject} {body}", "{}"])
    numbers = {"rows": 8, "prompts": 3, "refused": 1, "too_long": 1, "is_estimate": False}
    assert counted == numbers | {"per_minute": None, "time_needed": None}, "nothing was ever answered"
    passing = one(alice, ESTIMATE, ["{subject}", '{"seen": 7}'])
    assert (passing["rows"], passing["prompts"]) == (3, 3)
    add_jobs(connection, "a")
    jobs = claim(connection)
    timed = [prediction_row(job.id, timings={"predict": 500, "share": 500}) for job in jobs]
    record(connection, {job.id: job.lease_token for job in jobs}, timed)
    timed_now = one(alice, ESTIMATE, ["{subject} {body}", "{}"])
    assert (timed_now["per_minute"], timed_now["time_needed"].total_seconds()) == (120, 4)
    assert value(connection, "SELECT count(*) FROM loracomp.declaration") == 0


def test_a_large_table_is_estimated_from_a_sample(alice: Connection) -> None:
    alice.execute("INSERT INTO tickets SELECT i, 'a', i % 50 FROM generate_series(5, 40000) AS i")
    alice.execute("SELECT pg_stat_force_next_flush()")
    alice.execute("ANALYZE tickets")
    copies = one(alice, ESTIMATE, ["{body}", "{}"])
    assert copies["is_estimate"] and 36000 < copies["rows"] < 44000 and 50 <= copies["prompts"] <= 55
    unique = one(alice, ESTIMATE, ["{id}", "{}"])
    assert 36000 < unique["prompts"] < 44000
    with pytest.raises(errors.WrongObjectType, match="not an ordinary table"):
        alice.execute("SELECT * FROM loracomp.estimate_answers('loracomp.job', '{prompt}')")


# What is kept of rows and hints


def test_jobs_of_earlier_prompts_go_with_the_row(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    for body in ("first", "second", "third"):
        alice.execute("UPDATE tickets SET body = %s WHERE id = 1", [body])
        answer_all(connection)
    texts = "SELECT count(*) FROM loracomp.job WHERE prompt ~ 'first|second|third'"
    assert value(connection, texts) == 3, "their traces can be read as long as the row is there"
    alice.execute("DELETE FROM tickets WHERE id = 1")
    keep(connection)
    assert value(connection, texts) == 0
    assert value(connection, "SELECT count(*) FROM loracomp.job") == 3


ADD_EARLIER_JOBS = """
WITH added AS (
    INSERT INTO loracomp.job (prompt, submitted_by, priority, status, finished_at)
    SELECT 'earlier', a.owner, -1, 'succeeded', now() FROM generate_series(1, 700), loracomp.declaration AS a
    RETURNING id
)
UPDATE loracomp.answer_row SET earlier_jobs = (SELECT array_agg(id) FROM added) WHERE key = ARRAY[%s]
"""


def test_rows_with_many_earlier_jobs_are_deleted_a_few_at_a_time(connection: Connection, alice: Connection) -> None:
    """In one statement, the keeper's timeout would end it again and again."""
    alice.execute(URGENCY)
    answer_all(connection)
    for key in "1234":
        connection.execute(ADD_EARLIER_JOBS, [key])
    alice.execute("DELETE FROM tickets")
    connection.execute("SELECT loracomp.ask_rows()")
    assert value(connection, "SELECT count(*) FROM loracomp.job WHERE prompt = 'earlier'") == 2 * 700
    keep(connection)
    assert value(connection, "SELECT count(*) FROM loracomp.job") == 0
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") == 0


@pytest.mark.parametrize("statistics", ["of none", "of one row"])
def test_hints_of_a_declaration_in_trouble_stay_few(connection: Connection, alice: Connection, statistics: str) -> None:
    """Also when each of the oldest 20,000 is the only one of its row, and when statistics know only one row."""
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    connection.execute("ALTER TABLE loracomp.answer_hint SET (autovacuum_enabled = false)")
    for _ in range(100 if statistics == "of one row" else 0):
        alice.execute("UPDATE tickets SET body = body WHERE id = 1")
    connection.execute("ANALYZE loracomp.answer_hint")
    connection.execute("DELETE FROM loracomp.answer_hint")
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'b' FROM generate_series(11, 20010) AS i")
    connection.execute(
        "UPDATE loracomp.declaration SET hints_from = (SELECT min(written_in) FROM loracomp.answer_hint)"
    )
    for _ in range(100):  # so that most random places are before the updates
        connection.execute("SELECT pg_current_xact_id()")
    for number in range(20):
        alice.execute("UPDATE tickets SET body = %s WHERE id = 1", [f"b{number}"])
    for _ in range(100):
        connection.execute("SELECT loracomp.thin_hints(a) FROM loracomp.declaration AS a")
        if value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 20001:
            break
    assert value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 20001
    assert value(connection, "SELECT count(*) FROM loracomp.answer_hint WHERE key = '{1}'") == 1


# Long prompts and choices


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("'{{ x' || repeat('{{ x', 24999) || '{body}'", "prompt must be at most 100000 characters, and has 100006"),
        ("repeat('{body}', 1001)", "prompt must name at most 1000 columns, and names 1001"),
    ],
)
def test_a_prompt_that_is_slow_to_fill_in_is_refused(alice: Connection, prompt: str, fault: str) -> None:
    alice.execute(URGENCY)
    for statement in (
        f"SELECT loracomp.create_answers('long', 'tickets', {prompt}, '{{a,b}}')",
        f"SELECT loracomp.alter_answers('urgency', {prompt})",
    ):
        with pytest.raises(errors.InvalidParameterValue, match=fault):
            alice.execute(statement.encode())


@pytest.mark.parametrize("prompt", ["repeat('{{ x', 24998) || '{body}'", "repeat('{body}', 1000)"])
def test_the_longest_prompts_are_filled_in(connection: Connection, alice: Connection, prompt: str) -> None:
    alice.execute(URGENCY)
    alice.execute(ADD_TICKETS, [5, 30])
    alice.execute("UPDATE tickets SET body = 'wrong'")
    alice.execute(f"SELECT loracomp.alter_answers('urgency', {prompt})".encode())
    connection.execute("SET statement_timeout = '5s'")
    prompts = answer_all(connection, "urgent")
    (filled,) = alice.execute(f"SELECT replace(replace({prompt}, '{{{{', '{{'), '{{body}}', 'wrong') AS p".encode())
    assert set(prompts) == {filled["p"]} and len(prompts) >= 30
    assert {status for status, _ in shown(alice).values()} == {"answered"}


def test_a_page_with_long_choices_has_few_rows(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [5, 40])
    choices = "SELECT array_agg(i || repeat('c', 990)) FROM generate_series(100, 450) AS i"
    alice.execute(f"SELECT loracomp.create_answers('long', 'tickets', '{{body}}', ({choices}))".encode())
    d = "(SELECT a FROM loracomp.declaration AS a WHERE a.view = 'long'::regclass)"
    rows = "(SELECT jsonb_agg(jsonb_build_object('key', ARRAY[i])) FROM generate_series(1, 40) AS i)"
    assert value(connection, f"SELECT jsonb_array_length(loracomp.first_jobs({d}, {rows}))") == 2
    answer_all(connection, "100" + "c" * 990)
    assert {status for status, _ in shown(alice, "long").values()} == {"answered"}
