"""What the owner of a declared table would try in order to get at more rights, or to stop other people's claims."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, answer_all, as_alice, ask, shown
from job_data import add_jobs, wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections, schema
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value

SPY = """
CREATE SCHEMA trap AUTHORIZATION {0};
CREATE SEQUENCE trap.ran;
ALTER SEQUENCE trap.ran OWNER TO {0};
GRANT UPDATE ON SEQUENCE trap.ran TO public;
GRANT USAGE ON SCHEMA trap TO public
"""


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    with as_alice(database) as opened:
        connection.execute(SPY.format(login("alice")).encode())
        opened.execute(TICKETS)
        yield opened
    connection.execute("DROP SCHEMA IF EXISTS trap CASCADE")


def others_ran_it(connection: Connection) -> bool:
    """Whether alice's code ran with other rights or in another's session; a sequence says so also after a rollback."""
    return value(connection, "SELECT is_called FROM trap.ran")


# What is said to be immutable also runs when a statement is planned.
EVIL = """
CREATE FUNCTION trap.spy() RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN IF current_user <> '{0}' OR session_user <> '{0}' THEN PERFORM setval('trap.ran', 1); END IF; RETURN '1'; END $$;
CREATE TYPE trap.evil AS (a integer)
"""
CASTS = {"json": "ASSIGNMENT", "jsonb": "ASSIGNMENT", "text": "IMPLICIT", "bigint": "IMPLICIT", "numeric": "IMPLICIT"}


def make_evil_type(alice: Connection) -> None:
    """A type whose conversions are alice's code."""
    alice.execute(EVIL.format(login("alice")).encode())
    for target, how in CASTS.items():
        name = f"trap.to_{target}"
        alice.execute(
            f"CREATE FUNCTION {name}(trap.evil) RETURNS {target} IMMUTABLE"
            f" LANGUAGE sql AS 'SELECT trap.spy()::{target}';"
            f"CREATE CAST (trap.evil AS {target}) WITH FUNCTION {name}(trap.evil) AS {how}".encode()
        )


