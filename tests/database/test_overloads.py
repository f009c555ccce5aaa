"""Nobody gains a right by creating functions and operators: neither in public nor in our schemas, nor before `init`.

A login that may create in public, and nothing else, plants overloads of all that our SQL uses (`planted.py`). Each
counts its calls, and raises: neither our functions, views and constraints nor the statements of Python may call one.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

import planted
from answers_data import TICKETS
from conftest import create_database, drop_database
from job_data import claim, prediction_row, record
from loracomp.database import connections as db
from loracomp.database import doctor, schema, script
from loracomp.database.queries import QUERIES
from loracomp.errors import RefusedError
from people_data import fill_every_view
from people_fixtures import Scene, connect, login, value, values
from routing_data import BASE_MODEL
from test_script import applied, psql

OURS = "('loracomp', 'loracomp_parts', 'bi')"
PLANTER = f"planter_{os.getpid()}"
OWNER = f"owner_{os.getpid()}"
# What depends on a planted object, and is not planted itself.
BOUND = f"""
WITH planted AS (
    SELECT 'pg_proc'::regclass AS catalog, oid FROM pg_proc WHERE proowner = '{PLANTER}'::regrole
    UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprowner = '{PLANTER}'::regrole
)
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend AS d
WHERE (d.refclassid, d.refobjid) IN (TABLE planted) AND (d.classid, d.objid) NOT IN (TABLE planted)
"""


@pytest.fixture(scope="module")
def people(server: str) -> Iterator[None]:
    """Two plain logins: one plants, the other may own a database."""
    with psycopg.connect(server, autocommit=True) as connection:
        for role in (PLANTER, OWNER):
            connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        yield
        for role in (PLANTER, OWNER):
            connection.execute(f"DROP ROLE {role}".encode())


@pytest.fixture(scope="module")
def names(server: str, template: str) -> planted.Used:
    """The functions and operators that our SQL uses."""
    name = f"names_{os.getpid()}"
    with psycopg.connect(create_database(server, name, template)) as connection:
        found = planted.used(connection)
    drop_database(server, name)
    return found


@pytest.fixture(scope="module")
def hostile(server: str, names: planted.Used, people: None) -> Iterator[str]:
    """Name of a database with pgvector, nothing of ours, and overloads of all that we use."""
    name = f"hostile_{os.getpid()}"
    plant(create_database(server, name), names)
    yield name
    drop_database(server, name)


@pytest.fixture(scope="module")
def installed(server: str, hostile: str, logins: None) -> Iterator[str]:
    """Another copy, in which we are installed, as superuser."""
    name = f"{hostile}_installed"
    made = create_database(server, name, hostile)
    schema.initialize(made)
    yield made
    drop_database(server, name)


@pytest.fixture
def url(server: str, hostile: str) -> Iterator[str]:
    """A copy of that database, as superuser."""
    name = f"{hostile}_copy"
    yield create_database(server, name, hostile)
    drop_database(server, name)


def plant(url: str, names: planted.Used) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"GRANT CREATE ON SCHEMA public TO {PLANTER}".encode())
    with psycopg.connect(make_conninfo(url, user=PLANTER), autocommit=True) as planter:
        assert planted.plant(planter, names) > 10_000


def bound(url: str) -> set[str]:
    """Objects that call a planted one."""
    with psycopg.connect(url, options="-c search_path=pg_catalog") as connection:
        return {row[0] for row in connection.execute(BOUND)}


def unharmed(url: str) -> None:
    """No planted function has run, and none of loracomp's objects calls one."""
    assert bound(url) == set()
    with psycopg.connect(url, options="-c search_path=pg_catalog") as connection:
        assert connection.execute("SELECT last_value, is_called FROM public.planted_ran").fetchone() == (1, False)


def owned(server: str, url: str) -> str:
    """The database as its new owner, who is no superuser."""
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}".encode())
    return make_conninfo(url, user=OWNER)


def test_an_installation_calls_none(url: str) -> None:
    schema.initialize(url)
    unharmed(url)
    assert schema.initialize(url, again=True) != []
    assert schema.changed_files(url) == []
    unharmed(url)


def test_the_printed_script_of_a_plain_owner_calls_none(url: str, server: str, programs: Path) -> None:
    owner = owned(server, url)
    applied(programs, owner, script.schema_script())
    unharmed(url)
    assert schema.initialize(owner, again=True) != []
    unharmed(url)


