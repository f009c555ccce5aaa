"""Back-ups as docs/operations.md has them: the whole database under way, and the registry alone."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from conftest import create_database, drop_database, url_of
from job_data import add_base_model, add_jobs, claim, ended, expire_leases, record_predictions, statuses
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.connections import Connection
from people_data import add_examples
from test_schema import snapshot
from worker_helpers import drain_here

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
REGISTRY = re.findall(r"--table '(loracomp\.\w+)'", DOCS.read_text())
BLOCKS = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(), re.M | re.S)
OWNERS_DUMP, OWNERS_RESTORE = (next(b for b in BLOCKS if word in b) for word in ("loracomp.dump", "--use-list"))


def rows(connection: Connection, table: str) -> list[str]:
    found = connection.execute(f"SELECT t::text AS row FROM {table} AS t ORDER BY 1".encode())
    return [row["row"] for row in found]


def test_a_restored_database_goes_on_where_the_dump_was(
    connection: Connection, database: str, empty_database: str, tmp_path: Path, programs: Path
) -> None:
    add_base_model(connection)
    done, running, waiting = add_jobs(connection, *"abc")
    (first,) = claim(connection, 1)
    record_predictions(connection, [first], [ended(done, output="before")])
    claim(connection, 1)
    subprocess.run([programs / "pg_dump", "-Fc", "-f", tmp_path / "dump", database], check=True)
    subprocess.run([programs / "pg_restore", "--exit-on-error", "-d", empty_database, tmp_path / "dump"], check=True)
    with db.connect(empty_database) as restored:
        assert statuses(restored) == {done: "succeeded", running: "running", waiting: "queued"}
        expire_leases(restored)  # as time would
        drain_here(empty_database)
        outputs = {row["job_id"]: row["output"] for row in restored.execute("SELECT * FROM loracomp.prediction")}
        assert set(statuses(restored).values()) == {"succeeded"}
        assert outputs[done] == "before"
        (new,) = add_jobs(restored, "d")
        assert new > waiting


@pytest.fixture
def owned(server: str, template: str) -> Iterator[str]:
    """URL of a database whose owner is no superuser, as that owner; `template` is there for the roles."""
    owner, name = f"owner_{os.getpid()}", f"owned_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {owner} LOGIN")
        create_database(server, name)
        connection.execute(f"ALTER DATABASE {name} OWNER TO {owner}")
        with psycopg.connect(url_of(server, name)) as inside:
            inside.execute("CREATE EXTENSION vector")
        url = url_of(server, name, user=owner)
        schema.initialize(url)
        yield url
        drop_database(server, name)
        drop_database(server, f"{name}_restored")
        connection.execute(f"DROP ROLE {owner}")


def test_an_owner_who_is_no_superuser_restores_by_the_commands_of_the_docs(
    owned: str, server: str, programs: Path, tmp_path: Path
) -> None:
    where, of = conninfo_to_dict(server), conninfo_to_dict(owned)
    dump, _ = OWNERS_DUMP.split("pg_dumpall")
    restore = OWNERS_RESTORE.replace("loracomp_restored", f"{of['dbname']}_restored")
    restore = re.sub(r"(--owner|--username) owner", rf"\1 {of['user']}", restore)
    environment = {
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "LORACOMP_DATABASE_URL": owned,
        **{f"PG{name.upper()}": str(where[name]) for name in ("host", "port", "user") if name in where},
    }
    subprocess.run(["bash", "-euo", "pipefail", "-c", dump + restore], env=environment, cwd=tmp_path, check=True)
    restored = url_of(owned, f"{of['dbname']}_restored")
    assert snapshot(restored) == snapshot(owned)
    assert schema.initialize(restored) == []


def test_the_registry_alone(
    connection: Connection, database: str, server: str, template: str, tmp_path: Path, programs: Path
) -> None:
    assert len(REGISTRY) > 6
    add_base_model(connection)
    add_base_model(connection, "toy", default=False)
    add_examples(connection, "rte")
    add_jobs(connection, "not part of it")
    connection.execute("UPDATE loracomp.policy SET k = 7 WHERE name = 'default'")
    tables = [argument for table in REGISTRY for argument in ("--table", table)]
    subprocess.run([programs / "pg_dump", "-Fc", "--data-only", *tables, "-f", tmp_path / "dump", database], check=True)
    name = f"registry_{tmp_path.name.lower()}"
    second = create_database(server, name, template)
    try:
        with db.connect(second) as restored:
            restored.execute("DELETE FROM loracomp.policy")
            command = [programs / "pg_restore", "--data-only", "--exit-on-error", "-d", second, tmp_path / "dump"]
            subprocess.run(command, check=True)
            for table in REGISTRY:
                assert rows(restored, table) == rows(connection, table), table
            assert statuses(restored) == {}
            add_examples(restored, "mnli")  # numbers go on
        assert schema.initialize(url_of(server, name)) == []
    finally:
        drop_database(server, name)
