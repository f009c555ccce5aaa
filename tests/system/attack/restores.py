"""Dumps of a database in which somebody has planted code, and what restoring them runs.

Eve may create schemas, and is a submitter where the database has loracomp. In a schema of hers, which may have the name
of one of ours, are tables, types and functions of random kinds, whose code writes a file if a superuser runs it. They
are dumped and restored by `loracomp db dump` and `restore`. No such file may appear. Either all is restored, with the
same rows, owners and rights, or nothing, with a message that names what was refused. Afterwards Bob is served.
"""

import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from psycopg import errors, sql

from conftest import create_database, drop_database
from forked import programs
from histories import folder_of_programs
from loracomp.database import connections as db
from loracomp.database import embedded, schema
from rounds import Round
from town import ROLES, Bob, Ground, Town, Walter, Watch, connect, login, rights_of

DUMPS = 8
SCHEMAS = ("eves", "eves", 'Eve"s %s {0}', *["loracomp_parts"] * 2, "bi", "loracomp", "loracomp_restore")
"""The last are names of ours, which are free where the database has no loracomp."""
CODE = """
CREATE FUNCTION {s}.spy() RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        COPY (SELECT 1) TO '{file}';
    END IF;
    RETURN 1;
END
$$;
CREATE FUNCTION {s}.fine(id integer) RETURNS boolean LANGUAGE {language} {volatility} AS {body};
CREATE FUNCTION {s}.number(id integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS
    $$BEGIN PERFORM {s}.fine(id); RETURN id; END$$;
CREATE FUNCTION {s}.same(a integer, b integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
    $$BEGIN RETURN {s}.fine(a) AND a = b; END$$;
CREATE OPERATOR {s}.=== (FUNCTION = {s}.same, LEFTARG = integer, RIGHTARG = integer);
"""
"""Functions of hers. `fine` is called by all that is immutable."""
BODIES = {
    "plpgsql": "$$BEGIN EXECUTE 'SELECT {s}.spy()'; RETURN true; END$$",
    "sql": "$$SELECT {s}.spy() > 0$$",
}
CALLING = (
    "CREATE TABLE {t} (id integer CHECK ({s}.fine(id)))",
    "CREATE TABLE {t} (id integer CHECK (id OPERATOR({s}.===) id))",
    "CREATE TABLE {t} (id integer, CONSTRAINT \"CHECK (NOT VALID\" CHECK ({s}.fine(id)))",
    "CREATE TABLE {t} (id integer, g integer GENERATED ALWAYS AS ({s}.number(1)) STORED)",
    "CREATE TABLE {t} (id integer DEFAULT {s}.number(1))",
    "CREATE DOMAIN {d} AS integer CHECK ({s}.fine(value)); CREATE TABLE {t} (id {d}, many {d}[] DEFAULT '{{1}}')",
    "CREATE DOMAIN {d} AS integer DEFAULT {s}.number(1); CREATE TABLE {t} (id {d})",
    "CREATE TYPE {d} AS (id integer); CREATE DOMAIN {d}_2 AS {d} CHECK ({s}.fine((value).id));"
    " CREATE TABLE {t} (id integer, it {d}_2 DEFAULT '(1)')",
    "CREATE TABLE {t} (id integer); CREATE INDEX ON {t} ({s}.number(id)) WHERE {s}.number(1) = 1",
    "CREATE TABLE {t} (id integer PRIMARY KEY); CREATE INDEX ON {t} (id) WHERE {s}.number(1) = 1;"
    " CREATE TABLE {t}_2 (id integer REFERENCES {t}); ",
    "CREATE TABLE {t} (id integer, EXCLUDE ({s}.number(id) WITH =))",
    "CREATE TABLE {t} (id integer CHECK (query_to_xml('SELECT {s}.spy()', true, true, '') IS NOT NULL))",
    "CREATE VIEW {t}_v AS SELECT {s}.spy();"
    " CREATE TABLE {t} (id integer CHECK (table_to_xml('{t}_v', true, true, '') IS NOT NULL))",
    "CREATE TABLE {t} (id integer) PARTITION BY RANGE ({s}.number(id)); CREATE TABLE {t}_2 PARTITION OF {t} DEFAULT",
    "CREATE TABLE {t} (id integer); CREATE STATISTICS {t}_s ON ({s}.number(id)), id FROM {t}",
    "CREATE TABLE {t} (id integer); CREATE MATERIALIZED VIEW {t}_v AS SELECT {s}.number(id) FROM {t}",
    "CREATE TABLE {t} (id integer); CREATE VIEW {t}_v AS SELECT {s}.number(id) AS n FROM {t};"
    " CREATE RULE r AS ON INSERT TO {t} DO ALSO SELECT {s}.spy()",
    "CREATE TABLE {t} (id integer); ALTER TABLE {t} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
    " CREATE POLICY p ON {t} USING ({s}.fine(id))",
    "CREATE TYPE {d} AS ENUM ('1'); CREATE FUNCTION {s}.to_integer(it {d}) RETURNS integer LANGUAGE plpgsql"
    " IMMUTABLE AS $$BEGIN RETURN {s}.number(1); END$$; CREATE CAST ({d} AS integer) WITH FUNCTION {s}.to_integer AS"
    " IMPLICIT; CREATE TABLE {t} (id integer PRIMARY KEY); CREATE TABLE {t}_2 (it {d} DEFAULT '1' REFERENCES {t});"
    " INSERT INTO {t} VALUES (1); INSERT INTO {t}_2 VALUES ('1')",
)  # fmt: skip
"""Where her functions may be called."""
CONVERTED = (
    "CREATE TYPE {d} AS ENUM ('1'); CREATE FUNCTION {d}_json(it {d}) RETURNS json LANGUAGE plpgsql {rights} AS $$BEGIN"
    " PERFORM pg_catalog.set_config('search_path', 'pg_temp', false); RETURN '1'; END$$;"
    " CREATE CAST ({d} AS json) WITH FUNCTION {d}_json;"
    " CREATE TABLE {t} (id integer, it {d} DEFAULT '1', CHECK ({converted} IS NOT NULL))"
)  # fmt: skip
"""A function of hers that no expression names: it converts to json, which built-in functions look for by themselves."""
BUILT_IN = (
    "CREATE TABLE {t} (id integer CHECK (ts_rewrite('a', 'SELECT ''a''::tsquery, ''b''::tsquery') IS NOT NULL))",
    "CREATE TABLE {t} (id integer CHECK (pg_notify('a', 'b') IS NULL OR id > 0))",
    "CREATE DOMAIN {d} AS integer CHECK (lo_create(0) > 0); CREATE TABLE {t} (id {d})",
    "CREATE DOMAIN {d} AS integer CHECK (set_config('search_path', 'pg_temp', false) <> ''); CREATE TABLE {t} (id {d})",
    "CREATE OPERATOR {s}.~~~ (FUNCTION = pg_catalog.pg_notify, LEFTARG = text, RIGHTARG = text);"
    " CREATE TABLE {t} (id integer CHECK (('a' OPERATOR({s}.~~~) 'b') IS NULL OR id > 0))",
    "CREATE TABLE {t} (id integer); CREATE DOMAIN {d} AS bigint CHECK (value <> '{t}'::regclass::oid::bigint);"
    " ALTER TABLE {t} ADD number {d}",
)  # fmt: skip
"""What built-in functions would do with a superuser's rights. Whoever restores is told so."""
HARMLESS = (
    "CREATE TABLE {t} (id integer PRIMARY KEY CHECK (id > 0), at timestamptz DEFAULT now() CHECK (at <= now()))",
    "CREATE TABLE {t} (id integer, name text COLLATE \"C\" DEFAULT 'a' CHECK (name ~ 'a') NOT NULL)",
    "CREATE TABLE {t} (id integer, twice integer GENERATED ALWAYS AS (2 * id) STORED)",
    "CREATE TABLE {t} (id integer); ALTER TABLE {t} ADD CHECK (id < 100) NOT VALID",
    "CREATE DOMAIN {d} AS integer DEFAULT 7 CHECK (value > 0); CREATE TABLE {t} (id {d}, other {d})",
    "CREATE TABLE {t} (id integer); CREATE INDEX ON {t} (lower(id::text)) WHERE id > 1",
    "CREATE TABLE {t} (id integer) PARTITION BY HASH (abs(id)); CREATE TABLE {t}_2 PARTITION OF {t}"
    " FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    "CREATE TABLE {t} (id integer); CREATE FUNCTION {t}_f() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN RETURN new; END'; CREATE TRIGGER g BEFORE INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION {t}_f()",
    "CREATE TABLE {t} (id integer PRIMARY KEY, parent integer REFERENCES {t}, it daterange DEFAULT 'empty')",
    "CREATE TABLE {t} (id integer GENERATED BY DEFAULT AS IDENTITY, body text DEFAULT E'a\\n\\\\.\\n\\tb''\"');"
    " COMMENT ON TABLE {t} IS E'x\\n\\\\connect postgres\\n\\\\! true';"
    " GRANT SELECT ON {t} TO PUBLIC; ALTER DEFAULT PRIVILEGES IN SCHEMA {s} GRANT ALL ON TABLES TO PUBLIC",
    "CREATE TYPE {d} AS RANGE (SUBTYPE = integer); CREATE TABLE {t} (id integer, it {d} DEFAULT '[1,2)');"
    " CREATE PROCEDURE {t}_p() LANGUAGE plpgsql AS 'BEGIN END'; CREATE AGGREGATE {t}_a (integer) (SFUNC = int4pl,"
    " STYPE = integer); CREATE MATERIALIZED VIEW {t}_v AS SELECT {t}_a(id) AS n FROM {t}",
    "CREATE TABLE {t} (id integer PRIMARY KEY, body text DEFAULT 'a'); CREATE VIEW {t}_v AS SELECT * FROM {t};"
    " ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON {t} USING (id = 2)",
)  # fmt: skip
DECLARE = "SELECT loracomp.create_answers('{t}_said', '{t}', 'Is it {{id}}?', choices => '{{a,b}}')"
REASONS = re.compile(
    'belongs to .*, who is no superuser|a constraint would check restored data|schema "loracomp_restore" already exists'
)
LEFT = """
SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$'
UNION ALL SELECT evtname FROM pg_event_trigger
"""
RIGHTS = """
SELECT concat_ws(' ', 'role', rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolconfig)
FROM pg_roles WHERE rolname ~ %(ours)s
UNION ALL SELECT concat_ws(' ', 'member', roleid::regrole, member::regrole, admin_option) FROM pg_auth_members
WHERE member::regrole::text ~ %(ours)s
UNION ALL SELECT concat_ws(' ', 'default', defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, a.*)
FROM pg_default_acl CROSS JOIN aclexplode(defaclacl) AS a
UNION ALL SELECT concat_ws(' ', o.name, o.owner::regrole, a.grantee::regrole, a.privilege_type, a.is_grantable) FROM (
    SELECT 'schema ' || nspname, oid, nspowner, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
    UNION ALL SELECT 'relation ' || relname, relnamespace, relowner,
        coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) FROM pg_class
    UNION ALL SELECT concat_ws(' ', 'function', proname, pg_get_function_identity_arguments(oid), prosecdef, proconfig),
        pronamespace, proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
) AS o (name, schema, owner, acl) CROSS JOIN aclexplode(o.acl) AS a
WHERE o.schema::regnamespace::text !~ '^pg_|^information_schema$'
"""
TABLES = """
SELECT relnamespace::regnamespace::text, oid::regclass::text FROM pg_class
WHERE relkind = 'r' AND relnamespace::regnamespace::text !~ '^pg_|^information_schema$' ORDER BY 2
"""
UNPLANTED = (errors.FeatureNotSupported, errors.UndefinedTable, errors.UniqueViolation)
"""For example because the server has no xml."""
FEED = "SELECT key, status, cursor FROM loracomp.answers_since('bobs_answers', %s, 1000)"
_numbers = count()