def test_an_upgrade_calls_none(database: str, names: planted.Used, people: None, programs: Path) -> None:
    """Also with a user's view on one of ours, which is replaced and defined again."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "CREATE VIEW public.statuses AS SELECT left(status, 3)::name || job_id AS status FROM loracomp.job_result"
        )
    plant(database, names)
    assert schema.initialize(database, again=True) != []
    unharmed(database)
    applied(programs, database, script.schema_script("1.0"))
    unharmed(database)


def test_the_planted_ones_would_be_called(url: str) -> None:
    """Calls through a function that looks names up under the default path, to show that this file's tests can fail."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE FUNCTION late(n name) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN md5(n); END'")
        with pytest.raises(psycopg.errors.RaiseException, match="a planted function runs as postgres"):
            connection.execute("SELECT late('x')")
        connection.execute("CREATE FUNCTION early(n name) RETURNS text LANGUAGE sql RETURN md5(n)")
        connection.execute("CREATE VIEW never AS SELECT true AS so WHERE 1::bigint = 1.0::float8")
    assert bound(url) == {"function public.early(name)", "rule _RETURN on view public.never"}


# Our functions, called under the usual search path.

FUNCTIONS = f"""
SELECT p.oid::regproc::text AS name, coalesce(p.proargnames[:p.pronargs], '{{}}') AS arguments,
    ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS u (t, n) ORDER BY n) AS types
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname IN {OURS} AND p.prorettype <> 'trigger'::regtype ORDER BY p.oid
"""
VIEWS = f"""
SELECT oid::regclass::text FROM pg_class WHERE relkind = 'v' AND relnamespace::regnamespace::text IN {OURS}
"""
QUOTED = f"""
SELECT p.oid::regproc::text AS name FROM pg_proc AS p
WHERE p.pronamespace::regnamespace::text IN {OURS} AND p.prosqlbody IS NULL
    AND NOT EXISTS (SELECT FROM pg_stat_user_functions AS f WHERE f.funcid = p.oid)
"""
GIVEN: dict[str, Any] = {
    "task": "rte", "base_model": "toy", "policy": "default", "adapter": "rte@1", "setting": "k", "split": "train",
    "job": '{"prompt": "x"}', "jobs": '[{"prompt": "x"}]', "settings": "{}", "given": "{}", "name": "default",
    "text": "x", "integer": 1, "bigint": 1, "smallint": 1, "double precision": 0.5, "real": 0.5, "boolean": True,
    "interval": "1 day", "jsonb": "{}", "timestamp with time zone": "now", "date": "2026-01-01", "regclass": "tickets",
    "oid": 25, "bytea": b"x", "public.vector": f"[1{',0' * 831}]", "public.halfvec": f"[1{',0' * 831}]",
}  # fmt: skip
"""Arguments by their names, and else by their types."""


def argument(name: str, kind: str) -> Any:
    if kind.endswith("[]"):
        return [GIVEN.get(kind.removesuffix("[]"))]
    return GIVEN.get(name if kind in ("text", "jsonb") else kind, GIVEN.get(kind))


