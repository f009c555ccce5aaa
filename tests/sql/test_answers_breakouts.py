"""What a declaration lets whom see and do; its owner, other submitters and readers of the view try to do more."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, answer_all, as_alice, ask, keep, shown
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value
from worker_helpers import wait_until

WAITING = "SELECT cardinality(pg_catalog.pg_blocking_pids(%s)) > 0"


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one'), (2, 'b', 'two')")
        yield opened


@pytest.fixture
def bob(connection: Connection, alice: Connection, database: str) -> Iterator[Connection]:
    with connect(database, "bob") as opened:
        yield opened


def state(alice: Connection) -> Any:
    return value(alice, "SELECT state FROM loracomp.list_answers()")


# The owner of a table tries to run code with the rights of loracomp's owner, whose session the worker's is here.

WHO = """
CREATE FUNCTION who() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN RAISE WARNING 'who: %', current_user; RETURN true; END $$
"""
REFUSED = {
    "an index's predicate": "CREATE INDEX trap ON tickets (id) WHERE who()",
    "a partial index that the key is compared with": "CREATE INDEX trap ON tickets ((id + CASE WHEN who() THEN 1 END))",
    "statistics": "CREATE STATISTICS trap ON (CASE WHEN who() THEN id END) FROM tickets",
    "a policy": "CREATE POLICY trap ON tickets USING (who()); ALTER TABLE tickets FORCE ROW LEVEL SECURITY, "
    "ENABLE ROW LEVEL SECURITY",
    "a domain": "CREATE DOMAIN odd AS bigint CHECK (who()); ALTER TABLE tickets ALTER id TYPE odd",
}
TRAPS = {
    "a cast": "CREATE TYPE odd AS (a text); CREATE FUNCTION said(odd) RETURNS text LANGUAGE sql "
    "RETURN CASE WHEN who() THEN 'said' END; CREATE CAST (odd AS text) WITH FUNCTION said(odd) AS IMPLICIT; "
    "ALTER TABLE tickets ALTER body TYPE odd USING ROW(body)::odd",
    "functions in the path": "CREATE FUNCTION concat(text) RETURNS text LANGUAGE sql "
    "RETURN CASE WHEN who() THEN 'mine' END; SET search_path = public, pg_catalog",
}


@pytest.mark.parametrize("trap", REFUSED)
def test_a_table_whose_reading_runs_its_owners_code_is_refused(alice: Connection, trap: str) -> None:
    alice.execute(WHO)
    for statement in REFUSED[trap].split("; "):
        alice.execute(statement.encode())
    with pytest.raises((errors.FeatureNotSupported, errors.ObjectNotInPrerequisiteState)):
        alice.execute(URGENCY)


@pytest.mark.parametrize("trap", TRAPS)
def test_a_tables_own_code_never_runs_with_more_rights_than_its_owners(
    connection: Connection, alice: Connection, trap: str
) -> None:
    said: list[str] = []
    for session in (connection, alice):
        session.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    alice.execute(WHO)
    for statement in TRAPS[trap].split("; "):
        alice.execute(statement.encode())
    alice.execute(URGENCY)
    alice.execute("UPDATE tickets SET subject = 'c'")
    prompts = answer_all(connection, "urgent")
    assert len(prompts) == 2 and "mine" not in "".join(prompts)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    alice.execute("SELECT loracomp.drop_answers('urgency')")
    assert {message for message in said if message.startswith("who")} <= {f"who: {login('alice')}"}


BY_OTHERS = {
    "correct_row": "SELECT loracomp.correct_row('urgency', '{1}', 'urgent')",
    "rows_to_correct": "SELECT * FROM loracomp.rows_to_correct('urgency')",
    "list_answer_rows": "SELECT * FROM loracomp.list_answer_rows('urgency')",
    "list_answers": "SELECT * FROM loracomp.list_answers()",
    "answers_since": "SELECT * FROM loracomp.answers_since('urgency')",
    "try_prompts": "SELECT loracomp.try_prompts('tickets', '{body}')",
    "another prompt": "SELECT loracomp.alter_answers('urgency', prompt => '{subject}')",
    "other choices": "SELECT loracomp.alter_answers('urgency', choices => '{urgent,late}')",
    "another filter": "SELECT loracomp.alter_answers('urgency', filter => '{\"id\": [1]}')",
    "drop_answers": "SELECT loracomp.drop_answers('urgency')",
}
"""What people other than the table's owner call for a declaration; web pages do it for them."""


