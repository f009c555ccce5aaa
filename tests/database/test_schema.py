"""sql/ objects dropped and applied again, whoever stands in the way, calls meanwhile, or does the same at once."""

import multiprocessing
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import psycopg
import pytest
from alembic.script import ScriptDirectory
from psycopg import sql

from conftest import create_database, drop_database, place_for_a_server, url_of
from job_data import add_base_model
from loracomp.database import connections as db
from loracomp.database import embedded, revision, schema, script, tables
from loracomp.errors import DatabaseUnavailableError, LoracompError, RefusedError, SchemaMismatchError

SNAPSHOT = """
SELECT format('%s %s %s', oid::regprocedure, pg_get_functiondef(oid), obj_description(oid, 'pg_proc')) AS object,
    proacl::text AS acl
FROM pg_proc WHERE pronamespace::regnamespace::text IN ('loracomp', 'bi') AND prokind <> 'a'
UNION ALL
SELECT format('%s %s %s %s', oid::regclass, CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END, reloptions,
    obj_description(oid, 'pg_class')) || relrowsecurity, relacl::text
FROM pg_class WHERE relnamespace::regnamespace::text IN ('loracomp', 'bi') AND relkind IN ('r', 'p', 'v')
UNION ALL
SELECT format('%s.%s', attrelid::regclass, attname), attacl::text
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relnamespace::regnamespace::text IN ('loracomp', 'bi') AND relkind IN ('r', 'p', 'v') AND attacl IS NOT NULL
UNION ALL
SELECT pg_get_triggerdef(oid), NULL FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT to_jsonb(p)::text, NULL FROM pg_policies AS p
UNION ALL
SELECT format('schema %s', nspname), nspacl::text FROM pg_namespace WHERE nspname IN ('loracomp', 'bi')
"""

CHECKSUM_OF_ANOTHER_RELEASE = (
    "UPDATE loracomp.sql_object SET checksum = 'other' WHERE path = '40_routing/30_route_jobs.sql'"
)


def snapshot(url: str, objects: str = SNAPSHOT) -> set[tuple[str, tuple[str, ...]]]:
    """Every object with its definition and what is granted on it."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(objects).fetchall()
    return {(row[0], tuple(sorted((row[1] or "").strip("{}").split(",")))) for row in rows}


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def apply_again(url: str) -> list[str]:
    """What an upgrade from a release with different files does."""
    run(url, CHECKSUM_OF_ANOTHER_RELEASE)
    return schema.initialize(url)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with a copy of migrations/ and sql/ that stands for another release's."""
    for name in ("migrations", "sql"):
        shutil.copytree(revision.packed_folder(name), tmp_path / name)
    for module in (revision, script):
        monkeypatch.setattr(module, "packed_folder", lambda name: tmp_path / name)
    return tmp_path


def test_a_dump_that_is_restored_is_the_same_database(
    database: str, empty_database: str, tmp_path: Path, programs: Path
) -> None:
    subprocess.run([programs / "pg_dump", "-Fc", "-f", tmp_path / "dump", database], check=True)
    subprocess.run([programs / "pg_restore", "--exit-on-error", "-d", empty_database, tmp_path / "dump"], check=True)
    assert snapshot(empty_database) == snapshot(database)
    assert schema.initialize(empty_database) == []


GRANTS_TO_OTHERS = """
SELECT format('%s %s %s', o.kind, o.name, g.*), NULL
FROM (
    SELECT 'relation' AS kind, oid::regclass::text AS name, relowner AS owner, relacl AS acl, relnamespace AS schema
    FROM pg_class
    UNION ALL SELECT 'function', oid::regprocedure::text, proowner, proacl, pronamespace FROM pg_proc
    UNION ALL SELECT 'schema', nspname, nspowner, nspacl, oid FROM pg_namespace
) AS o
JOIN pg_namespace AS n ON n.oid = o.schema
CROSS JOIN LATERAL aclexplode(o.acl) AS g
WHERE (n.nspname IN ('loracomp', 'bi') OR o.name = 'loracomp_parts') AND g.grantee <> o.owner
"""