def attempt(connection: db.Connection, statement: sql.Composed | str, parameters: Any = None) -> None:
    """Run it and take it back; any error but that of a planted function is as good as an answer."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode() if isinstance(statement, str) else statement, parameters).fetchall()
    except psycopg.Error as error:
        assert "planted" not in str(error), f"{statement}: {error}"


def call_all(connection: db.Connection, functions: list[dict[str, Any]]) -> None:
    """Each function, with null and with other values."""
    for function in functions:
        kinds = function["types"]
        call = sql.SQL("SELECT * FROM {}({})").format(
            sql.SQL(function["name"]), sql.SQL(", ").join(sql.SQL("%s::" + kind) for kind in kinds)
        )
        attempt(connection, call, [None for _ in kinds])
        attempt(connection, call, [argument(*each) for each in zip(function["arguments"] or kinds, kinds, strict=True)])


def declare_and_correct(alice: db.Connection, wendy: db.Connection) -> None:
    """Rows of a table are asked, answered, corrected, changed and forgotten."""
    alice.execute(TICKETS)
    alice.execute(QUERIES["try_prompts"], {"source": "tickets", "prompt": "{subject}", "filter": Jsonb({})})
    declared = {"name": "urgency", "source": "tickets", "prompt": "{subject}", "choices": ["a", "b"], "priority": 0}
    alice.execute(
        QUERIES["create_answers"],
        {
            **declared,
            "descriptions": None,
            "max_new_tokens": None,
            "policy": "default",
            "backfill": True,
            "tags": Jsonb({}),
            "filter": Jsonb({}),
            "certain": None,
            "certain_of": None,
        },
    )
    for number in range(1, 5):
        alice.execute("INSERT INTO tickets (id, subject, body) VALUES (%s, 'wet', 'dry')", [number])
    while jobs := claim(wendy, 1000, base_model=BASE_MODEL):
        asked = [job for job in jobs if job.kind == "predict"]
        rows = [prediction_row(job.id, output="a", choice_scores=[-1.0, -2.0], choice_index=1) for job in asked]
        record(wendy, {job.id: job.lease_token for job in asked}, rows)
    assert values(alice, "SELECT status FROM urgency") == {"answered"}
    alice.execute("UPDATE urgency SET correct = 'b'")
    alice.execute("UPDATE tickets SET subject = 'dry'")
    alice.execute("DELETE FROM tickets WHERE id = 4::bigint")
    for query in ("list_answers", "list_answer_rows", "rows_to_correct", "correct_answer", "correct_row"):
        given = {"counted": True, "after": None, "n": 5, "visitor": None, "key": "1", "answer": "a", "seen": "a"}
        keys = {"key": ["1"]} if query == "correct_row" else {}
        alice.execute(QUERIES[query], {"name": "urgency", **given, "job_id": None, **keys})
    alice.execute("SELECT * FROM loracomp.answers_since('urgency')")
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{a,c}')")


def test_the_public_interface_calls_none(installed: str) -> None:
    url = installed
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET track_functions = 'all'".encode())
        connection.execute(f"CREATE SCHEMA {login('alice')} AUTHORIZATION {login('alice')}".encode())
    with db.connect(make_conninfo(url, options="-c search_path=pg_catalog")) as safe:
        fill_every_view(safe)
        functions = safe.execute(FUNCTIONS).fetchall()
        views = values(safe, VIEWS)
        with db.connect(url) as owner, connect(url, "alice") as alice, connect(url, "wendy") as wendy:
            assert value(owner, "SHOW search_path") == '"$user", public'
            declare_and_correct(alice, wendy)
            for person in (owner, alice, wendy):
                for view in views:
                    attempt(person, f"TABLE {view}")
                call_all(person, functions)
            alice.execute("SELECT loracomp.drop_answers('urgency')")
            for query in ("check_health", "refresh_reports"):
                owner.execute(QUERIES[query], {"older_than": "0"})
            alice.execute("INSERT INTO loracomp.job (prompt) VALUES ('by INSERT')")
            owner.execute("UPDATE loracomp.policy SET name = 'default' WHERE name = 'default'")
            owner.execute("INSERT INTO loracomp.adapter_part SELECT max(id), 1000, 'x' FROM loracomp.adapter")
        uncalled = values(safe, QUOTED)
    assert doctor.examine(url)
    unharmed(url)
    assert uncalled == {"loracomp.copy_comments"}, "only an installation calls it"


# What can be read from the catalogue.


def test_every_body_that_is_bound_at_each_call_has_a_fixed_path(scene: Scene) -> None:
    """Whatever the path of whoever calls it. What constraints call at each insert writes the schema of all names."""
    bodies = f"""
    SELECT p.oid::regproc::text AS name FROM pg_proc AS p
    WHERE p.pronamespace::regnamespace::text IN {OURS} AND p.prosqlbody IS NULL AND NOT coalesce(
        p.proconfig && ARRAY['search_path=loracomp, pg_temp', 'search_path=pg_catalog, pg_temp'], false
    )
    """
    of_constraints = ("is_blank", "texts_are_not_blank", "texts_are_distinct", "texts_length", "is_list")
    assert values(scene.owner, bodies) == {f"loracomp.{name}" for name in of_constraints}


CALLED = f"""
SELECT FROM pg_depend AS d
LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
WHERE d.classid = 'pg_proc'::regclass AND d.objid = 'public.sent'::regproc
    AND coalesce(p.proowner, o.oprowner) = '{PLANTER}'::regrole
