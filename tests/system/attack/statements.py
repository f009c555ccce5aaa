"""Random statements of a login: calls, reads, writes, locks, settings and objects of its own, with hostile values.

What may be called and read is taken from the catalog, so that a new function or view is tried without being named here.
"""

import json
from dataclasses import dataclass
from typing import Any, LiteralString, TypeAlias

from hypothesis import strategies as st
from psycopg import sql

from loracomp.database import tables
from loracomp.database.connections import Connection
from odd_values import HELPERS, KINDS, ODD, bigs, documents, integers, jsons, lists, short_lists, texts

Statement: TypeAlias = tuple[sql.SQL | sql.Composed, Any] | tuple[sql.SQL | sql.Composed, Any, frozenset[str] | None]
"""With its parameters, and what a refusal has to name one of, if it is a call or an INSERT of ours."""

# A worker's login may be elected to keep house and do nothing, as docs/security.md says.
FUNCTIONS = """
SELECT p.oid::regproc::text AS name, coalesce(p.proargnames[:p.pronargs], '{}') AS arguments,
    ARRAY(
        SELECT replace(format_type(t, NULL), 'public.', '') FROM unnest(p.proargtypes) WITH ORDINALITY AS u (t, n)
        ORDER BY n
    ) AS types
FROM pg_proc AS p
WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi') AND has_function_privilege(p.oid, 'EXECUTE')
    AND p.prorettype <> 'trigger'::regtype AND p.proname <> 'keep_house'
ORDER BY p.oid::regprocedure::text
"""
RELATIONS = """
SELECT n.nspname AS schema, c.relname AS name
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi', 'public') AND c.relkind IN ('r', 'p', 'v')
    AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')
ORDER BY 1, 2
"""
SETTINGS = """
SELECT name, vartype, enumvals FROM pg_settings
WHERE context = 'user' AND name !~ '^(debug|log|trace)_'
    AND name NOT IN ('statement_timeout', 'zero_damaged_pages', 'session_authorization')
ORDER BY name
"""
OWN_SETTINGS = ("loracomp.notify", "loracomp.reason", "loracomp.purging", "role")
OWN_TABLES = ("notes", "tickets", "Odd {table}%s")
OTHER_MODEL = "other"
"""A base model that only those who attack use: a worker's login may claim what it likes and not answer it."""
LOCK_MODES: tuple[LiteralString, ...] = (
    "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
)  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """What a login can reach, by the catalog."""

    functions: list[dict[str, Any]]
    relations: list[dict[str, Any]]
    settings: list[dict[str, Any]]


def reach_of(connection: Connection) -> Reach:
    with connection.transaction():
        # The role or the database may have other values, under which types and functions are called otherwise.
        connection.execute("SET LOCAL search_path = public")
        connection.execute("SET LOCAL quote_all_identifiers = off")
        return Reach(*(connection.execute(query).fetchall() for query in (FUNCTIONS, RELATIONS, SETTINGS)))


def statements(reach: Reach, role: str) -> st.SearchStrategy[Statement]:
    """What a login of this role (submitter, analyst or worker) may think of."""
    common = [calls(reach, role), calls(reach, role), reads(reach), locks(reach), settings(reach), noise, planted]
    of_role = {
        "submitter": [
            jobs,
            jobs,
            own_rows,
            own_rows,
            own_tables,
            declared,
            made_again,
            made_again,
            corrected,
            corrected,
        ],
        "analyst": [reads(reach)] * 3,
        "worker": [],
    }
    return st.one_of(*common, *of_role[role])


LIKELY = {
    "regclass": st.sampled_from(('public."said"', 'public."topics"', "notes", "tickets", "public.bobs_answers")),
    "text": st.sampled_from(("default", "measured", "{body}", "said", "notes", "1", "7", "toy", OTHER_MODEL)),
    "text[]": st.sampled_from((["1"], ["7"], ["a", "b"])),
    "bigint": st.one_of(st.integers(1, 3000), st.integers(1, 40)),
    "bigint[]": st.lists(st.integers(1, 3000), max_size=5),
    "integer": st.integers(1, 40),
    "jsonb": st.just("{}"),
}
"""Values that often name something that is there."""


