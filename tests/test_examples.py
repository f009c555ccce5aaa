"""The programs in examples/, on the demo's database, in a schema of their own."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from demo_fixtures import ROOT, execute

pytestmark = pytest.mark.model
EXAMPLES = ROOT / "examples"
NODE = """
const { Pool } = require('pg');
const { openTicket, urgency } = require(process.argv[1]);
(async () => {
  const database = new Pool(JSON.parse(process.argv[2]));
  const id = await openTicket(database, 'It is cold.');
  console.log(JSON.stringify(await urgency(database, id)));
  await database.end();
})();
"""
DBT = ["dbt-core==1.11.16", "dbt-postgres==1.11.0"]  # from 1.12 on, its parser is downloaded from elsewhere
WAITING = {"urgency": None, "status": "waiting", "reason": None}


@pytest.fixture(scope="module")
def shop(demo: dict[str, str]) -> Iterator[dict[str, str]]:
    """The demo's environment, with the search_path of the examples' schema, in which tickets.sql has run."""
    environment = demo | {"PGOPTIONS": "-c search_path=shop,public"}
    execute(["loracomp", "db", "psql", "-qc", "CREATE SCHEMA shop"], environment)
    printed = execute(["loracomp", "db", "psql", "-v", "ON_ERROR_STOP=1", "-Atf", "examples/tickets.sql"], environment)
    yield environment | {"PRINTED": printed}
    execute(["loracomp", "db", "psql", "-qc", "DROP SCHEMA shop CASCADE"], environment)


@pytest.fixture
def url(shop: dict[str, str]) -> str:
    return make_conninfo(execute(["loracomp", "db", "start"], shop).strip(), options=shop["PGOPTIONS"])


def test_tickets_get_an_urgency_a_summary_and_its_topic(shop: dict[str, str]) -> None:
    first, second = (line.split("|") for line in shop["PRINTED"].splitlines()[-2:])
    for number, (ticket, urgency, summary, topic) in enumerate((first, second), start=1):
        assert (ticket, urgency in {"urgent", "not urgent"}) == (str(number), True)
        assert summary and topic in {"heating", "water", "noise", "money"}


def test_an_application_opens_tickets_and_reads_their_urgency(shop: dict[str, str], url: str) -> None:
    spec = importlib.util.spec_from_file_location("app", EXAMPLES / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with psycopg.connect(url, autocommit=True) as connection:
        ticket, other = app.open_ticket(connection, "It is cold."), app.open_ticket_too(engine, "It is warm.")
        assert app.urgency(connection, ticket) == app.urgency_too(engine, other) == WAITING
        execute(["loracomp", "worker", "--drain"], shop)
        for row in (app.urgency(connection, ticket), app.urgency_too(engine, other)):
            assert row["urgency"] in {"urgent", "not urgent"} and row["status"] == "answered"
        connection.execute("UPDATE ticket_urgency SET correct = 'urgent' WHERE id = %s", [ticket])
        assert app.urgency(connection, ticket)["urgency"] == "urgent"
    engine.dispose()


@pytest.mark.clients
def test_so_does_one_in_node(url: str, tmp_path) -> None:
    if not shutil.which("npm"):
        pytest.skip("no npm")
    subprocess.run(["npm", "install", "--silent", "pg"], cwd=tmp_path, check=True, timeout=120)
    given = conninfo_to_dict(url)
    settings = {"user": given["user"], "database": given["dbname"], "host": given["host"], "options": given["options"]}
    settings["port"] = int(given.get("port", 5432))
    command = ["node", "-e", NODE, str(EXAMPLES / "app.js"), json.dumps(settings)]
    environment = {"NODE_PATH": str(tmp_path / "node_modules"), "PATH": "/usr/bin:/bin"}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
    assert json.loads(printed) == WAITING


@pytest.mark.clients
def test_so_does_a_model_of_dbt(shop: dict[str, str], url: str, tmp_path) -> None:
    """dbt needs other releases of some packages than these tests, so it gets an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [tmp_path / "venv" / "bin" / "pip", "install", "--quiet", "--only-binary", ":all:", *DBT]
    subprocess.run(install, check=True, timeout=600)
    given = conninfo_to_dict(url)
    environment = shop | {
        "PGHOST": given["host"], "PGPORT": str(given.get("port", 5432)), "PGUSER": given["user"],
        "PGDATABASE": given["dbname"], "DBT_SEND_ANONYMOUS_USAGE_STATS": "false", "PGOPTIONS": "",
    }  # fmt: skip
    shutil.copytree(EXAMPLES / "dbt", tmp_path / "project")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE message (id integer PRIMARY KEY, text text)")
        connection.execute("DROP VIEW ticket_urgency")  # tickets.sql has made one of this name
        for number in (1, 2):
            connection.execute("INSERT INTO message VALUES (%s, 'It is cold.')", [number])
            subprocess.run(
                [tmp_path / "venv" / "bin" / "dbt", "run"], cwd=tmp_path / "project", env=environment, check=True
            )
            execute(["loracomp", "worker", "--drain"], shop)
        connection.execute("UPDATE ticket_urgency SET correct = 'urgent' WHERE id = 2")
        assert connection.execute("SELECT status, count(*) FROM ticket_urgency GROUP BY status").fetchall() == [
            ("answered", 2)
        ]
        assert (2, "It is cold.") in connection.execute("SELECT * FROM urgent_ticket").fetchall()
