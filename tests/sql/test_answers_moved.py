"""A declared table that becomes another's part or is copied with its triggers, or whose columns are others now."""

from collections.abc import Iterator

import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, answer_all, as_alice, keep, shown, tidy
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.database.script import sql_files
from people_fixtures import connect, login, value

STOPPED = {
    "attached": (
        "CREATE TABLE all_tickets (LIKE tickets) PARTITION BY RANGE (id);"
        "ALTER TABLE all_tickets ATTACH PARTITION tickets DEFAULT",
        "is part of another table",
    ),
    "inherits": (
        "CREATE TABLE all_tickets (LIKE tickets); ALTER TABLE tickets INHERIT all_tickets",
        "is part of another",
    ),
    "without a key": ("ALTER TABLE tickets DROP CONSTRAINT tickets_pkey", "no longer has the primary key"),
    "forced policies": ("ALTER TABLE tickets FORCE ROW LEVEL SECURITY", "forces its policies on its owner"),
    "dropped column": ("ALTER TABLE tickets DROP COLUMN body", "column body was dropped"),
}
DOMAINS = {
    "boolean": ("true", "true", "f"),
    "numeric": ("2.50", "2.5", "3"),
    "timestamptz": ("2026-01-01 00:00+00", "2026-01-01T00:00:00Z", "2026-01-02"),
    "mood": ("open", "open", "done"),
}


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """She has two tickets, which are answered."""
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute("INSERT INTO tickets VALUES (1, 'calm', 'urgent'), (2, 'calm', 'urgent')")
        opened.execute(URGENCY)
        answer_all(connection)
        yield opened
    tidy(connection)


@pytest.mark.parametrize("what", STOPPED)
def test_what_stops_a_declaration_is_told_before_a_row_is_written(
    connection: Connection, alice: Connection, what: str
) -> None:
    change, state = STOPPED[what]
    alice.execute(change.encode())
    keep(connection)
    assert state in value(alice, "SELECT state FROM loracomp.list_answers()")


@pytest.mark.parametrize("trouble", [None, "something else"])
def test_what_was_written_through_another_table_is_found_afterwards(
    connection: Connection, alice: Connection, trouble: str | None
) -> None:
    connection.execute("UPDATE loracomp.declaration SET trouble = %s", [trouble])
    alice.execute("CREATE TABLE all_tickets (LIKE tickets); ALTER TABLE tickets INHERIT all_tickets")
    keep(connection)
    alice.execute("UPDATE all_tickets SET body = 'calm' WHERE id = 1; DELETE FROM all_tickets WHERE id = 2")
    alice.execute("ALTER TABLE tickets NO INHERIT all_tickets")
    connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
    answer_all(connection)
    assert shown(alice) == {1: ("answered", "calm")}


def test_a_new_owner_is_told_before_a_row_is_written(connection: Connection, alice: Connection) -> None:
    connection.execute(f"ALTER TABLE public.tickets OWNER TO {login('bob')}".encode())
    keep(connection)
    state = value(connection, "SELECT state FROM loracomp.list_answers()")
    assert f"belongs to {login('bob')} now" in state
    connection.execute(f"ALTER TABLE public.tickets OWNER TO {login('alice')}".encode())


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_the_triggers_of_a_copied_table_concern_no_declaration(
    connection: Connection, alice: Connection, database: str, isolation: str
) -> None:
    declared = value(connection, "SELECT id FROM loracomp.declaration")
    copies = connection.execute(
        "SELECT replace(pg_get_triggerdef(oid), ' tickets ', ' copy ') AS text FROM pg_trigger"
        " WHERE tgrelid = 'public.tickets'::regclass"
    ).fetchall()
    connection.execute("CREATE TABLE public.copy (LIKE public.tickets INCLUDING ALL)")
    for copy in copies:
        connection.execute(copy["text"].replace(" public.tickets ", " public.copy ").encode())
    connection.execute(f"ALTER TABLE public.copy OWNER TO {login('bob')}".encode())
    written = (
        "INSERT INTO public.copy VALUES (1, 'a', 'b'), (7, 'a', 'b'); UPDATE public.copy SET body = 'c';"
        " DELETE FROM public.copy"
    )
    try:
        with connect(database, "bob") as bob:
            bob.execute(written.encode())
            assert value(connection, "SELECT count(*) FROM loracomp.scan_request") == 0
            assert value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 0
            bob.execute(f"BEGIN ISOLATION LEVEL {isolation}; {written}".encode())
            alice.execute("SET statement_timeout = '5s'")
            alice.execute("SELECT loracomp.drop_answers('urgency')")
            bob.execute("COMMIT")
            bob.execute(written.encode())
        assert value(connection, "SELECT count(*) FROM loracomp.scan_request") == 0
        assert value(connection, f"SELECT count(*) FROM pg_trigger WHERE tgname ~ 'loracomp_{declared}_'") == len(
            copies
        )
    finally:
        connection.execute("DROP TABLE public.copy")