def calls(reach: Reach, role: str) -> st.SearchStrategy[Statement]:
    """A call of a function that the login may execute."""

    def call(function: dict[str, Any]) -> st.SearchStrategy[Statement]:
        kinds = [st.one_of(KINDS.get(kind, texts), LIKELY.get(kind, st.none())) for kind in function["types"]]
        if role == "worker" and function["name"] == "loracomp.claim_jobs":
            kinds[1] = st.sampled_from((OTHER_MODEL, "", "toy'"))
        arguments = sql.SQL(", ").join(sql.SQL("%s::" + kind) for kind in function["types"])
        statement = sql.SQL("SELECT * FROM {}({})").format(sql.SQL(function["name"]), arguments)
        fields = fields_of(function)
        return st.tuples(*(st.one_of(st.none(), kind) for kind in kinds)).map(lambda given: (statement, given, fields))

    return st.sampled_from(reach.functions).flatmap(call)


def fields_of(function: dict[str, Any]) -> frozenset[str] | None:
    """What a refusal of a call has to name one of."""
    if HELPERS.fullmatch(function["name"]):
        return None
    settings = tables.policy.columns.keys() if "loracomp.policy" in function["types"] else ()
    return frozenset([*function["arguments"], *settings])


READS: tuple[LiteralString, ...] = (
    "SELECT * FROM {} LIMIT 50",
    "SELECT * FROM {} ORDER BY random() LIMIT 5",
    "SELECT * FROM {} FOR UPDATE",
    "SELECT * FROM {} FOR KEY SHARE SKIP LOCKED",
    "SELECT * FROM {} TABLESAMPLE SYSTEM (10)",
    "SELECT * FROM {} AS x WHERE x::text::int = 1",
    "SELECT * FROM {} AS x WHERE md5(x::text) < 'a'",
    "SELECT count(*) FROM {} AS x GROUP BY x::text HAVING count(*) > 1",
    "DELETE FROM {}",
    "TRUNCATE {}",
)


def of_relation(drawn: tuple[LiteralString, dict[str, Any]]) -> Statement:
    text, relation = drawn
    return sql.SQL(text).format(sql.Identifier(relation["schema"], relation["name"])), ()


def reads(reach: Reach) -> st.SearchStrategy[Statement]:
    """Rows of a table or view: in odd orders, locked, filtered by what raises, or to be deleted."""
    return st.tuples(st.sampled_from(READS), st.sampled_from(reach.relations)).map(of_relation)


def locks(reach: Reach) -> st.SearchStrategy[Statement]:
    """Locks of tables in every mode, and advisory locks that something of ours might use."""
    tables = st.tuples(
        st.sampled_from([f"LOCK TABLE {{}} IN {mode} MODE NOWAIT" for mode in LOCK_MODES]),
        st.sampled_from(reach.relations),
    ).map(of_relation)
    others = bigs.map(lambda key: (sql.SQL("SELECT pg_try_advisory_lock(%s::bigint)"), (key,)))
    return st.one_of(tables, others)


def settings(reach: Reach) -> st.SearchStrategy[Statement]:
    """A setting of the session that anybody may change, to something that may be odd."""
    odd = (
        *ODD,
        "SQL, DMY",
        "UTF8",
        "LATIN1",
        "SQL_ASCII",
        "EUC_JP",
        "Europe/Berlin",
        "sql_standard",
        '""',
        "pg_temp, public",
    )

    def change(setting: dict[str, Any]) -> st.SearchStrategy[Statement]:
        kinds = {
            "bool": st.sampled_from(("on", "off")),
            "enum": st.sampled_from(setting["enumvals"] or ("",)),
            "integer": integers.map(str),
            "real": st.sampled_from(("0", "1", "-1", "1e9")),
        }
        value = kinds.get(setting["vartype"], st.sampled_from(odd))
        return value.map(lambda text: (sql.SQL("SELECT set_config(%s, %s, false)"), (setting["name"], text[:1000])))

    own = [{"name": name, "vartype": "string", "enumvals": None} for name in OWN_SETTINGS]
    return st.sampled_from([*reach.settings, *own]).flatmap(change)


def plain(text: LiteralString) -> Statement:
    return sql.SQL(text), ()


NOISE: tuple[LiteralString, ...] = (
    "SELECT count(pg_notify('loracomp_job', i::text)) FROM generate_series(1, 1000) AS i",
    "LISTEN loracomp_job",
    "UNLISTEN *",
    "DISCARD ALL",
    "RESET ALL",
    "SELECT pg_cancel_backend(pid), pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "DECLARE open CURSOR WITH HOLD FOR SELECT * FROM generate_series(1, 1000)",
    "SELECT pg_sleep(0.2)",
    "SET ROLE loracomp_admin",
    "ALTER ROLE CURRENT_USER SET search_path = public, pg_catalog",
    "ALTER ROLE CURRENT_USER RESET ALL",
    "CREATE SCHEMA loracomp",
    "CREATE EXTENSION IF NOT EXISTS vector",
    "COMMENT ON SCHEMA loracomp IS 'mine'",
    "DROP SCHEMA IF EXISTS loracomp CASCADE",
    "GRANT loracomp_admin TO CURRENT_USER",
    "REVOKE loracomp_submitter FROM CURRENT_USER",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY loracomp.job (prompt) FROM PROGRAM 'echo why'",
)
noise = st.sampled_from(NOISE).map(plain)