@dataclass
class Planted:
    """What eve has put into the database that is dumped."""

    schema: str
    statements: list[str] = field(default_factory=list)
    is_refused: bool = False


def planted(draw: random.Random, schema: str, file: Path, has_ours: bool) -> Planted:
    """Statements of eve's: some tables, of which some call her functions, or built-in ones that do something."""
    kinds = draw.choice((HARMLESS, (*HARMLESS, *BUILT_IN), (*HARMLESS, *CALLING), CALLING, (*HARMLESS[:2], CONVERTED)))
    chosen = draw.choices(kinds, k=draw.randint(1, 3))
    language, volatility = draw.choice([*BODIES]), draw.choice(("IMMUTABLE", "IMMUTABLE", "STABLE", "VOLATILE"))
    s = sql.Identifier(schema).as_string(None)
    made = Planted(schema, is_refused=schema == "loracomp_restore" or any(each not in HARMLESS for each in chosen))
    if {*chosen} & {*CALLING}:
        names = {"s": s, "file": file, "language": language, "volatility": volatility}
        made.statements.append(CODE.format(**names, body=BODIES[language].format(s=s)))
    for number, text in enumerate(chosen):
        t, d = f"{s}.t{number}", f"{s}.d{number}"
        converted = draw.choice(("to_jsonb(it)", "JSON_ARRAY(it)", "json_build_array(it)", "row_to_json(row(it))"))
        rights = draw.choice(("SECURITY DEFINER", "SECURITY DEFINER", "IMMUTABLE"))
        made.statements.append(text.format(s=s, t=t, d=d, converted=converted, rights=rights))
        made.statements.append(f"INSERT INTO {t} (id) VALUES (1)")
        if has_ours and "PRIMARY KEY" in text and text in HARMLESS:
            made.statements.append(DECLARE.format(t=t))
    return made


