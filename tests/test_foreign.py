"""A table in another database, through postgres_fdw, as examples/other_database.sql shows it."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import second_server
from conftest import create_database
from demo_fixtures import ROOT
from job_data import add_base_model
from loracomp.database import connections as db
from loracomp.database import schema
from worker_helpers import drain_here


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    if missing := second_server.absent(second_server.NEEDED):
        pytest.skip(f"no second server: {', '.join(missing)}")
    with second_server.server() as found:
        yield found


def test_a_table_of_another_database_is_answered(folder: Path) -> None:
    server = second_server.url(folder, second_server.PORT)
    central, own = create_database(server, "loracomp"), create_database(server, "shop")
    schema.initialize(central)
    with db.connect(central) as connection:
        add_base_model(connection)
        connection.execute("CREATE ROLE shop LOGIN PASSWORD 'secret' IN ROLE loracomp_submitter")
    source = (ROOT / "examples" / "other_database.sql").read_text()
    source = source.replace("'db.example'", f"'{folder}'").replace("'5432'", f"'{second_server.PORT}'")
    with psycopg.connect(own, autocommit=True) as connection:
        connection.execute("CREATE TABLE tickets (id integer PRIMARY KEY, subject text)")
        connection.execute("INSERT INTO tickets VALUES (17, 'Nobody can log in.'), (18, 'Thank you.')")
        connection.execute(source.encode())
        drain_here(make_conninfo(central))
        found = connection.execute("SELECT id, status, answer FROM ticket_urgency ORDER BY id").fetchall()
    asked = {17: "TICKET: NOBODY CAN LOG IN.\nTHIS IS", 18: "TICKET: THANK YOU.\nTHIS IS"}
    assert found == [(ticket, "succeeded", output) for ticket, output in asked.items()]
