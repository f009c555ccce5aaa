"""`loracomp db psql`: on the settings' database, unless psql's own options say otherwise."""

import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from forked import programs
from loracomp.database import connections as db

ROOT = Path(__file__).parents[2]
WHO = "SELECT current_user || ' in ' || current_database()"


@pytest.fixture
def shop(connection: db.Connection) -> str:
    """A login with no rights; roles are the cluster's."""
    name = f"shop_{os.getpid()}"
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
        connection.execute(f"CREATE ROLE {name} LOGIN".encode())
    return name


def psql(url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [programs() / "loracomp", "db", "psql", *arguments],
        cwd=ROOT,
        env={**os.environ, "LORACOMP_DATABASE_URL": url, **variables},
        text=True,
        capture_output=True,
        check=False,
    )


def test_psqls_own_options_hold(database: str, shop: str) -> None:
    owner, name = (str(conninfo_to_dict(database)[key]) for key in ("user", "dbname"))
    assert psql(database, "-AtXc", WHO).stdout.strip() == f"{owner} in {name}"
    assert psql(database, "-U", shop, "-AtXc", WHO).stdout.strip() == f"{shop} in {name}"
    assert psql(database, f"--username={shop}", "-AtXc", WHO).stdout.strip() == f"{shop} in {name}"
    assert psql(database, "-AtXd", "postgres", "-c", WHO).stdout.strip() == f"{owner} in postgres"
    assert psql(database, "-AtXc", WHO, "postgres", shop).stdout.strip() == f"{shop} in postgres"
    assert psql(database, "-AtXc", WHO, PGUSER=shop, PGSERVICE="none").stdout.strip() == f"{owner} in {name}"


def test_psql_gets_the_password_where_others_do_not_see_it(database: str) -> None:
    url = psycopg.conninfo.make_conninfo(database, password="s3cret", application_name="mine")
    seen = psql(url, "-AtXc", r"\! tr '\0' ' ' < /proc/$PPID/cmdline; echo; echo $PGPASSWORD").stdout.splitlines()
    assert "-AtXc" in seen[0] and "s3cret" not in seen[0]
    assert seen[1] == "s3cret"
    assert psql(url, "-AtXc", "SHOW application_name").stdout.strip() == "mine"