PLANTED: tuple[LiteralString, ...] = (
    "md5(text)", "md5(name)", "concat_ws(text, text)", "concat(text)", "now()", "format(text, int, int, text)",
    "cardinality(text[])", "count(int)", "jsonb_build_object(text, int)", "left(text, int)", "coalesce_to(text)",
    "hashtextextended(text, int)", "pg_has_role(name, text, text)", "to_regrole(name)",
)  # fmt: skip
PLANT: LiteralString = """
CREATE OR REPLACE FUNCTION {}.{} RETURNS text LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'a planted function ran as %', current_user; END $$
"""
SHADOWS: LiteralString = "CREATE TEMP TABLE IF NOT EXISTS {} (id bigint, name text, source regclass)"
OPERATOR: LiteralString = """
CREATE OR REPLACE FUNCTION public.planted(name, text) RETURNS boolean LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'a planted function ran as %', current_user; END $$;
CREATE OPERATOR public.{} (FUNCTION = public.planted, LEFTARG = name, RIGHTARG = text)
"""
planted = st.one_of(
    st.tuples(st.sampled_from(("public", "pg_temp")), st.sampled_from(PLANTED)).map(
        lambda drawn: (sql.SQL(PLANT).format(sql.Identifier(drawn[0]), sql.SQL(drawn[1])), ())
    ),
    st.sampled_from(("job", "declaration", "policy", "task", "encoder", "pg_class", "base_model")).map(
        lambda name: (sql.SQL(SHADOWS).format(sql.Identifier(name)), ())
    ),
    st.sampled_from(("=", "<", "||", "@>", "+")).map(lambda name: (sql.SQL(OPERATOR).format(sql.SQL(name)), ())),
)

COLUMNS = {
    "prompt": texts,
    "choices": KINDS["text[]"],
    "max_new_tokens": integers,
    "stop": short_lists(texts),
    "temperature": KINDS["double precision"],
    "top_p": KINDS["double precision"],
    "seed": bigs,
    "policy": texts,
    "base_model": st.sampled_from((OTHER_MODEL, "toy", "")),
    "priority": integers,
    "run_at": KINDS["timestamp with time zone"],
    "idempotency_key": texts,
    "tags": jsons,
    "exclude_tasks": short_lists(texts),
    "tasks": short_lists(texts),
    "weights": lists(KINDS["double precision"]),
    "max_attempts": integers,
    "timeout_s": integers,
    "chat_template": st.booleans(),
    "system_text": texts,
    "kind": st.sampled_from(("predict", "route", "measure", "")),
    "expected": texts,
    "task": texts,
    "submitted_by": KINDS["name"],
    "lease_token": bigs,
    "place": bigs,
}


def _inserted(drawn: tuple[dict[str, Any], int]) -> Statement:
    row = {"prompt": "why?", **drawn[0]}
    return (
        sql.SQL("INSERT INTO loracomp.job ({}) SELECT {} FROM generate_series(1, {})").format(
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join([sql.Placeholder()] * len(row)),
            sql.Literal(drawn[1]),
        ),
        tuple(row.values()),
        frozenset(row),
    )


jobs = st.tuples(
    st.lists(st.sampled_from(sorted(COLUMNS)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: COLUMNS[name] for name in names})
    ),
    st.sampled_from((1, 1, 1, 20, 200)),
).map(_inserted)


def _of_own_table(drawn: tuple[LiteralString, str, str, int]) -> Statement:
    text, table, body, number = drawn
    known = {"table": sql.Identifier("public", table), "body": sql.Literal(body), "number": sql.Literal(number)}
    return sql.SQL(text).format(**known), ()