def test_default_privileges_of_the_installer_open_nothing(database: str, empty_database: str) -> None:
    run(
        empty_database,
        *(
            f"ALTER DEFAULT PRIVILEGES GRANT {privilege} TO PUBLIC, pg_monitor"
            for privilege in ("ALL ON TABLES", "ALL ON SEQUENCES", "ALL ON ROUTINES", "USAGE ON SCHEMAS")
        ),
    )
    schema.initialize(empty_database)
    assert snapshot(empty_database, GRANTS_TO_OTHERS) == snapshot(database, GRANTS_TO_OTHERS)


def test_a_second_initialize_does_nothing(database: str) -> None:
    before = snapshot(database)
    assert schema.initialize(database) == []
    assert snapshot(database) == before


def test_applying_again_makes_the_same_objects_with_the_same_rights(database: str) -> None:
    before = snapshot(database)
    assert apply_again(database) == ["sql/ applied again: 40_routing/30_route_jobs.sql"]
    assert snapshot(database) == before


def test_dropping_leaves_what_the_migrations_made_and_nothing_of_sql(database: str) -> None:
    with schema.installing(database) as connection:
        for step in script.drop():
            connection.execute(step.sql.encode())
    left = {(name.split()[0], acl) for name, acl in snapshot(database) if not name.startswith("CREATE")}
    made = {table.fullname for table in tables.metadata.sorted_tables}
    helpers = {f"loracomp.texts_{name}(text[])" for name in ("are_distinct", "are_not_blank", "length")}
    helpers |= {"loracomp.white_space()", "loracomp.is_blank(text)"}
    assert {name for name, _ in left} == {
        *made,
        *helpers,
        "loracomp.alembic_version",
        "schema",
    }
    assert [acl for _, acl in left if "loracomp_" in " ".join(acl)] == []


def test_changed_files_are_applied_and_what_a_file_made_goes_with_it(database: str, packed: Path) -> None:
    changed, removed = packed / "sql/80_bi/30_accuracy.sql", packed / "sql/80_bi/41_queue_health.sql"
    changed.write_text(changed.read_text() + "COMMENT ON VIEW bi.accuracy_by_day IS 'Another.';\n")
    removed.unlink()
    assert schema.changed_files(database) == ["80_bi/30_accuracy.sql", "80_bi/41_queue_health.sql"]
    schema.initialize(database)
    assert schema.changed_files(database) == []
    with db.connect(database) as connection:
        row = connection.execute(
            "SELECT obj_description('bi.accuracy_by_day'::regclass) AS comment, to_regclass('bi.queue_health') AS gone"
        ).fetchone()
    assert row == {"comment": "Another.", "gone": None}


def test_whatever_a_file_makes_is_dropped_again(database: str, packed: Path) -> None:
    before = snapshot(database)
    added = packed / "sql/95_added.sql"
    added.write_text("""
        CREATE FUNCTION loracomp.named(given text[]) RETURNS bigint LANGUAGE sql RETURN cardinality(given);
        CREATE FUNCTION loracomp.named(given text) RETURNS bigint LANGUAGE sql RETURN loracomp.named(ARRAY[given]);
        CREATE VIEW bi."a view" AS SELECT loracomp.named(name) FROM loracomp.policy;
        CREATE MATERIALIZED VIEW loracomp.kept AS TABLE bi."a view";
        CREATE INDEX ON loracomp.kept (named);
        CREATE FUNCTION loracomp.quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER quiet AFTER INSERT ON loracomp.policy EXECUTE FUNCTION loracomp.quiet();
        ALTER TABLE loracomp.policy ENABLE ROW LEVEL SECURITY;
        CREATE POLICY everybody ON loracomp.policy USING (loracomp.named(name) > 0);
        GRANT SELECT (k), UPDATE (k) ON loracomp.policy TO loracomp_analyst;
    """)
    schema.initialize(database)
    assert len(snapshot(database) - before) > 7
    added.unlink()
    schema.initialize(database)
    assert snapshot(database) == before


def test_a_view_of_a_users_among_ours_is_not_taken_for_ours(database: str) -> None:
    run(database, "CREATE VIEW bi.theirs AS SELECT 1 AS one")
    apply_again(database)
    run(database, "DROP VIEW bi.theirs")