@dataclass
class Restore:
    """A dump of eve's, and what comes of restoring it."""

    ground: Ground
    draw: random.Random
    folder: Path
    counts: Counter[str]
    servers: ExitStack
    failures: list[str] = field(default_factory=list)

    def run(self, name: str) -> list[str]:
        """Dump and restore a database of eve's once; returns what is wrong."""
        has_ours, file, dump = self.draw.random() < 0.2, self.folder / "ran", str(self.folder / "it's.dump")
        schema = self.draw.choice(SCHEMAS[:3] if has_ours else SCHEMAS)
        made = planted(self.draw, schema, file, has_ours)
        url = create_database(self.ground.server, name, self.ground.prepared if has_ours else "template0")
        cursor = self.served(url) if has_ours else None
        with psycopg.connect(url, autocommit=True) as owner:
            create = sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}")
            owner.execute(create.format(sql.Identifier(schema), sql.Identifier(login("eve"))))
            owner.execute(f"SET SESSION AUTHORIZATION {login('eve')}".encode())
            for statement in made.statements:
                with suppress(*UNPLANTED):
                    owner.execute(statement.encode())
        done = loracomp(url, "dump", dump)
        assert done.returncode == 0, done.stderr
        self.expect(not file.exists(), "the dump has run a function of a user's as a superuser")
        target = create_database(self.ground.server, f"{name}_target")
        done = loracomp(target, "restore", dump)
        self.expect(not file.exists(), "the restore has run a function of a user's as a superuser")
        is_refused = done.returncode != 0
        self.expect(is_refused == made.is_refused, f"the restore ends with {done.returncode}: {done.stderr[-500:]}")
        if is_refused:
            self.expect(REASONS.search(done.stderr), f"the message gives no reason: {done.stderr[-500:]}")
            left = {each for (each,) in rows_of(target, LEFT)}
            self.expect(not left, f"after a restore that was refused the database has {left}")
        else:
            for what, before, after in ((each, each(url), each(target)) for each in (rights, contents)):
                self.expect(before == after, f"{what.__name__} differ: {sorted(map(str, before ^ after))[:6]}")
            if has_ours and not self.failures:
                cursor = self.served(target, cursor)
            if has_ours and not self.failures and self.draw.random() < 0.5:
                self.goes_on_elsewhere(target, cursor)
        self.counts["refused" if is_refused else "restored"] += 1
        return [*self.failures, f"schema {schema}", *made.statements] if self.failures else []

    def goes_on_elsewhere(self, url: str, cursor: str | None) -> None:
        """Restored in a new server, and from there in another one, where tables may get the same oids again."""
        dump = str(self.folder / "moved.dump")
        for _ in range(2):
            done = loracomp(url, "dump", dump)
            assert done.returncode == 0, done.stderr
            server = self.servers.enter_context(new_server())
            schema.initialize(create_database(server, "with_roles"))
            with psycopg.connect(server, autocommit=True) as connection:
                for name, role in (*ROLES.items(), ("eve", "submitter")):
                    connection.execute(f"CREATE ROLE {login(name)} LOGIN IN ROLE loracomp_{role}".encode())
            url = create_database(server, "moved")
            done = loracomp(url, "restore", dump)
            self.expect(done.returncode == 0, f"what was restored once is not restored again: {done.stderr[-500:]}")
            if self.failures:
                return
            cursor = self.served(url, cursor)
        self.counts["moved"] += 1

    def expect(self, it: object, otherwise: str) -> None:
        if not it:
            self.failures.append(otherwise)

    def served(self, url: str, since: str | None = None) -> str:
        """Let a worker serve Bob; returns where his feed has come to, which goes on from where it was."""
        with ExitStack() as stack:
            with db.connect(url, vectors=False) as owner:
                rights_before = rights_of(owner)
            watch = Watch()
            stack.enter_context(watch.open())
            walter = Walter(self.ground, url)
            stack.callback(walter.close)
            bob = Bob(url)
            stack.callback(bob.close)
            with connect(url, "bob") as reader:
                (numbered,) = reader.execute("SELECT coalesce(max(id), 0) AS n FROM bobs_notes")
                bob.number = numbered["n"]
                town = Town(url, bob, walter, watch, rights_before)
                self.failures += [*town.is_served(), *town.is_served(), *town.is_served()]
                reader.execute("SELECT * FROM loracomp.rows_to_review('bobs_answers', 10)")
                told = reader.execute(FEED, [since]).fetchall()
            new = {str(numbered["n"] + number) for number in (1, 2, 3)}
            self.expect(new <= {row["key"][0] for row in told}, f"the feed since {since} lacks some of {new}: {told}")
            return str(told[-1]["cursor"]) if told else ""