def test_the_trigger_of_a_copied_view_corrects_nothing(
    connection: Connection, alice: Connection, database: str
) -> None:
    declared = value(connection, "SELECT id FROM loracomp.declaration")
    connection.execute(
        "CREATE VIEW public.copy AS SELECT * FROM public.urgency;"
        "CREATE TRIGGER loracomp_correct INSTEAD OF UPDATE ON public.copy"
        f" FOR EACH ROW EXECUTE FUNCTION loracomp_parts.correct({declared});"
        f"GRANT SELECT, UPDATE ON public.copy TO {login('bob')}".encode()
    )
    try:
        with (
            connect(database, "bob") as bob,
            pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"public\.copy is not the view of a declaration"),
        ):
            bob.execute("UPDATE copy SET correct = 'urgent'")
    finally:
        connection.execute("DROP VIEW public.copy")


@pytest.mark.parametrize("base", DOMAINS)
@pytest.mark.parametrize("kind", ["inner", "middle"])
def test_a_filter_compares_domains_over_domains_by_the_type_under_them(
    connection: Connection, alice: Connection, base: str, kind: str
) -> None:
    held, asked, other = DOMAINS[base]
    alice.execute("CREATE TYPE mood AS ENUM ('open', 'done')")
    alice.execute(
        f"CREATE DOMAIN inner_one AS {base}; CREATE DOMAIN middle_one AS inner_one;"
        f"CREATE TABLE notes (id integer PRIMARY KEY, is_so {kind}_one);"
        f"INSERT INTO notes VALUES (1, '{held}'), (2, '{other}')".encode()
    )
    passes = f'{{"is_so": "{asked}"}}' if base != "boolean" else '{"is_so": true}'
    alice.execute("SELECT loracomp.create_answers('so', 'notes', 'Is it {id}?', filter => %s)", [passes])
    answer_all(connection)
    assert shown(alice, "so") == {1: ("answered", "1?")}
    if base == "mood":
        alice.execute("ALTER TYPE mood RENAME VALUE 'open' TO 'new'; UPDATE notes SET id = 3 WHERE id = 2")
        keep(connection)
        assert "no value open" in value(alice, "SELECT state FROM loracomp.list_answers('so')")


def test_renamed_values_of_arrays_of_domains_stop_a_declaration(connection: Connection, alice: Connection) -> None:
    alice.execute(
        "CREATE TYPE mood AS ENUM ('open', 'done'); CREATE DOMAIN inner_one AS mood; CREATE DOMAIN one AS inner_one;"
        "CREATE TABLE notes (id integer PRIMARY KEY, moods one[]); INSERT INTO notes VALUES (1, '{open}')"
    )
    alice.execute("SELECT loracomp.create_answers('so', 'notes', 'Is it {id}?', filter => '{\"moods\": \"{open}\"}')")
    answer_all(connection)
    alice.execute("ALTER TYPE mood RENAME VALUE 'open' TO 'new'; INSERT INTO notes VALUES (2, '{new}')")
    keep(connection)
    assert "no value {open}" in value(alice, "SELECT state FROM loracomp.list_answers('so')")


