"""`loracomp db dump`, `restore` and `url`."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from answers_data import TICKETS, URGENCY, as_alice
from conftest import create_database, drop_database, url_of
from forked import programs as commands
from job_data import add_base_model, add_jobs, statuses
from loracomp.database import connections as db
from loracomp.database import embedded
from people_fixtures import login
from worker_helpers import wait_until


def loracomp(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LORACOMP_DATABASE_URL": url}
    command = [commands() / "loracomp", "db", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def test_a_dump_is_restored_into_an_empty_database(
    connection: db.Connection, database: str, empty_database: str, tmp_path: Path, programs: Path
) -> None:
    add_base_model(connection)
    (job,) = add_jobs(connection, "a")
    file = str(tmp_path / "it's.dump")
    done = loracomp(database, "dump", file)
    assert done.returncode == 0, done.stderr
    done = loracomp(empty_database, "restore", file)
    assert done.returncode == 0, done.stderr
    with db.connect(empty_database) as restored:
        assert statuses(restored) == {job: "queued"}
    again = loracomp(empty_database, "restore", file)
    assert again.returncode != 0 and "already exists" in again.stderr


def test_a_dump_that_fails_leaves_the_earlier_one(connection: db.Connection, database: str, tmp_path: Path) -> None:
    file = tmp_path / "dump"
    file.write_text("of yesterday")
    file.chmod(0o600)
    waits = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pg_dump'"
    with ThreadPoolExecutor(1) as thread:
        with db.connect(database) as other, other.transaction():
            other.execute("LOCK TABLE loracomp.job IN ACCESS EXCLUSIVE MODE")
            done = thread.submit(loracomp, database, "dump", str(file))
            wait_until(
                lambda: connection.execute(f"SELECT pid {waits} AND wait_event_type = 'Lock'".encode()).fetchone()
            )
            connection.execute(f"SELECT pg_terminate_backend(pid) {waits}".encode())
            assert done.result().returncode == 1
        assert file.read_text() == "of yesterday"
        assert loracomp(database, "dump", str(file)).returncode == 0
    assert file.read_bytes().startswith(b"PGDMP")
    assert (file.stat().st_mode & 0o777, [*tmp_path.iterdir()]) == (0o600, [file])


def test_a_missing_role_is_to_be_created_before_a_restore(
    eve: str, server: str, empty_database: str, tmp_path: Path
) -> None:
    name = dumped(eve, server, "CREATE TABLE {eve}.yours (id integer)", tmp_path / "dump")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {name} RENAME TO {name}_away")
        done = loracomp(empty_database, "restore", str(tmp_path / "dump"))
        connection.execute(f"ALTER ROLE {name}_away RENAME TO {name}")
    assert done.returncode == 1
    assert f'role "{name}" does not exist' in done.stderr
    assert "Nothing was restored. If a role does not exist, create it with CREATE ROLE" in done.stderr


@pytest.fixture
def eve(server: str) -> Iterator[str]:
    """URL of a database, as a login that only has a schema of its own there; the schema has the login's name."""
    name = f"eve_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        with psycopg.connect(create_database(server, f"{name}_source")) as inside:
            inside.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        yield url_of(server, f"{name}_source", user=name)
        drop_database(server, f"{name}_source")
        connection.execute(f"DROP ROLE {name}")


@pytest.fixture
def target(eve: str, empty_database: str) -> Iterator[str]:
    """URL of an empty database, whose objects of the login are dropped before the login is."""
    yield empty_database
    with psycopg.connect(empty_database) as connection:
        connection.execute(f"DROP OWNED BY {conninfo_to_dict(eve)['user']} CASCADE")


def dumped(eve: str, server: str, statements: str, file: Path) -> str:
    """Write a dump of a database where `eve` has run statements, with {eve} as her name, which is returned."""
    name = str(conninfo_to_dict(eve)["user"])
    with psycopg.connect(eve) as connection:
        connection.execute(statements.format(eve=name).encode())
    done = loracomp(url_of(server, f"{name}_source"), "dump", str(file))
    assert done.returncode == 0, done.stderr
    return name