def test_a_file_that_fails_changes_nothing_and_is_named(database: str, packed: Path) -> None:
    before = snapshot(database)
    (packed / "sql/90_grants/99_broken.sql").write_text("SELECT no_such_function();\n")
    with pytest.raises(LoracompError, match="no_such_function") as caught:
        schema.initialize(database)
    assert caught.value.__cause__.__notes__ == ["in sql/90_grants/99_broken.sql"]  # type: ignore[union-attr]
    assert snapshot(database) == before


@pytest.mark.parametrize(
    ("make", "named", "drop"),
    [
        (
            "CREATE MATERIALIZED VIEW backlog AS SELECT count(*) FROM loracomp.job_result",
            "materialized view public.backlog depends on view job_result",
            "DROP MATERIALIZED VIEW backlog",
        ),
        (
            "CREATE FUNCTION backlog() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM loracomp.job_result; END",
            r"function public\.backlog\(\) depends on view job_result",
            "DROP FUNCTION backlog",
        ),
        (
            "CREATE TABLE kept (name text, short text GENERATED ALWAYS AS (loracomp.shorten(name, 9)) STORED)",
            "column short of table public.kept depends on function shorten",
            "DROP TABLE kept",
        ),
        (
            "CREATE TABLE kept (name text);CREATE POLICY short ON kept USING (loracomp.shorten(name, 9) = name)",
            "policy short on table public.kept depends on function shorten",
            "DROP TABLE kept",
        ),
        (
            "CREATE TABLE kept (name text);"
            "CREATE TRIGGER hint AFTER INSERT ON kept EXECUTE FUNCTION loracomp.hint_job()",
            "trigger hint on table public.kept depends on function hint_job",
            "DROP TABLE kept",
        ),
        (
            "CREATE VIEW inbox AS SELECT 1 AS one;"
            "CREATE RULE ask AS ON INSERT TO inbox DO INSTEAD SELECT loracomp.submit_job('x')",
            "rule ask on view public.inbox depends on function submit_job",
            "DROP VIEW inbox",
        ),
    ],
)
def test_a_users_object_in_the_way_is_named_and_nothing_is_lost(
    database: str, make: str, named: str, drop: str
) -> None:
    run(database, make)
    before = snapshot(database)
    with pytest.raises(RefusedError, match=f"prevents this: .*{named}.*Drop that object, run the command again"):
        apply_again(database)
    assert snapshot(database) == before
    run(database, drop)
    assert schema.initialize(database) != []


@pytest.fixture
def readers(database: str) -> Iterator[str]:
    """A role of the user's own, whose name needs quotes."""
    run(database, 'CREATE ROLE "the readers"')
    yield '"the readers"'
    run(database, 'DROP OWNED BY "the readers"', 'DROP ROLE "the readers"')


VIEWS_OF_A_USERS = """
CREATE SCHEMA "the shop";
SET search_path = "the shop", loracomp;
CREATE VIEW tickets WITH (security_barrier, security_invoker = true) AS
    SELECT job_id, status, output COLLATE "C" AS answer, tags ->> 'ticket' AS "the ticket",
        shorten(prompt, 9)::varchar(9) AS short
    FROM job_result AS r WHERE NOT EXISTS (SELECT FROM job_result AS newer WHERE newer.job_id > r.job_id);
ALTER VIEW tickets RENAME COLUMN short TO "in short";
ALTER VIEW tickets ALTER COLUMN status SET DEFAULT 'queued';
COMMENT ON VIEW tickets IS 'The newest.';
COMMENT ON COLUMN tickets."the ticket" IS 'Of the shop.';
CREATE VIEW wide AS SELECT policy, k FROM bi.dim_policy WHERE k > 5 WITH CASCADED CHECK OPTION;
CREATE VIEW narrow AS SELECT wilson.* FROM bi.wilson_interval(3, 4) AS wilson;
CREATE VIEW joined AS SELECT t.*, r.prompt, r AS whole FROM tickets AS t JOIN job AS r ON r.id = t.job_id, narrow;
INSERT INTO job (prompt) VALUES ('Where is my parcel?');
CREATE MATERIALIZED VIEW cached AS SELECT * FROM joined;
CREATE INDEX ON cached (status);
CREATE FUNCTION count_joined() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM joined; END;
CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER forget INSTEAD OF UPDATE ON tickets FOR EACH ROW EXECUTE FUNCTION forget();
CREATE RULE keep AS ON DELETE TO tickets DO INSTEAD NOTHING;
CREATE VIEW bi.of_the_shops AS SELECT n FROM bi.accuracy_by_day;
GRANT SELECT ON bi.of_the_shops TO loracomp_analyst, loracomp_admin;
ALTER VIEW tickets OWNER TO "the readers";
GRANT SELECT ON tickets TO loracomp_analyst WITH GRANT OPTION;
GRANT SELECT (status), UPDATE (status) ON tickets TO loracomp_submitter;
REVOKE DELETE ON tickets FROM "the readers";
"""