@contextmanager
def new_server() -> Iterator[str]:
    """URL of an embedded server without databases of ours."""
    with TemporaryDirectory(prefix="loracomp-attack-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "postgres"
        try:
            yield embedded.start(data)
        finally:
            embedded.stop(data)


def loracomp(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LORACOMP_DATABASE_URL": url}
    command = [programs() / "loracomp", "db", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def rows_of(url: str, query: str, values: dict[str, str] | None = None) -> list[tuple[str, ...]]:
    with psycopg.connect(url, autocommit=True) as owner:
        return owner.execute(query.encode(), values).fetchall()


def rights(url: str) -> set[str]:
    """Who owns and may do what, and with whose rights functions run."""
    return {line for (line,) in rows_of(url, RIGHTS, {"ours": f"_of_town_{os.getpid()}$"})}


def contents(url: str) -> set[tuple[str, ...]]:
    """The rows of each table, as a checksum of their texts."""
    with psycopg.connect(url, autocommit=True) as owner:
        return {
            (table, *map(str, found))
            for _, table in owner.execute(TABLES.encode()).fetchall()
            for found in owner.execute(
                f"SELECT count(*), md5(string_agg(t::text, '' ORDER BY t::text COLLATE \"C\")) FROM {table} t".encode()
            )
        }


@contextmanager
def eve(ground: Ground) -> Iterator[None]:
    """A login that may plant something, as long as this context lasts."""
    assert ground.people
    with psycopg.connect(ground.server, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {login('eve')} LOGIN IN ROLE loracomp_submitter".encode())
        try:
            yield
        finally:
            connection.execute(f"DROP ROLE {login('eve')}".encode())


def restores(ground: Ground, seed: int, size: float = 1) -> Round:
    """A few dumps, one after the other."""
    made, draw = Round(Counter(rounds=1)), random.Random(seed)
    with db.connect(ground.server, vectors=False) as owner:
        if folder_of_programs(owner) is None:
            return made
    with eve(ground):
        for _ in range(round(size * DUMPS)):
            name = f"dumped_{os.getpid()}_{next(_numbers)}"
            with TemporaryDirectory() as folder, ExitStack() as servers:
                Path(folder).chmod(0o777)  # so that the server can write to it, whoever runs it
                try:
                    made.failures += Restore(ground, draw, Path(folder), made.counts, servers).run(name)
                finally:
                    for each in (name, f"{name}_target"):
                        drop_database(ground.server, each)
            if made.failures:
                break
    return made