WRITES: tuple[LiteralString, ...] = (
    "INSERT INTO {table} (id, body) SELECT i, {body} FROM generate_series({number}, {number} + 1) AS i",
    "INSERT INTO {table} (id, body) SELECT i, {body} FROM generate_series(1, 300) AS i ON CONFLICT DO NOTHING",
    "UPDATE {table} SET body = body || 'more'",
    "UPDATE {table} SET body = {body} WHERE id % 7 = {number} % 7",
    "DELETE FROM {table} WHERE id % 11 = {number} % 11",
    "UPDATE {table} SET id = id + 1000 WHERE id < 3",
    "INSERT INTO {table} (id, body) SELECT max(id) + 1, repeat('long ', 400000) FROM {table}",
    "SELECT * FROM {table} FOR UPDATE",
)
CHANGES: tuple[LiteralString, ...] = (
    "ALTER TABLE {table} RENAME COLUMN body TO text",
    "ALTER TABLE {table} RENAME COLUMN text TO body",
    "ALTER TABLE {table} ADD COLUMN more text DEFAULT 'more'",
    "ALTER TABLE {table} DROP COLUMN more",
    "ALTER TABLE {table} ADD COLUMN share int GENERATED ALWAYS AS (1 / (id % 5)) VIRTUAL",
    "ALTER TABLE {table} RENAME TO set_aside",
    "ALTER TABLE IF EXISTS public.set_aside RENAME TO notes",
    "ALTER TABLE {table} ALTER COLUMN id TYPE bigint",
    "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
    "CREATE POLICY odd ON {table} USING (id % 2 = 0)",
    "CREATE INDEX ON {table} (lower(body))",
    "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "ALTER TABLE {table} ENABLE TRIGGER USER",
    "TRUNCATE {table}",
    "DROP TABLE {table}",
    "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
    "CREATE TABLE IF NOT EXISTS {table} (id integer PRIMARY KEY, body text)",
    "VACUUM {table}",
)
own_rows = st.tuples(st.sampled_from(WRITES), st.sampled_from(OWN_TABLES), texts, integers).map(_of_own_table)
own_tables = st.tuples(st.sampled_from(CHANGES), st.sampled_from(OWN_TABLES), texts, integers).map(_of_own_table)

VIEWS = ("said", "topics", 'odd "view" {0}')
TEMPLATES = ("{body}", "Ticket: {body}\nThis is", "{id} {body} {more}", "{share}", "{body", "{{}}", "%s {body} %I")


def _declared(drawn: tuple[str, str, str, Any, dict[str, Any]]) -> Statement:
    view, table, prompt, choices, condition = drawn
    call = sql.SQL("SELECT loracomp.create_answers(%s, %s::regclass, %s, choices => %s, filter => %s::jsonb)")
    name, source = (sql.Identifier("public", each).as_string() for each in (view, table))
    return call, (name, source, prompt, choices, json.dumps(condition))


declared = st.tuples(
    st.sampled_from(VIEWS),
    st.sampled_from(OWN_TABLES),
    st.sampled_from(TEMPLATES),
    st.one_of(st.none(), KINDS["text[]"]),
    st.dictionaries(st.sampled_from(("id", "body", "more")), documents, max_size=1),
).map(_declared)

MADE_AGAIN: LiteralString = """
DROP TABLE IF EXISTS {table} CASCADE;
DROP VIEW IF EXISTS {name};
CREATE TABLE {table} (id integer PRIMARY KEY, body text);
INSERT INTO {table} (id, body) SELECT i, 'text ' || i FROM generate_series(1, 200) AS i;
SELECT loracomp.create_answers({view}, {source}, 'form {{body}}', choices => {choices})
"""


def _made_again(drawn: tuple[str, str, list[str] | None]) -> Statement:
    view, table, choices = drawn
    return sql.SQL(MADE_AGAIN).format(
        table=sql.Identifier("public", table),
        name=sql.Identifier("public", view),
        view=sql.Literal(sql.Identifier("public", view).as_string()),
        source=sql.Literal(sql.Identifier("public", table).as_string()),
        choices=sql.Literal(choices),
    ), ()


made_again = st.tuples(
    st.sampled_from(VIEWS), st.sampled_from(OWN_TABLES), st.sampled_from((None, ["a", "b"], ["\u00a0", "b"]))
).map(_made_again)
"""A table and a declaration of it, whatever became of earlier tables and declarations of these names."""

CORRECTIONS: tuple[LiteralString, ...] = (
    "UPDATE {table} SET correct = {body} WHERE id = {number}",
    "UPDATE {table} SET correct = answer",
    "UPDATE {table} SET correct = 'a' WHERE id % 5 = 1",
    "UPDATE {table} SET correct = 'b' WHERE id < 20",
    "UPDATE {table} SET correct = NULL",
    "UPDATE {table} SET answer = {body}",
    "ALTER VIEW {table} RENAME TO said",
    "DROP VIEW {table}",
)
corrected = st.tuples(st.sampled_from(CORRECTIONS), st.sampled_from(VIEWS), texts, integers).map(_of_own_table)