# A transaction with another isolation level doesn't see code that was added after it began, but Postgres runs it.
@pytest.mark.parametrize("is_older", [False, True], ids=["now", "older"])
@pytest.mark.parametrize("trap", sorted(REFUSED.keys() - {"a domain"}))  # the view keeps the key's type
def test_the_owners_code_does_not_run_in_the_session_of_an_administrator_who_is_a_member_of_the_owner(
    connection: Connection, alice: Connection, database: str, trap: str, is_older: bool
) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")
    alice.execute(WHO)
    connection.execute(f"GRANT {login('alice')} TO {login('adam')}".encode())
    said: list[str] = []
    with ExitStack() as sessions:
        sessions.callback(connection.execute, f"REVOKE {login('alice')} FROM {login('adam')}".encode())
        adams = {name: sessions.enter_context(connect(database, "adam")) for name in BY_OTHERS}
        for adam in adams.values():
            adam.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
            if is_older:
                adam.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class")
        for statement in REFUSED[trap].split("; "):
            alice.execute(statement.encode())
        for name, adam in adams.items():
            with suppress(errors.ObjectNotInPrerequisiteState):
                adam.execute("BEGIN; " * (not is_older) + BY_OTHERS[name])
            adam.execute("ROLLBACK")
            assert not said, name


def test_corrections_stay_if_the_table_of_a_virtual_column_must_not_be_read(
    connection: Connection, alice: Connection, database: str
) -> None:
    if connection.info.server_version < 180000:
        pytest.skip("no virtual columns")
    alice.execute("ALTER TABLE tickets ADD v text GENERATED ALWAYS AS (upper(body)) VIRTUAL")
    alice.execute(URGENCY.replace("{body}", "{v}").encode())
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent'")
    corrected = value(alice, "SELECT corrected FROM loracomp.list_answers()")
    alice.execute("CREATE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE sql RETURN lower($1)")
    alice.execute("CREATE INDEX trap ON tickets (f(body))")
    with connect(database, "adam") as adam:
        for statement in (
            "SELECT loracomp.correct_row('urgency', '{1}', 'not urgent', 'urgent')",
            "SELECT loracomp.alter_answers('urgency', choices => '{urgent,not urgent,late}')",
        ):
            with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"calls public\.f\(text\)"):
                adam.execute(statement.encode())
    assert corrected == value(alice, "SELECT corrected FROM loracomp.list_answers()") > 0


def test_a_table_that_is_given_away_while_an_administrator_waits_for_its_lock_is_not_read(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(WHO)
    alice.execute("CREATE POLICY p ON tickets USING (who()); ALTER TABLE tickets ENABLE ROW LEVEL SECURITY")
    alice.execute(URGENCY)
    answer_all(connection)
    me, said = login("alice"), list[str]()
    connection.execute(f"CREATE ROLE {me}_team; GRANT CREATE ON SCHEMA public TO {me}_team".encode())
    connection.execute(f"GRANT {me}_team TO {me} WITH INHERIT FALSE, SET TRUE".encode())
    try:
        with connect(database, "adam") as adam, ThreadPoolExecutor(1) as pool:
            adam.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
            with alice.transaction():
                alice.execute(f"ALTER TABLE tickets OWNER TO {me}_team; SET LOCAL ROLE {me}_team".encode())
                alice.execute(f"GRANT SELECT ON tickets TO {me}; RESET ROLE".encode())
                reading = pool.submit(adam.execute, "SELECT loracomp.correct_row('urgency', '{1}', 'urgent')")
                wait_until(lambda: value(connection, WAITING, [adam.info.backend_pid]))
            with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"belongs to \w+_team now"):
                reading.result(30)
        assert not said
    finally:
        connection.execute(f"DROP OWNED BY {me}_team CASCADE; DROP ROLE {me}_team".encode())