def test_answers_to_a_column_that_was_dropped_are_stale_though_the_prompt_is_the_same(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("ALTER TABLE tickets DROP COLUMN body, ADD COLUMN body text; UPDATE tickets SET body = 'calm'")
    keep(connection)
    assert "body was dropped" in value(alice, "SELECT state FROM loracomp.list_answers()")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Ticket: {subject} {body}', paused => true)")
    assert shown(alice) == {1: ("stale", "urgent"), 2: ("stale", "urgent")}
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")
    answer_all(connection)
    assert shown(alice) == {1: ("answered", "calm"), 2: ("answered", "calm")}


def test_whoever_has_read_the_view_holds_up_no_writer_for_long(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(f"GRANT SELECT ON urgency TO {login('bob')}".encode())
    with connect(database, "bob") as bob, bob.transaction():
        bob.execute("SELECT FROM urgency")
        with pytest.raises(errors.LockNotAvailable, match=r"has read view public\.urgency"):
            alice.execute("SELECT loracomp.alter_answers('urgency', filter => '{\"seen\": 0}')")
    alice.execute("SELECT loracomp.alter_answers('urgency', filter => '{\"seen\": 0}')")


def test_a_filter_on_a_virtual_column_is_refused(connection: Connection, alice: Connection) -> None:
    if connection.info.server_version < 180000:
        pytest.skip("there are no virtual columns before PostgreSQL 18")
    alice.execute(
        "CREATE TABLE notes (id integer PRIMARY KEY, code text, n integer GENERATED ALWAYS AS (code::integer))"
    )
    with pytest.raises(errors.WrongObjectType, match="column n: a filter can't compare a virtual column"):
        alice.execute("SELECT loracomp.create_answers('so', 'notes', 'Is it {id}?', filter => '{\"n\": 7}')")


def test_a_role_has_at_most_500_declarations(connection: Connection, alice: Connection, database: str) -> None:
    """The keeper looks at each of them again and again, and meanwhile others' rows wait."""
    other = "jsonb_build_object('id', 1000000 + i, 'view', 4000000000 + i, 'task_id', NULL, 'owners_number', i)"
    with connect(database, "alice") as old, old.transaction():
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM urgency")
        connection.execute("UPDATE loracomp.declaration SET owners_number = 500")
        connection.execute(
            "INSERT INTO loracomp.declaration OVERRIDING SYSTEM VALUE"
            f" SELECT (jsonb_populate_record(a, {other})).*"
            " FROM loracomp.declaration AS a CROSS JOIN generate_series(1, 499) AS i".encode()
        )
        more = URGENCY.replace("'urgency'", "'more'")
        with pytest.raises(errors.ConfigurationLimitExceeded, match="has 500 declarations, and may not have more"):
            alice.execute(more)
        with pytest.raises(errors.UniqueViolation, match="another_declaration_was_made_meanwhile_try_again"):
            old.execute(more)
    connection.execute("DELETE FROM loracomp.declaration WHERE id > 1000000")


def test_while_declarations_are_locked_the_application_goes_on(
    connection: Connection, alice: Connection, database: str
) -> None:
    """As an upgrade locks them; a scan follows."""
    with connection.transaction():
        connection.execute("LOCK TABLE loracomp.declaration IN ACCESS EXCLUSIVE MODE")
        alice.execute("INSERT INTO tickets VALUES (3, 'calm', 'urgent')")
        alice.execute("UPDATE tickets SET body = 'calm' WHERE id = 1")
        alice.execute("DELETE FROM tickets WHERE id = 2")
    assert value(connection, "SELECT count(*) FROM loracomp.scan_request") == 3
    answer_all(connection)
    assert shown(alice) == {1: ("answered", "calm"), 3: ("answered", "urgent")}


def test_after_an_upgrade_the_scan_waits_for_who_has_written_meanwhile(
    connection: Connection, alice: Connection, database: str
) -> None:
    renew = next(file.source for file in sql_files() if file.path == "60_declarations/90_renew.sql")
    with connect(database, "alice") as writer, writer.transaction():
        with connection.transaction():
            connection.execute(renew.encode())
            connection.execute("LOCK TABLE loracomp.declaration IN ACCESS EXCLUSIVE MODE")
            connection.execute("LOCK TABLE loracomp.scan_request IN ACCESS EXCLUSIVE MODE")
            writer.execute("INSERT INTO tickets VALUES (3, 'calm', 'urgent')")
        answer_all(connection)
    answer_all(connection)
    assert shown(alice)[3] == ("answered", "urgent")


def test_default_privileges_of_the_installer_show_nobody_a_view(
    connection: Connection, alice: Connection, database: str
) -> None:
    default = "ALTER DEFAULT PRIVILEGES IN SCHEMA public {} ALL ON TABLES {} {}, PUBLIC"
    connection.execute(default.format("GRANT", "TO", login("bob")).encode())
    try:
        alice.execute(URGENCY.replace("'urgency'", "'more'"))
    finally:
        connection.execute(default.format("REVOKE", "FROM", login("bob")).encode())
    grants = (
        "SELECT count(*) FROM pg_class, aclexplode(relacl) WHERE oid = 'public.more'::regclass AND grantee <> relowner"
    )
    assert value(connection, grants) == 0
    with connect(database, "bob") as bob:
        for reading in ("SELECT FROM more", "SELECT FROM loracomp.answers_since('more')"):
            with pytest.raises(errors.InsufficientPrivilege):
                bob.execute(reading.encode())


def test_the_feed_needs_the_right_to_use_the_views_schema(
    connection: Connection, alice: Connection, database: str
) -> None:
    schema = f"hr_{login('alice')}"
    connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {login('alice')}".encode())
    alice.execute(URGENCY.replace("'urgency'", f"'{schema}.more'"))
    alice.execute(f"GRANT SELECT ON {schema}.more TO {login('bob')}".encode())
    feed = "SELECT FROM loracomp.answers_since((SELECT oid FROM pg_class WHERE relname = 'more'))"
    with connect(database, "bob") as bob:
        with pytest.raises(errors.InsufficientPrivilege, match="more is not a declaration that you may read"):
            bob.execute(feed)
        alice.execute(f"GRANT USAGE ON SCHEMA {schema} TO {login('bob')}".encode())
        bob.execute(feed)


def test_a_table_that_became_a_part_while_it_is_vacuumed_is_scanned_afterwards(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute("CREATE TABLE all_tickets (LIKE tickets); ALTER TABLE tickets INHERIT all_tickets")
    with connect(database, "alice") as vacuum, vacuum.transaction():
        vacuum.execute("LOCK TABLE tickets IN SHARE UPDATE EXCLUSIVE MODE")
        keep(connection)
    assert "is part of another table" in value(alice, "SELECT state FROM loracomp.list_answers()")
    assert value(connection, "SELECT count(*) FROM loracomp.scan_request") == 1


def test_workers_are_wanted_for_a_partition_that_was_attached(connection: Connection, alice: Connection) -> None:
    alice.execute("CREATE TABLE parts (LIKE tickets, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
    alice.execute(URGENCY.replace("'urgency'", "'more'").replace("'tickets'", "'parts'"))
    answer_all(connection)
    alice.execute("CREATE TABLE part (LIKE tickets INCLUDING ALL); INSERT INTO part VALUES (1, 'calm', 'urgent')")
    assert not value(connection, "SELECT loracomp.rows_wait()")
    alice.execute("ALTER TABLE parts ATTACH PARTITION part DEFAULT")
    connection.execute("UPDATE loracomp.declaration SET parts_at = now() - interval '61 seconds'")
    assert value(connection, "SELECT loracomp.rows_wait()")
    answer_all(connection)
    assert shown(alice, "more") == {1: ("answered", "urgent")}
    assert not value(connection, "SELECT loracomp.rows_wait()")