OF_A_USERS = """
SELECT format(
    '%s %s %s %s %s %s', c.oid, c.oid::regclass, relowner::regrole, reloptions,
    CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END, obj_description(c.oid, 'pg_class')
) AS object, relacl::text AS acl
FROM pg_class AS c WHERE relnamespace = '"the shop"'::regnamespace OR c.oid = to_regclass('bi.of_the_shops')
UNION ALL
SELECT format(
    '%s.%s %s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attcollation::regcollation,
    pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
), attacl::text
FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
WHERE relnamespace = '"the shop"'::regnamespace
UNION ALL
SELECT definition, NULL FROM pg_rules
UNION ALL
SELECT to_jsonb(cached)::text, NULL FROM "the shop".cached
"""


@pytest.fixture
def shop(database: str, readers: str) -> Iterator[str]:
    """URL of a database in which a user has views over ours, which others of the user's objects read."""
    with db.connect(database) as connection:
        add_base_model(connection)
    run(database, VIEWS_OF_A_USERS)
    yield database
    run(database, 'DROP SCHEMA "the shop" CASCADE')


def test_views_of_a_users_outlast_an_upgrade(shop: str) -> None:
    before = snapshot(shop, OF_A_USERS), snapshot(shop)
    assert "Where is my parcel?" in str(before)
    apply_again(shop)
    assert (snapshot(shop, OF_A_USERS), snapshot(shop)) == before
    run(shop, 'REFRESH MATERIALIZED VIEW "the shop".cached', 'UPDATE "the shop".wide SET k = 6')
    with pytest.raises(psycopg.errors.WithCheckOptionViolation):
        run(shop, 'UPDATE "the shop".wide SET k = 5')


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("ALTER VIEW loracomp.job_result RENAME output TO reply", 'column "output" does not exist'),
        ("DROP FUNCTION bi.wilson_interval CASCADE", r"function bi\.wilson_interval.* does not exist"),
        (
            "DROP FUNCTION bi.wilson_interval CASCADE;"
            "CREATE FUNCTION bi.wilson_interval(bigint, bigint, OUT low real, OUT high real) RETURN (1::real, 1::real)",
            'cannot change data type of view column "low" from double precision to real',
        ),
    ],
)
def test_a_view_of_a_users_that_no_longer_fits_is_named(shop: str, packed: Path, change: str, reason: str) -> None:
    before = snapshot(shop, OF_A_USERS), snapshot(shop)
    (packed / "sql/99_changed.sql").write_text(f"{change};\n")
    with pytest.raises(
        RefusedError, match=rf'^your view "the shop"\..* does not fit this release \({reason}\): drop the view'
    ):
        schema.initialize(shop)
    assert (snapshot(shop, OF_A_USERS), snapshot(shop)) == before


def test_grants_to_users_roles_outlast_an_upgrade(database: str, readers: str) -> None:
    run(
        database,
        f"GRANT SELECT ON bi.accuracy_by_day TO {readers} WITH GRANT OPTION",
        f"GRANT SELECT (job_id, status) ON loracomp.job_result TO {readers}",
        f"GRANT EXECUTE ON FUNCTION loracomp.explain_job TO {readers}",
    )
    before = snapshot(database)
    apply_again(database)
    assert snapshot(database) == before