TAKE_OVER = """
CREATE FUNCTION {eve}.take_over() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        ALTER ROLE {eve} SUPERUSER;
    END IF;
END
$$;
CREATE FUNCTION {eve}.fine(id integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'SELECT {eve}.take_over()';
    RETURN true;
END
$$;
"""

EXPRESSIONS = {
    "constraint": "CREATE TABLE {eve}.mine (id integer CHECK ({eve}.fine(id)))",
    "generated column": "CREATE TABLE {eve}.mine (id integer, g boolean GENERATED ALWAYS AS ({eve}.fine(1)) STORED)",
    "domain": """
        CREATE DOMAIN {eve}.number AS integer CHECK ({eve}.fine(value));
        CREATE TABLE {eve}.mine (id integer, numbers {eve}.number[] DEFAULT '{{1}}')
        """,
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_restore_runs_no_users_code(expression: str, eve: str, server: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "dump"
    name = dumped(eve, server, f"{TAKE_OVER} {expression}; INSERT INTO {{eve}}.mine (id) VALUES (1)", file)
    with psycopg.connect(server, autocommit=True) as connection:
        superuser = f"SELECT rolsuper FROM pg_roles WHERE rolname = '{name}'"
        done = loracomp(target, "restore", str(file))
        assert done.returncode == 1 and f"belongs to {name}, who is no superuser" in done.stderr
        assert connection.execute(superuser).fetchone() == (False,)
        assert left_in(target) == set()

        done = loracomp(target, "restore", "--trust", name, str(file))  # as a plain pg_restore does
        assert done.returncode == 0, done.stderr
        assert connection.execute(superuser).fetchone() == (True,)


def left_in(url: str) -> set[str]:
    """The schemas and event triggers that a database has besides Postgres's own."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$' "
            "UNION ALL SELECT evtname FROM pg_event_trigger"
        )
        return {name for (name,) in found}


REFUSED = {
    "a built-in function that changes something": (
        "CREATE TABLE {eve}.mine (id integer, CONSTRAINT c CHECK (pg_notify('a', 'b') IS NULL OR id > 0))",
        "constraint c of {eve}.mine calls pg_notify(text,text)",
    ),
    "a domain with such a function": (
        "CREATE DOMAIN {eve}.number AS integer CONSTRAINT c CHECK (pg_notify('a', 'b') IS NULL OR value > 0)",
        "constraint c of {eve}.number calls pg_notify(text,text)",
    ),
    "a constraint that comes after the data": (
        """
        CREATE TABLE {eve}.mine (id integer);
        CREATE DOMAIN {eve}.number AS bigint CHECK (value <> '{eve}.mine'::regclass::oid::bigint);
        ALTER TABLE {eve}.mine ADD number {eve}.number
        """,
        "a constraint would check restored data before its code could be looked at",
    ),
}


@pytest.mark.parametrize(("made", "error"), REFUSED.values(), ids=REFUSED)
def test_a_restore_refuses(made: str, error: str, eve: str, server: str, target: str, tmp_path: Path) -> None:
    name = dumped(eve, server, made, tmp_path / "dump")
    done = loracomp(target, "restore", str(tmp_path / "dump"))
    assert done.returncode == 1 and error.format(eve=name) in done.stderr
    assert left_in(target) == set()


def test_a_schema_of_a_users_with_the_name_of_ours_is_no_excuse(
    eve: str, server: str, target: str, tmp_path: Path
) -> None:
    """The function converts to json, so that to_jsonb calls it, although no constraint names it."""
    with psycopg.connect(url_of(server, str(conninfo_to_dict(eve)["dbname"])), autocommit=True) as owner:
        owner.execute(f"CREATE SCHEMA loracomp_parts AUTHORIZATION {conninfo_to_dict(eve)['user']}".encode())
    made = """
        CREATE TYPE {eve}.kind AS ENUM ('a');
        CREATE FUNCTION loracomp_parts.as_json({eve}.kind) RETURNS json LANGUAGE sql SECURITY DEFINER
            AS 'SELECT ''1''::json';
        CREATE CAST ({eve}.kind AS json) WITH FUNCTION loracomp_parts.as_json;
        CREATE TABLE {eve}.mine (kind {eve}.kind CHECK (to_jsonb(kind) IS NOT NULL));
        """
    name = dumped(eve, server, made, tmp_path / "dump")
    done = loracomp(target, "restore", str(tmp_path / "dump"))
    assert done.returncode == 1
    assert f"function loracomp_parts.as_json({name}.kind) belongs to {name}, who is no superuser" in done.stderr
    assert left_in(target) == set()


HARMLESS = """
CREATE FUNCTION {eve}.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE {eve}.mine (
    id integer PRIMARY KEY CHECK (id > 0), made_at timestamptz DEFAULT now() CHECK (made_at <= now()),
    name text COLLATE "C" CHECK (name ~ 'a') NOT NULL, doubled integer GENERATED ALWAYS AS (2 * id) STORED,
    parent integer REFERENCES {eve}.mine
);
ALTER TABLE {eve}.mine ADD CHECK (id < 7) NOT VALID;
CREATE TRIGGER stamp BEFORE INSERT ON {eve}.mine FOR EACH ROW EXECUTE FUNCTION {eve}.stamp();
INSERT INTO {eve}.mine VALUES (1, DEFAULT, 'a')
"""


def test_tables_that_call_no_functions_of_users_are_restored_without_a_word(
    eve: str, server: str, target: str, tmp_path: Path
) -> None:
    name = dumped(eve, server, HARMLESS, tmp_path / "dump")
    done = loracomp(target, "restore", str(tmp_path / "dump"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left_in(target) == {name}
    with psycopg.connect(target) as connection:
        assert connection.execute(f"SELECT id, name, doubled FROM {name}.mine").fetchall() == [(1, "a", 2)]


def test_a_submitters_declaration_is_restored(
    connection: db.Connection, database: str, empty_database: str, logins: None, tmp_path: Path
) -> None:
    add_base_model(connection)
    with as_alice(database) as alice:
        alice.execute(TICKETS)
        alice.execute(URGENCY)
        owned = "SELECT proowner::regrole::text AS owner FROM pg_proc WHERE proname ~ '^read_[0-9]+$'"
        before = connection.execute(owned).fetchall()
        assert before == [{"owner": login("alice")}]
        assert loracomp(database, "dump", str(tmp_path / "dump")).returncode == 0
        done = loracomp(empty_database, "restore", str(tmp_path / "dump"))
        assert (done.returncode, done.stderr) == (0, "")
    with db.connect(empty_database) as restored:
        assert restored.execute(owned).fetchall() == before
        restored.execute(f"DROP OWNED BY {login('alice')} CASCADE".encode())


def test_what_is_left_out_is_not_looked_at(eve: str, server: str, target: str, tmp_path: Path, programs: Path) -> None:
    file, kept = tmp_path / "dump", tmp_path / "contents"
    statements = f"CREATE TABLE {{eve}}.yours (id integer); {TAKE_OVER} {EXPRESSIONS['constraint']}"
    name = dumped(eve, server, statements, file)
    contents = subprocess.check_output([programs / "pg_restore", "--list", file], text=True).splitlines()
    kept.write_text("\n".join(line for line in contents if " FUNCTION " not in line and " mine " not in line))
    done = loracomp(target, "restore", "--use-list", str(kept), str(file))
    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(target) as connection:
        found = connection.execute(f"SELECT relname FROM pg_class WHERE relnamespace = '{name}'::regnamespace")
        assert found.fetchall() == [("yours",)]


def test_only_a_superuser_can_restore_and_trust_only_roles(eve: str, target: str) -> None:
    assert "only a superuser can restore" in loracomp(eve, "restore", "no.dump").stderr
    assert "there is no role nobody" in loracomp(target, "restore", "--trust", "nobody", "no.dump").stderr
    assert left_in(target) == set()


def test_the_url_is_the_configured_one(database: str) -> None:
    assert conninfo_to_dict(loracomp(database, "url").stdout.strip()) == conninfo_to_dict(database)


def test_programs_are_of_the_servers_release_or_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    package = embedded._package()
    monkeypatch.setattr(package.utils, "POSTGRES_VERSIONS", {16: Path("/16"), 18: Path("/18")})
    found = [embedded.program_path("pg_dump", release).parts[1] for release in (15, 16, 17, 18, 19)]
    assert found == ["16", "16", "18", "18", "18"]