"""
PLACEHOLDER = re.compile(r"%\((\w+)\)[sb]")
SENT_AS = ("NULL", "1::smallint", "1::bigint", "true", "ARRAY[1]::smallint[]", "ARRAY['a']::text[]", "now()")
"""The types that psycopg sends for parameters; texts are sent without a type, like NULL."""


def forms(query: str) -> Iterator[str]:
    """The query with each parameter that it does not cast as each type in turn; the others have none."""
    if "%(" not in query:
        yield query
        return
    yield PLACEHOLDER.sub("NULL", query).replace("%%", "%")
    for name in sorted(set(re.findall(r"%\((\w+)\)[sb](?!::)", query))):
        for sent in SENT_AS[1:]:
            named = query.replace(f"%({name})s", sent).replace(f"%({name})b", sent)
            yield PLACEHOLDER.sub("NULL", named).replace("%%", "%")


def test_statements_of_python_call_none(installed: str) -> None:
    """These statements run under the search path of whoever connects, and may be sent through a pooler that keeps no
    settings."""
    looked_at, calling = set(), set()
    with psycopg.connect(installed, autocommit=True) as connection:
        for name, query in ((n, f) for n, q in QUERIES.items() for f in forms(q)):
            made = f"CREATE FUNCTION public.sent() RETURNS void LANGUAGE sql BEGIN ATOMIC {query}; END".encode()
            try:
                with connection.transaction(force_rollback=True):
                    connection.execute("SET LOCAL search_path = pg_catalog")
                    connection.execute(made)  # Python sends nothing that finds its names only under another path
            except psycopg.Error:
                continue
            looked_at.add(name)
            with connection.transaction(force_rollback=True):
                connection.execute(made)
                connection.execute("SET LOCAL search_path = pg_catalog")
                if connection.execute(CALLED).fetchone() is not None:
                    calling.add(name)
    assert calling == set()
    assert QUERIES.keys() - looked_at == {"listen", "resize_embeddings"}, "no statements of SELECT or DML"


# Schemas that others have made, or may create in.


@pytest.mark.parametrize("name", ["loracomp", "loracomp_parts", "bi"])
def test_a_schema_of_somebody_else_is_refused(empty_database: str, people: None, programs: Path, name: str) -> None:
    """A superuser too would make functions where its owner may replace them."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(f"CREATE EXTENSION vector; CREATE SCHEMA {name} AUTHORIZATION {PLANTER}".encode())
        refusal = f"schema {name} belongs to {PLANTER}: run this as that role if it installed loracomp; otherwise"
        with pytest.raises(RefusedError, match=refusal):
            schema.initialize(empty_database)
        assert refusal in psql(programs, empty_database, script.schema_script()).stderr
        connection.execute(f"ALTER SCHEMA {name} OWNER TO CURRENT_USER".encode())
        connection.execute(f"GRANT CREATE ON SCHEMA {name} TO {PLANTER}".encode())
        with pytest.raises(RefusedError, match=rf"{PLANTER} may create in schema {name}: REVOKE CREATE ON SCHEMA"):
            schema.initialize(empty_database)
        connection.execute(f"REVOKE CREATE ON SCHEMA {name} FROM {PLANTER}".encode())
        schema.initialize(empty_database)


@pytest.mark.parametrize("name", ["loracomp", "loracomp_parts", "bi"])
def test_a_schema_that_was_here_before_is_left_alone(empty_database: str, programs: Path, name: str) -> None:
    """Otherwise loracomp's roles could read all of it, and removing loracomp would drop it."""
    refusal = f"schema {name} has objects that are not loracomp's, such as table {name}.sales: rename the schema"
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(
            f"CREATE EXTENSION vector; CREATE SCHEMA {name}; CREATE TABLE {name}.sales (day date)".encode()
        )
        with pytest.raises(RefusedError, match=refusal):
            schema.initialize(empty_database)
        assert refusal in psql(programs, empty_database, script.schema_script()).stderr
        connection.execute(f"ALTER SCHEMA {name} RENAME TO company".encode())
        schema.initialize(empty_database)
        assert connection.execute("SELECT relacl FROM pg_class WHERE relname = 'sales'").fetchone() == (None,)


def test_a_function_of_somebody_else_in_our_schema_is_refused(database: str, people: None) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE FUNCTION loracomp.shorten(name, integer) RETURNS text LANGUAGE sql RETURN 'x'")
        connection.execute(f"ALTER FUNCTION loracomp.shorten(name, integer) OWNER TO {PLANTER}".encode())
        with pytest.raises(RefusedError, match=rf"function shorten\(name,integer\) belongs to {PLANTER}: drop it"):
            schema.initialize(database, again=True)
        connection.execute("DROP FUNCTION loracomp.shorten(name, integer)")
        assert schema.initialize(database, again=True)