def test_a_grant_whose_object_is_gone_is_reported(
    database: str, readers: str, packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(database, f"GRANT SELECT ON bi.queue_health TO {readers}")
    (packed / "sql/80_bi/41_queue_health.sql").unlink()
    schema.initialize(database)
    assert f"not done again: GRANT SELECT ON TABLE bi.queue_health TO {readers}" in caplog.text


HEAD = revision.head()
NEXT = f"""
from alembic import op
revision, down_revision = "9998", "{HEAD}"
def upgrade():
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN output TYPE varchar")
"""


def test_a_migration_changes_a_column_that_views_read(database: str, packed: Path) -> None:
    before = {name.split()[0] for name, _ in snapshot(database)}
    (packed / "migrations/versions/9998_next.py").write_text(NEXT)
    with pytest.raises(SchemaMismatchError, match=rf"\({HEAD}\) is older than this release: run `loracomp init`"):
        revision.check_revision(database)
    assert schema.initialize(database) == [f"schema {HEAD} -> 9998", "sql/ applied"]
    revision.check_revision(database)
    assert {name.split()[0] for name, _ in snapshot(database)} == before
    output = "SELECT atttypid::regtype::text FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'output'"
    with psycopg.connect(database) as connection:
        assert connection.execute(output, ["loracomp.prediction"]).fetchone() == ("character varying",)


def test_a_view_of_a_users_that_forbids_a_migration_is_named(database: str, packed: Path) -> None:
    (packed / "migrations/versions/9998_next.py").write_text(NEXT)
    run(database, "CREATE VIEW outputs AS SELECT output FROM loracomp.prediction")
    before = snapshot(database)
    with pytest.raises(RefusedError, match=r"prevents this: rule _RETURN on view public\.outputs depends on column"):
        schema.initialize(database)
    assert snapshot(database) == before


def test_revisions_are_known_by_the_names_of_their_files() -> None:
    chain = ScriptDirectory.from_config(script.alembic_config()).walk_revisions()
    assert revision.known_revisions() == [step.revision for step in chain][::-1]


def test_a_newer_schema_is_refused(database: str) -> None:
    run(database, "UPDATE loracomp.alembic_version SET version_num = '9999'")
    before = snapshot(database)
    for function in (schema.initialize, revision.check_revision):
        with pytest.raises(SchemaMismatchError, match=r"schema \(9999\) is newer than this release knows: upgrade"):
            function(database)
    assert snapshot(database) == before


def test_workers_serve_schemas_that_are_a_minor_version_apart(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "RELEASES", {"1.0": HEAD, "1.1": "9998"})
    revision.check_worker(database)
    monkeypatch.setattr(revision, "RELEASES", {"1.0": HEAD, "1.1": "9998", "1.2": "9999"})
    with pytest.raises(
        SchemaMismatchError, match=rf"\({HEAD}\) is older than workers of loracomp .*: run `loracomp init`"
    ):
        revision.check_worker(database)
    run(database, "UPDATE loracomp.alembic_version SET version_num = '9999'")
    monkeypatch.undo()
    revision.check_worker(database)
    run(database, "CREATE OR REPLACE FUNCTION loracomp.oldest_worker() RETURNS text LANGUAGE sql RETURN '9.9'")
    with pytest.raises(
        SchemaMismatchError, match=r"\(9999\) is newer than workers of .*: start workers of its release"
    ):
        revision.check_worker(database)


def test_an_empty_database_is_told_to_run_init(empty_database: str) -> None:
    with pytest.raises(SchemaMismatchError, match="loracomp is not installed in this database: run `loracomp init`"):
        revision.check_worker(empty_database)
    with pytest.raises(SchemaMismatchError, match="loracomp is not installed in this database: run `loracomp init`"):
        revision.check_revision(empty_database)


@contextmanager
def working(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of their own: alembic keeps its context in globals."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_several_installers_at_once_do_the_work_once(server: str, database: str, empty_database: str) -> None:
    with working(3) as pool:
        done = list(pool.map(schema.initialize, [empty_database] * 3))
        assert sorted(map(len, done)) == [0, 0, 2]
        for _ in range(4):
            run(database, CHECKSUM_OF_ANOTHER_RELEASE)
            done = list(pool.map(schema.initialize, [database] * 3))
            assert sorted(map(len, done)) == [0, 0, 1]
    assert snapshot(empty_database) == snapshot(database)


@pytest.fixture(scope="module")
def new_server() -> Iterator[str]:
    """A server of its own, without loracomp's roles: they are the cluster's."""
    with place_for_a_server() as folder:
        run(
            embedded.start(folder),
            "ALTER SYSTEM SET fsync = off",
            "ALTER SYSTEM SET max_prepared_transactions = 2",
        )
        embedded.stop(folder)
        yield embedded.start(folder)
        embedded.stop(folder)


DROP_ROLES = f"DROP ROLE IF EXISTS {', '.join(script.ROLES)}"


def make_roles(url: str) -> None:
    run(url, script.roles().sql)


def test_databases_of_a_new_server_at_once(new_server: str) -> None:
    names = ["one", "two", "three"]
    urls = [create_database(new_server, name) for name in names]
    with working(3) as pool:
        assert [len(done) for done in pool.map(schema.initialize, urls)] == [2, 2, 2]
        for name in names:
            drop_database(new_server, name)
        for _ in range(10):
            run(new_server, DROP_ROLES)
            list(pool.map(make_roles, [new_server] * 3))
    run(new_server, DROP_ROLES)


@pytest.fixture
def owned(new_server: str) -> Iterator[str]:
    """URL of a database, without pgvector, whose owner may make neither roles nor extensions; as that owner."""
    create_database(new_server, "owned")
    run(new_server, DROP_ROLES, "CREATE ROLE owner LOGIN", "ALTER DATABASE owned OWNER TO owner")
    yield url_of(new_server, "owned", user="owner")
    drop_database(new_server, "owned")
    run(new_server, "DROP ROLE owner", DROP_ROLES)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused_in_a_sentence(server: str, encoding: str) -> None:
    run(server, f"CREATE DATABASE western TEMPLATE template0 ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C'")
    try:
        with pytest.raises(RefusedError, match=f"database western has the encoding {encoding}, .* ENCODING 'UTF8'"):
            schema.initialize(url_of(server, "western"))
    finally:
        drop_database(server, "western")


def test_an_installer_who_may_not_make_roles_or_extensions_is_told_who_can(new_server: str, owned: str) -> None:
    with pytest.raises(RefusedError, match="may not create roles: let an administrator run CREATE ROLE for loracomp_"):
        schema.initialize(owned)
    make_roles(new_server)
    with pytest.raises(
        DatabaseUnavailableError, match=r"no pgvector .*permission denied.*superuser run CREATE EXTENSION"
    ):
        schema.initialize(owned)
    with pytest.raises(DatabaseUnavailableError, match="pgvector is not installed in this database"):
        db.connect(owned)
    superuser = url_of(new_server, "owned")
    run(superuser, "CREATE SCHEMA extensions", "CREATE EXTENSION vector SCHEMA extensions")
    with pytest.raises(
        DatabaseUnavailableError, match="in schema extensions and must be in public: run ALTER EXTENSION"
    ):
        schema.initialize(owned)
    run(superuser, "ALTER EXTENSION vector SET SCHEMA public")
    assert len(schema.initialize(owned)) == 2
    assert len(apply_again(owned)) == 1
    run(superuser, "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    with pytest.raises(DatabaseUnavailableError, match=r"pgvector 0\.7\.4 is too old"):
        schema.initialize(owned)


@pytest.fixture
def owned_by_nobody(new_server: str) -> Iterator[str]:
    """URL of a database with pgvector whose owner can't log in; as `migrator`, who acts as that owner."""
    create_database(new_server, "owned")
    run(
        new_server,
        "CREATE ROLE lora_owner NOLOGIN",
        "CREATE ROLE migrator LOGIN NOINHERIT IN ROLE lora_owner",
        "ALTER ROLE migrator SET role = 'lora_owner'",
        "ALTER DATABASE owned OWNER TO lora_owner",
    )
    make_roles(new_server)
    run(url_of(new_server, "owned"), "CREATE EXTENSION vector")
    yield url_of(new_server, "owned", user="migrator")
    drop_database(new_server, "owned")
    run(new_server, "DROP ROLE migrator", "DROP ROLE lora_owner", DROP_ROLES)


def test_an_owner_that_nobody_logs_in_as(owned_by_nobody: str) -> None:
    assert len(schema.initialize(owned_by_nobody)) == 2
    assert len(apply_again(owned_by_nobody)) == 1
    with db.connect(owned_by_nobody) as migrator:
        owners = (
            "SELECT relowner::regrole::text AS owner FROM pg_class WHERE relnamespace IN ('loracomp'::regnamespace,"
            " 'bi'::regnamespace) UNION SELECT proowner::regrole::text FROM pg_proc WHERE"
            " pronamespace = 'loracomp'::regnamespace"
        )
        assert migrator.execute(owners).fetchall() == [{"owner": "lora_owner"}]
        migrator.execute("UPDATE loracomp.policy SET k = 7 WHERE name = 'default'")
        event = migrator.execute("SELECT actor, login FROM loracomp.audit_event ORDER BY id DESC LIMIT 1").fetchone()
        assert event == {"actor": "lora_owner", "login": "migrator"}


def test_a_view_that_the_installer_may_not_replace_is_named(new_server: str, owned_by_nobody: str) -> None:
    schema.initialize(owned_by_nobody)
    superuser = url_of(new_server, "owned")
    run(
        superuser,
        "CREATE SCHEMA theirs",
        "CREATE VIEW theirs.backlog AS SELECT count(*) FROM loracomp.job_result",
    )
    with pytest.raises(RefusedError, match=r"prevents this: view theirs\.backlog depends on view job_result"):
        apply_again(owned_by_nobody)
    run(superuser, "ALTER SCHEMA theirs OWNER TO lora_owner", "ALTER VIEW theirs.backlog OWNER TO lora_owner")
    assert len(schema.initialize(owned_by_nobody)) == 1


def test_a_full_queue_of_notifications_keeps_no_job_out(new_server: str) -> None:
    """Any login of the server, without a right in the database, can fill it: one listens and never reads."""
    with psycopg.connect(new_server) as connection:
        (folder,) = connection.execute("SHOW data_directory").fetchone() or ()
    run(new_server, "ALTER SYSTEM SET max_notify_queue_pages = 64", "CREATE ROLE nobody LOGIN")
    embedded.stop(Path(folder))
    embedded.start(Path(folder))
    url = create_database(new_server, "hinting")
    schema.initialize(url)
    fill = (f"SELECT pg_notify('x', repeat('y', 7000) || {number})" for number in range(100))
    with psycopg.connect(url_of(new_server, "hinting", user="nobody")) as nobody, db.connect(url) as owner:
        nobody.execute("LISTEN anything")
        nobody.commit()
        nobody.execute("SELECT 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="too many notifications"):
            run(url_of(new_server, "postgres", user="nobody"), *fill)
        add_base_model(owner)
        assert owner.execute("INSERT INTO loracomp.job (prompt) VALUES ('x') RETURNING status").fetchall()
    drop_database(new_server, "hinting")
    run(new_server, "ALTER SYSTEM RESET max_notify_queue_pages", "DROP ROLE nobody", DROP_ROLES)


def test_a_server_that_is_away_is_said_to_be(server: str) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"postgresql://postgres@127.0.0.1:{listening.getsockname()[1]}/postgres?connect_timeout=2"
        for function in (schema.initialize, revision.check_revision, db.connect):
            with pytest.raises(DatabaseUnavailableError, match=r"cannot be reached: .*refused"):
                function(url)
        listening.listen()
        with pytest.raises(DatabaseUnavailableError, match=r"cannot be reached: .*timeout expired"):
            schema.initialize(url)
    with pytest.raises(DatabaseUnavailableError, match=r'cannot be reached: .*database "nowhere" does not exist'):
        schema.initialize(url_of(server, "nowhere"))


def test_a_transaction_that_holds_a_table_is_named(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "LOCK_ATTEMPTS", 2)
    before = snapshot(database)
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM loracomp.job")
        with pytest.raises(
            RefusedError, match=rf"in use: job by postgres \(process {reader.info.backend_pid}, since 2"
        ):
            apply_again(database)
    assert snapshot(database) == before
    assert len(schema.initialize(database)) == 1


def test_a_prepared_transaction_that_holds_a_table_is_named(new_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "LOCK_ATTEMPTS", 2)
    url = create_database(new_server, "preparing")
    schema.initialize(url)
    for name, statement in {"left": "SELECT count(*) FROM loracomp.job", "innocent": "CREATE TABLE mine ()"}.items():
        with psycopg.connect(url) as connection:
            connection.execute(statement.encode())
            connection.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)))
    named = "in use: job by postgres (ROLLBACK PREPARED 'left' ends it; prepared 2"
    with pytest.raises(RefusedError, match=re.escape(named)) as raised:
        apply_again(url)
    assert "innocent" not in str(raised.value)
    run(url, "ROLLBACK PREPARED 'left'", "ROLLBACK PREPARED 'innocent'")
    assert len(schema.initialize(url)) == 1
    drop_database(new_server, "preparing")
    run(new_server, DROP_ROLES)


CALLS = [
    "INSERT INTO loracomp.job (prompt, base_model) VALUES ('x', 'none')",
    "SELECT loracomp.submit_job('hello', base_model => 'none')",
    "SELECT * FROM loracomp.claim_jobs('w', 'none', 3, '60 s')",
    "SELECT loracomp.fail_jobs(ARRAY[id], ARRAY[lease_token], '{x}', '{x}', '{true}')"
    " FROM (SELECT * FROM loracomp.job WHERE status = 'running' LIMIT 3) AS held",
    "SELECT * FROM loracomp.route_jobs('{1}', ARRAY[array_fill(0.1, '{832}')::vector])",
    "SELECT loracomp.explain_job(1)",
    "SELECT * FROM loracomp.job_result ORDER BY job_id DESC LIMIT 5",
    "SELECT * FROM bi.queue_health",
    "SELECT * FROM of_a_users",
    "SELECT * FROM loracomp.check_health()",
]


def test_clients_call_meanwhile_without_an_error(database: str) -> None:
    run(
        database,
        "INSERT INTO loracomp.base_model"
        " (name, source, fingerprint, architecture, context_length, parameter_count, modules)"
        " VALUES ('none', 'none', repeat('0', 64), 'none', 1, 1, '{}')",
        CALLS[0],
        "CREATE VIEW of_a_users AS SELECT * FROM loracomp.job_result NATURAL JOIN bi.queue_health LIMIT 5",
    )
    stop = Event()

    def client(statement: str) -> Counter[str]:
        came: Counter[str] = Counter()
        with db.connect(database) as connection:
            connection.prepare_threshold = 5
            while not stop.wait(0.02):
                try:
                    connection.execute(statement, prepare=bool(came["done"] % 2))
                    came["done"] += 1
                except psycopg.Error as error:
                    came[f"{statement[:60]}: {type(error).__name__}: {error}"] += 1
        return came

    with ThreadPoolExecutor(len(CALLS)) as pool:
        clients = [pool.submit(client, statement) for statement in CALLS]
        try:
            for _ in range(4):
                assert len(apply_again(database)) == 1
        finally:
            stop.set()
        results = [client.result() for client in clients]
    assert {kind for result in results for kind in result} == {"done"}


def test_functions_that_wait_for_a_table_call_others_by_name(connection: db.Connection) -> None:
    # A BEGIN ATOMIC body calls others by number. One that waits for a table while sql/ is applied again would go on to
    # call a function that is gone: "cache lookup failed".
    by_number = """
        SELECT DISTINCT f.oid::regprocedure::text AS function
        FROM pg_proc AS f JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = f.oid
        JOIN pg_proc AS called ON d.refclassid = 'pg_proc'::regclass AND called.oid = d.refobjid
        WHERE f.prosecdef AND f.prosqlbody IS NOT NULL
            AND called.pronamespace::regnamespace::text IN ('loracomp', 'bi')
    """
    assert connection.execute(by_number).fetchall() == []