def test_an_administrator_does_not_wait_without_limit_for_an_index_that_the_owner_has_locked(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(URGENCY)
    alice.execute("CREATE INDEX held ON tickets (body)")
    answer_all(connection)
    with connect(database, "adam") as adam, alice.transaction(force_rollback=True):
        alice.execute("ALTER INDEX held SET TABLESPACE pg_default")
        adam.execute("SET lock_timeout = 0; SET statement_timeout = '20s'")
        with pytest.raises(errors.LockNotAvailable):
            adam.execute("SELECT loracomp.correct_row('urgency', '{1}', 'urgent')")


def test_what_reads_the_rows_refuses_other_rights(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    number = value(connection, "SELECT id FROM loracomp.declaration")
    with pytest.raises(errors.InsufficientPrivilege, match="schema loracomp_parts"):
        alice.execute(f"ALTER FUNCTION loracomp_parts.read_{number} SECURITY INVOKER".encode())
    with pytest.raises(errors.InsufficientPrivilege, match="schema loracomp_parts"):
        alice.execute("CREATE FUNCTION loracomp_parts.mine() RETURNS integer LANGUAGE sql RETURN 1")
    connection.execute(f"ALTER FUNCTION loracomp_parts.read_{number} SECURITY INVOKER".encode())
    assert ask(connection) == {}
    assert "must run with the rights of its owner" in state(alice)


def test_a_prompt_reaches_only_columns_that_the_owner_may_read(connection: Connection, alice: Connection) -> None:
    for prompt, said in {
        "{ctid}": "has no column ctid",
        "{subject": "single brace",
        "subject": "names no column",
        "{body::text}": "has no column body::text",
        "{subject) FROM secrets --}": "has no column",
        "{bodi}": "did you mean body",
    }.items():
        with pytest.raises(psycopg.Error) as refused:
            alice.execute("SELECT loracomp.create_answers('x', 'tickets', %s)", [prompt])
        assert said in f"{refused.value} {refused.value.diag.message_hint}", prompt
    alice.execute(URGENCY)
    alice.execute(f"REVOKE ALL ON tickets FROM {login('alice')}".encode())
    assert ask(connection) == {}
    assert "permission denied for table tickets" in state(alice)


def test_tables_that_can_have_no_declaration_say_why(connection: Connection, alice: Connection) -> None:
    alice.execute("CREATE VIEW seen AS SELECT * FROM tickets; CREATE TABLE keyless (t text)")
    alice.execute(
        "CREATE TABLE bytes (id integer PRIMARY KEY, t bytea); CREATE TEMP TABLE short (id integer PRIMARY KEY, t text)"
    )
    alice.execute("CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE moods (id mood PRIMARY KEY, t text)")
    alice.execute("CREATE TABLE taken (id integer PRIMARY KEY, t text, answer text)")
    alice.execute("CREATE TABLE answered (answer integer PRIMARY KEY, t text)")
    refusals = {
        "seen": "is not an ordinary table",
        "short": "is not an ordinary table",
        "loracomp.job": "is not an ordinary table",
        "pg_class": "is not an ordinary table",
        "keyless": "no primary key",
        "bytes": "is bytea",
        "moods": "column id of the primary key has a name, type or collation",
        "answered": "column answer of the primary key has a name, type or collation",
    }
    for table, said in refusals.items():
        with pytest.raises(psycopg.Error, match=said):
            alice.execute("SELECT loracomp.create_answers('x', %s, '{t}')", [table])
    with pytest.raises(psycopg.Error, match="give choices or max_new_tokens not both"):
        alice.execute("SELECT loracomp.create_answers('x', 'taken', '{t}', '{a,b}', NULL, 5)")
    with pytest.raises(psycopg.Error, match="filter must be a JSON object"):
        alice.execute("SELECT loracomp.create_answers('x', 'taken', '{t}', filter => '[]')")
    with pytest.raises(psycopg.Error, match="name must be a name for a view"):
        alice.execute("SELECT loracomp.create_answers(NULL, 'taken', '{t}')")
    with pytest.raises(psycopg.Error, match="policy nowhere does not exist"):
        alice.execute("SELECT loracomp.create_answers('x', 'taken', '{t}', policy => 'nowhere')")


def test_another_owner_stops_a_declaration_and_may_drop_it(
    connection: Connection, alice: Connection, bob: Connection
) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    connection.execute(f"ALTER TABLE tickets OWNER TO {login('bob')}".encode())
    try:
        bob.execute("UPDATE tickets SET body = 'for bob alone'")
        assert ask(connection) == {}
        assert f"belongs to {login('bob')} now" in state(alice)
        with pytest.raises(errors.InsufficientPrivilege):
            alice.execute("SELECT * FROM urgency")
        bob.execute("SELECT loracomp.drop_answers('urgency')")
        assert value(connection, "SELECT count(*) FROM loracomp.declaration") == 0
    finally:
        connection.execute("DROP TABLE tickets CASCADE")


def test_who_is_no_submitter_any_more_asks_nothing(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    connection.execute(f"REVOKE loracomp_submitter FROM {login('alice')}".encode())
    try:
        assert ask(connection) == {}
        (row,) = connection.execute("SELECT trouble FROM loracomp.declaration")
        assert row["trouble"] == f"{login('alice')} is not a submitter"
    finally:
        connection.execute(f"GRANT loracomp_submitter TO {login('alice')}".encode())


# Another submitter, and readers of the view.


def test_another_submitter_sees_and_changes_nothing(connection: Connection, alice: Connection, bob: Connection) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    number = value(connection, "SELECT id FROM loracomp.declaration")
    assert bob.execute("SELECT * FROM loracomp.list_answers()").fetchall() == []
    for statement in (
        "SELECT loracomp.create_answers('mine', 'tickets', '{body}')",
        "SELECT loracomp.alter_answers('urgency', paused => true)",
        "SELECT loracomp.drop_answers('urgency')",
        "SELECT * FROM loracomp.answers_since('urgency')",
        "SELECT loracomp.correct_answer('urgency', 1, 'urgent')",
        "SELECT * FROM urgency",
        "SELECT * FROM loracomp.answer_row",
        "SELECT * FROM loracomp.declaration",
        f"SELECT * FROM loracomp_parts.answers_{number}",
        f"SELECT loracomp_parts.read_{number}(NULL, NULL, 5)",
        f"CREATE TABLE pg_temp.t (id int); CREATE TRIGGER t AFTER INSERT ON t"
        f" EXECUTE FUNCTION loracomp_parts.hint_{number}()",
    ):
        with pytest.raises(psycopg.Error, match=r"permission denied|not yours|not a declaration"):
            bob.execute(statement.encode())


def test_the_view_is_shared_by_a_grant(connection: Connection, alice: Connection, database: str) -> None:
    alice.execute(URGENCY)
    alice.execute(f"GRANT SELECT ON urgency TO {login('ana')}".encode())
    answer_all(connection)
    with connect(database, "ana") as ana:
        assert shown(ana) == {1: ("answered", "one"), 2: ("answered", "two")}
        assert len(ana.execute("SELECT * FROM loracomp.answers_since('urgency')").fetchall()) == 2
        for statement in ("SELECT * FROM tickets", "UPDATE urgency SET correct = 'urgent'"):
            with pytest.raises(errors.InsufficientPrivilege):
                ana.execute(statement.encode())
        alice.execute(f"GRANT UPDATE (correct) ON urgency TO {login('ana')}".encode())
        ana.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
        with pytest.raises(errors.InsufficientPrivilege):
            ana.execute("UPDATE urgency SET answer = 'urgent' WHERE id = 1")
    assert value(alice, "SELECT correct FROM urgency WHERE id = 1") == "urgent"
    with pytest.raises(errors.FeatureNotSupported, match=r"only the column correct of public\.urgency can be updated"):
        alice.execute("UPDATE urgency SET answer = 'x', id = 7")
    with pytest.raises(errors.CheckViolation, match="one of the choices"):
        alice.execute("UPDATE urgency SET correct = 'x'")


def test_the_view_respects_row_security(connection: Connection, alice: Connection, bob: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute(f"GRANT SELECT, UPDATE (correct) ON urgency TO {login('bob')}".encode())
    answer_all(connection)
    assert set(shown(bob)) == {1, 2}
    alice.execute("ALTER TABLE tickets ENABLE ROW LEVEL SECURITY")
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied for table tickets"):
        bob.execute("SELECT * FROM urgency")
    alice.execute(f"GRANT SELECT (id) ON tickets TO {login('bob')}".encode())
    assert shown(bob) == {}
    alice.execute("CREATE POLICY odd_ones ON tickets USING (id % 2 = 1)")
    assert set(shown(bob)) == {1} and set(shown(alice)) == {1, 2}
    told: list[str] = []
    bob.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    bob.execute(
        "CREATE FUNCTION pg_temp.tell(text) RETURNS boolean COST 0.0001 LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE NOTICE 'told %', $1; RETURN true; END $$"
    )
    assert len(bob.execute("SELECT * FROM urgency WHERE pg_temp.tell(answer)").fetchall()) == 1
    assert told == ["told one"]
    assert bob.execute("UPDATE urgency SET correct = 'urgent'").rowcount == 1
    with pytest.raises(errors.NoDataFound):
        bob.execute("SELECT loracomp.correct_answer('urgency', 2, 'urgent')")
    with pytest.raises(errors.InsufficientPrivilege, match="row security"):
        bob.execute("SELECT * FROM loracomp.answers_since('urgency')")


def test_the_feed_alone_is_opened_by_what_the_docs_grant(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(URGENCY)
    alice.execute(f"GRANT SELECT ON urgency TO {login('nobody')}".encode())
    answer_all(connection)
    feed = "SELECT count(*) FROM loracomp.answers_since('urgency')"
    with connect(database, "nobody") as nobody:
        with pytest.raises(errors.InsufficientPrivilege, match="schema loracomp"):
            nobody.execute(feed.encode())
        for right in ("USAGE ON SCHEMA loracomp", "EXECUTE ON FUNCTION loracomp.answers_since"):
            connection.execute(f"GRANT {right} TO {login('nobody')}".encode())
        assert value(nobody, feed) == 2
        for statement in (
            "SELECT loracomp.submit_job('mine')",
            "SELECT * FROM loracomp.job_result",
            "SELECT * FROM loracomp.list_answers()",
            "SELECT * FROM bi.queue_health",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                nobody.execute(statement.encode())
        alice.execute(f"REVOKE SELECT ON urgency FROM {login('nobody')}".encode())
        with pytest.raises(errors.InsufficientPrivilege, match="not a declaration that you may read"):
            nobody.execute(feed.encode())
    connection.execute(f"DROP OWNED BY {login('nobody')}".encode())


NARROWED = {
    "another view": "CREATE OR REPLACE VIEW urgency AS SELECT id, '' AS answer, 0::float8 AS confidence,"
    " NULL::boolean AS certain,"
    " '' AS status,"
    " '' AS reason, '' AS answered_by, now() AS answered_at, '' AS correct FROM tickets WHERE id = 1",
    "the reader's rights": "ALTER VIEW urgency SET (security_invoker)",
}


@pytest.mark.parametrize("change", NARROWED)
def test_the_feed_is_closed_to_others_while_its_view_is_changed(
    connection: Connection, alice: Connection, bob: Connection, change: str
) -> None:
    feed = "SELECT count(*) FROM loracomp.answers_since('urgency')"
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute(f"GRANT SELECT ON urgency TO {login('bob')}".encode())
    alice.execute('''ALTER TABLE tickets RENAME TO "an 'odd' %s name"''')
    assert value(bob, feed) == 2
    alice.execute("""ALTER TABLE "an 'odd' %s name" RENAME TO tickets""")
    assert value(bob, feed) == 2
    alice.execute(NARROWED[change].encode())
    with pytest.raises(errors.InsufficientPrivilege, match="was changed since it was declared"):
        bob.execute(feed.encode())
    assert value(alice, feed) == 2
    alice.execute(
        "ALTER VIEW urgency RESET (security_invoker); SELECT loracomp.alter_answers('urgency', filter => '{}')"
    )
    assert value(bob, feed) == 2


HIDING = {
    "a narrower filter": """SELECT loracomp.alter_answers('urgency', filter => '{"seen": 0}')""",
    "a row that no longer passes": "UPDATE tickets SET seen = 7 WHERE id = 3",
    "a deleted row": "DELETE FROM tickets WHERE id = 3",
}


@pytest.mark.parametrize("change", HIDING)
def test_the_feed_has_no_row_that_the_view_does_not_show(
    connection: Connection, alice: Connection, bob: Connection, change: str
) -> None:
    alice.execute("INSERT INTO tickets VALUES (3, 'c', 'three', 5)")
    alice.execute(URGENCY.replace("}')", "}', filter => '{\"seen\": [0, 5]}')"))
    answer_all(connection)
    alice.execute("UPDATE tickets SET body = 'dos' WHERE id = 2")
    answer_all(connection)
    feed = "SELECT array_agg(key[1] || answer) FROM loracomp.answers_since('urgency')"
    alice.execute(f"GRANT SELECT ON urgency TO {login('bob')}".encode())
    assert value(bob, feed) == ["1one", "3three", "2dos"]
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    alice.execute(HIDING[change].encode())
    keep(connection)
    for reader in (alice, bob):
        assert shown(reader).keys() == {1, 2}
        assert value(reader, feed) == ["1one"], "it does not go past the row, which may be shown again"
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")
    keep(connection)
    assert value(bob, feed) == ["1one", "2dos"], "the answer is gone"


def test_settings_of_sessions_do_not_close_the_feed(connection: Connection, alice: Connection, bob: Connection) -> None:
    """These settings decide how Postgres writes the view's definition, which contains the filter's values."""
    alice.execute(
        "ALTER TABLE tickets ADD due timestamptz DEFAULT '2024-03-04 05:06:07Z', ADD \"left\" interval DEFAULT '1 day'"
    )
    alice.execute("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German'; SET quote_all_identifiers = on")
    passing = """filter => '{"due": "2024-03-04 05:06:07Z", "left": "1 day"}')"""
    alice.execute(URGENCY.replace("}')", "}', " + passing))
    answer_all(connection)
    alice.execute(f"GRANT SELECT ON urgency TO {login('bob')}".encode())
    bob.execute("SET TimeZone = 'America/New_York'; SET IntervalStyle = 'iso_8601'")
    assert value(bob, "SELECT count(*) FROM loracomp.answers_since('urgency')") == 2


def test_a_view_of_the_owners_over_it_gives_no_feed(connection: Connection, alice: Connection, bob: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("CREATE VIEW first_row AS SELECT * FROM urgency WHERE id = 1")
    alice.execute(f"GRANT SELECT ON first_row TO {login('bob')}".encode())
    assert set(shown(bob, "first_row")) == {1}
    for name in ("urgency", "first_row"):
        with pytest.raises(errors.InsufficientPrivilege):
            bob.execute("SELECT loracomp.answers_since(%s)", [name])


def test_a_callers_own_functions_are_not_called(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS $$ SELECT 1 / 0 $$")
    alice.execute("CREATE FUNCTION public.no(bigint, bigint) RETURNS boolean LANGUAGE sql RETURN 1 / 0 = 1")
    alice.execute("CREATE OPERATOR public.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = public.no)")
    alice.execute("SET search_path = public, pg_catalog")
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (3, 'c', 'three')")
    assert value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 1
    assert len(answer_all(connection)) == 3
    alice.execute(
        "RESET search_path; DROP OPERATOR public.= (bigint, bigint); DROP FUNCTION public.no, public.pg_notify"
    )