def test_a_column_added_to_the_view_is_not_converted_with_other_rights(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent')")
    answer_all(connection)
    make_evil_type(alice)
    alice.execute(
        "CREATE OR REPLACE VIEW urgency AS SELECT 1::bigint AS id, NULL::text AS answer,"
        " NULL::double precision AS confidence, NULL::boolean AS certain, 'answered'::text AS status,"
        " NULL::text AS reason,"
        " NULL::text AS answered_by, now() AS answered_at, NULL::text AS correct, ROW(1)::trap.evil AS extra"
    )
    with pytest.raises(errors.FeatureNotSupported, match="only the column correct of"):
        alice.execute("UPDATE urgency SET correct = 'urgent', extra = ROW(2)::trap.evil WHERE id = 1")
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    assert value(connection, "SELECT correct FROM loracomp.answer_row") == "urgent"
    assert not others_ran_it(connection)


def test_another_column_called_correct_is_not_converted_with_other_rights(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent')")
    answer_all(connection)
    make_evil_type(alice)
    alice.execute("ALTER VIEW urgency RENAME correct TO was")
    alice.execute(
        "CREATE OR REPLACE VIEW urgency AS SELECT 1::bigint AS id, NULL::text AS answer,"
        " NULL::double precision AS confidence, NULL::boolean AS certain, 'answered'::text AS status,"
        " NULL::text AS reason,"
        " NULL::text AS answered_by, now() AS answered_at, NULL::text AS was, ROW(1)::trap.evil AS correct"
    )
    with pytest.raises(errors.FeatureNotSupported, match="correct is no longer the view's own column"):
        alice.execute("UPDATE urgency SET correct = ROW(2)::trap.evil WHERE id = 1")
    assert not others_ran_it(connection)


@pytest.mark.parametrize("parts", ["", "PARTITION BY HASH (part)"])
@pytest.mark.parametrize("key", ["bigint", "numeric", "text", "timestamptz"])
def test_a_key_of_another_type_is_not_converted_with_other_rights(
    connection: Connection, alice: Connection, key: str, parts: str
) -> None:
    alice.execute(
        f"CREATE TABLE keyed (id {key}, part integer DEFAULT 0, body text, PRIMARY KEY (id, part)) {parts}".encode()
    )
    if parts:
        alice.execute("CREATE TABLE all_of_it PARTITION OF keyed FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    alice.execute("SELECT loracomp.create_answers('answers', 'keyed', '{body}')")
    make_evil_type(alice)
    alice.execute("DROP VIEW answers")
    alice.execute("ALTER TABLE keyed ALTER id TYPE trap.evil USING ROW(1)::trap.evil")
    alice.execute("INSERT INTO keyed VALUES (ROW(2), 0, 'a'), (ROW(3), 0, 'b')")
    alice.execute("UPDATE keyed SET body = 'c'")
    alice.execute("DELETE FROM keyed")
    with pytest.raises(errors.WrongObjectType, match="has a type that keys can't have"):
        connection.execute("""SELECT loracomp.read_rows(a, '[{"key": ["1", "0"]}]') FROM loracomp.declaration AS a""")
    assert ask(connection) == {}
    assert not others_ran_it(connection)


CODE = {
    "an index's predicate": "CREATE INDEX trap ON tickets (id) WHERE trap.fixed(1)",
    "an index's expression": "CREATE INDEX trap ON tickets ((trap.fixed(1)))",
    "an operator": "CREATE OPERATOR trap.!! (RIGHTARG = integer, FUNCTION = trap.fixed);"
    "CREATE INDEX trap ON tickets ((OPERATOR(trap.!!) 1))",
    "an operator's commutator": "CREATE OPERATOR trap.<<< (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4lt,"
    " COMMUTATOR = OPERATOR(trap.>>>), RESTRICT = scalarltsel);"
    "CREATE OPERATOR trap.>>> (LEFTARG = integer, RIGHTARG = integer, FUNCTION = trap.greater,"
    " COMMUTATOR = OPERATOR(trap.<<<), RESTRICT = scalargtsel);"
    "CREATE INDEX trap ON tickets (body) WHERE 0 OPERATOR(trap.<<<) length(body)",
    "an operator that may get partners": "CREATE OPERATOR trap.=== (LEFTARG = bigint, RIGHTARG = bigint,"
    " FUNCTION = int8eq, RESTRICT = eqsel); CREATE INDEX trap ON tickets (body) WHERE NOT (id OPERATOR(trap.===) 2)",
    "an operator's negator": "CREATE OPERATOR trap.=== (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq,"
    " NEGATOR = OPERATOR(trap.!==));"
    "CREATE OPERATOR trap.!== (LEFTARG = integer, RIGHTARG = integer, FUNCTION = trap.greater,"
    " NEGATOR = OPERATOR(trap.===));"
    "CREATE INDEX trap ON tickets (body) WHERE NOT (1 OPERATOR(trap.===) 2)",
    **{
        f"a range type in {where}": "CREATE TYPE trap.range AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = trap.distance,"
        f" MULTIRANGE_TYPE_NAME = trap.ranges); {column}; ANALYZE tickets"
        for where, column in {
            "a column": "ALTER TABLE tickets ADD r trap.range DEFAULT '[1,2]'",
            "an index's predicate": "CREATE INDEX trap ON tickets (id) WHERE '[1,2]'::trap.range <> '[2,3]'",
            "a multirange": "ALTER TABLE tickets ADD r trap.ranges DEFAULT '{[1,2]}'",
            "an array": "ALTER TABLE tickets ADD r trap.range[] DEFAULT '{}'",
            "a domain": "CREATE DOMAIN trap.d AS trap.range[]; ALTER TABLE tickets ADD r trap.d DEFAULT '{}'",
            "a composite": "CREATE TYPE trap.c AS (r trap.range); ALTER TABLE tickets ADD r trap.c",
            "another table's rows": "CREATE TABLE trap.t (r trap.range); ALTER TABLE tickets ADD r trap.t",
        }.items()
    },
    "statistics": "CREATE STATISTICS trap.s ON (trap.fixed(1)), id FROM tickets",
    "a constraint": "ALTER TABLE tickets ADD CHECK (trap.fixed(1))",
    "a forced policy": "CREATE POLICY p ON tickets USING (set_config('search_path', 'trap, pg_catalog', false) > '');"
    "ALTER TABLE tickets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
}


@pytest.mark.parametrize("code", CODE)
def test_workers_run_no_code_of_a_tables_owner(connection: Connection, alice: Connection, code: str) -> None:
    """The owner's code would run in a worker's session: it could change the session's settings, and what its next
    statements mean."""
    alice.execute(URGENCY)
    spy = (
        "CREATE FUNCTION trap.fixed(integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN"
        f" IF session_user <> '{login('alice')}' THEN PERFORM setval('trap.ran', 1); END IF; RETURN true; END $$"
    )
    alice.execute(spy.encode())
    alice.execute(
        "CREATE FUNCTION trap.greater(integer, integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN trap.fixed(1) AND $1 > $2; END $$;"
        "CREATE FUNCTION trap.distance(float8, float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM trap.fixed(1); RETURN $1 - $2; END $$"
    )
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent')")
    alice.execute(CODE[code].encode())
    add_jobs(connection, "a")
    assert list(ask(connection).values()) == ["a"]
    path = value(connection, "SELECT current_setting('search_path')")
    assert "trap" not in path
    assert not others_ran_it(connection)
    said = value(alice, "SELECT state FROM loracomp.list_answers()")
    assert "forces its policies on its owner" in said or re.search(
        r"calls trap\.(fixed|greater|distance|range|\W)", said
    )
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        alice.execute(URGENCY.replace("'urgency'", "'another'").encode())


def test_an_administrator_who_alters_a_declaration_runs_no_code_of_its_owner(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent')")
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent'")
    alice.execute(CODE["a forced policy"].encode())
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="forces its policies"):
        connection.execute("SELECT loracomp.alter_answers('public.urgency', choices => '{urgent,calm}')")


@pytest.mark.parametrize(
    "call",
    [
        "SELECT loracomp.correct_row('public.urgency', '{1}', 'not urgent', seen => 'urgent')",
        "SELECT loracomp.alter_answers('public.urgency', choices => '{urgent,calm}')",
        "SELECT loracomp.try_prompts('public.tickets', '{body}')",
        "SELECT loracomp.drop_answers('public.urgency')",
    ],
)
def test_an_administrator_who_waits_for_a_table_reads_no_other_of_that_name(
    connection: Connection, alice: Connection, database: str, call: str
) -> None:
    """A statement finds the table by its name, which the owner may give to another table while a call waits."""
    alice.execute(
        "CREATE FUNCTION trap.fixed(integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN"
        f" IF session_user <> '{login('alice')}' THEN PERFORM setval('trap.ran', 1); END IF; RETURN true; END $$;"
        "INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent');"
        "CREATE TABLE other AS TABLE tickets; ALTER TABLE other ADD PRIMARY KEY (id);"
        "CREATE INDEX ON other (id) WHERE trap.fixed(1)".encode()
    )
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent'")
    with connect(database, "alice") as renaming, connections.connect(database) as other, ThreadPoolExecutor(1) as pool:
        renaming.execute("BEGIN; ALTER TABLE tickets RENAME TO gone; ALTER TABLE other RENAME TO tickets")
        called = pool.submit(other.execute, call.encode())
        wait_for_a_lock(connection)
        renaming.execute("COMMIT")
        with pytest.raises(errors.ObjectInUse, match="renamed meanwhile"):
            called.result(60)
    assert not others_ran_it(connection)


def test_a_filter_runs_no_code_of_a_domain(alice: Connection) -> None:
    alice.execute(
        "CREATE FUNCTION trap.fine(text) RETURNS boolean LANGUAGE plpgsql AS"
        f" $$ BEGIN IF current_user <> '{login('alice')}' THEN RAISE 'run as %', current_user; END IF; RETURN true; END"
        " $$;"
        " CREATE TYPE trap.mood AS ENUM ('good', 'bad');"
        " CREATE DOMAIN trap.checked AS trap.mood CHECK (trap.fine(VALUE::text));"
        " CREATE TABLE notes (id integer PRIMARY KEY, t text, a trap.checked, b trap.checked[])".encode()
    )
    for column, fitting, other in (("a", "good", "dog"), ("b", "{bad,good}", "{dog}")):
        declared = (
            "SELECT loracomp.create_answers(%s, 'notes', '{t}', filter => jsonb_build_object(%s::text, %s::text))"
        )
        alice.execute(declared, [f"by_{column}", column, fitting])
        with pytest.raises(errors.InvalidParameterValue, match=f"column {column}: type trap.mood.* has no value"):
            alice.execute(declared, [f"by_other_{column}", column, other])


def test_a_superusers_function_in_an_index_is_no_obstacle(connection: Connection, alice: Connection) -> None:
    connection.execute("CREATE FUNCTION public.plain(text) RETURNS text IMMUTABLE LANGUAGE sql RETURN lower($1)")
    alice.execute("CREATE INDEX ON tickets (public.plain(subject)); CREATE INDEX ON tickets (lower(body))")
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent')")
    assert len(ask(connection)) == 1
    alice.execute("DROP TABLE tickets CASCADE")
    connection.execute("DROP FUNCTION public.plain")


def test_what_is_declared_in_an_open_transaction_stops_no_claim(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("CREATE TABLE others (id bigint PRIMARY KEY, a text)")
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent')")
    with connect(database, "alice") as other, other.transaction():
        other.execute("SELECT loracomp.create_answers('more', 'others', '{a}')")
        connection.execute("UPDATE loracomp.declaration SET scan = 'rows'")
        add_jobs(connection, "a")
        assert len(ask(connection)) == 2


def test_many_declarations_hold_a_claim_up_for_little_more_than_a_second(
    connection: Connection, alice: Connection
) -> None:
    for table in ("t1", "t2", "t3", "t4"):
        alice.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, a text)".encode())
        alice.execute("SELECT loracomp.create_answers('of_' || %(table)s, %(table)s, '{a}')", {"table": table})
        alice.execute(f"INSERT INTO {table} VALUES (1, '{table}')".encode())
    connection.execute(
        "CREATE FUNCTION trap.dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END $$;"
        " CREATE TRIGGER dawdle AFTER INSERT ON loracomp.job FOR EACH STATEMENT EXECUTE FUNCTION trap.dawdle()"
    )
    try:
        asked = [prompt for _ in range(20) for prompt in ask(connection).values()]
        first = connection.execute("SELECT count(*) AS jobs FROM loracomp.job GROUP BY created_at ORDER BY created_at")
        assert max(row["jobs"] for row in first) <= 2
    finally:
        connection.execute("DROP TRIGGER dawdle ON loracomp.job")
    assert sorted(asked) == ["t1", "t2", "t3", "t4"]


def test_a_view_is_made_only_where_its_owner_may_create(connection: Connection, alice: Connection) -> None:
    connection.execute("CREATE SCHEMA closed")
    for place in ("closed", "loracomp", "loracomp_parts"):
        with pytest.raises(errors.InsufficientPrivilege, match="may not create a view in schema"):
            alice.execute(URGENCY.replace("'urgency'", f"'{place}.urgency'").encode())
    connection.execute("DROP SCHEMA closed")


def test_a_key_of_letters_that_are_filled_up_with_blanks(connection: Connection, alice: Connection) -> None:
    alice.execute("CREATE TABLE lands (code char(3) PRIMARY KEY, a text)")
    alice.execute("INSERT INTO lands VALUES ('ab', 'x'), ('abc', 'y')")
    alice.execute("SELECT loracomp.create_answers('l', 'lands', '{a}')")
    answer_all(connection)
    alice.execute("UPDATE lands SET a = 'z'")
    assert answer_all(connection) == ["z", "z"]
    assert shown(alice, "l", "code") == {"ab ": ("answered", "z"), "abc": ("answered", "z")}


def test_a_declaration_that_cannot_be_renewed_stops_no_upgrade(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent')")
    connection.execute(f"ALTER ROLE {login('alice')} RENAME TO renamed".encode())
    try:
        assert schema.initialize(database, again=True)
        assert ask(connection) == {}
        assert "belongs to renamed now" in value(connection, "SELECT trouble FROM loracomp.declaration")
    finally:
        connection.execute(f"ALTER ROLE renamed RENAME TO {login('alice')}".encode())
