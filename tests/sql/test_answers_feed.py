"""answers_since misses no answer, whichever transactions are open and whichever server answers."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from answers_data import ADD_TICKETS, TICKETS, URGENCY, answered, keep_and_claim, work
from conftest import create_database, drop_database, place_for_a_server, url_of
from job_data import add_base_model, record
from loracomp.database import connections as db
from loracomp.database import embedded, schema
from people_fixtures import connect, login
from worker_helpers import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of its own, which may be stopped, and on which transactions may be prepared."""
    with place_for_a_server() as folder:
        with psycopg.connect(embedded.start(folder), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_prepared_transactions = 2")
            connection.execute("ALTER SYSTEM SET fsync = off")
        embedded.stop(folder)
        yield embedded.start(folder)
        embedded.stop(folder)


@pytest.fixture(scope="module", name="template")
def template_of_this_server(server: str) -> str:
    """Name of a migrated database that nobody connects to."""
    schema.initialize(create_database(server, "template"))
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {login('alice')} LOGIN IN ROLE loracomp_submitter".encode())
    return "template"


@pytest.fixture
def declared(server: str, template: str) -> Iterator[str]:
    """URL of a database in which alice has declared urgency over three tickets, which are answered; as superuser."""
    url = create_database(server, "answers", template)
    with db.connect(url) as owner:
        add_base_model(owner)
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {login('alice')}".encode())
    with connect(url, "alice") as alice:
        alice.execute(TICKETS)
        alice.execute(URGENCY)
    add(url, 1, 3)
    yield url
    drop_database(server, "answers")


def told(url: str, cursor: str | None = None) -> tuple[list[int], str | None]:
    """Return the keys that the feed has after a cursor, in order, and the cursor to go on from."""
    with connect(url, "alice") as alice:
        rows = alice.execute("SELECT key, cursor FROM loracomp.answers_since('urgency', %s)", [cursor]).fetchall()
    return [int(row["key"][0]) for row in rows], rows[-1]["cursor"] if rows else cursor


def add(url: str, first: int, last: int) -> None:
    """Add tickets, and answer them."""
    with db.connect(url) as owner, connect(url, "alice") as alice:
        alice.execute(ADD_TICKETS, [first, last])
        work(owner)


def test_a_scan_waits_for_no_transaction_of_another_database(server: str, declared: str) -> None:
    with psycopg.connect(server) as other, db.connect(declared) as owner:
        other.execute("SELECT pg_current_xact_id()")
        with owner.transaction():
            owner.execute("SET LOCAL session_replication_role = replica")  # as in an upgrade, no trigger notes the row
            owner.execute("INSERT INTO public.tickets (id, subject, body) VALUES (4, 'late', 'urgent')")
            owner.execute(
                "INSERT INTO loracomp.scan_request SELECT id, pg_current_xact_id()::text::bigint"
                " FROM loracomp.declaration"
            )
        work(owner)
        assert told(declared)[0] == [1, 2, 3, 4]


def test_a_prepared_transaction_of_another_database_holds_nothing_back(server: str, declared: str) -> None:
    _, cursor = told(declared)
    with psycopg.connect(server) as other:
        other.execute("CREATE TABLE elsewhere ()")
        other.execute("PREPARE TRANSACTION 'elsewhere'")
    try:
        add(declared, 4, 5)
        assert told(declared, cursor)[0] == [4, 5]
    finally:
        with psycopg.connect(server, autocommit=True) as other:
            other.execute("ROLLBACK PREPARED 'elsewhere'")


@pytest.fixture
def standby(server: str, declared: str) -> Iterator[str]:
    """URL of the database on a standby, as superuser."""
    where = str(conninfo_to_dict(server)["host"])
    primary, copy = Path(where), Path(where).with_name("standby")
    embedded.stop(primary)
    subprocess.run(["cp", "-a", primary, copy], check=True)
    subprocess.run(["cp", "-a", copy / "PG_VERSION", copy / "standby.signal"], check=True)
    with (copy / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"primary_conninfo = 'host={where} user=postgres'\n")
    embedded.start(primary)
    yield url_of(embedded.start(copy), "answers")
    embedded.stop(copy)
    shutil.rmtree(copy)


def catch_up(standby: str, primary: str) -> None:
    with psycopg.connect(primary) as written, psycopg.connect(standby, autocommit=True) as read:
        (lsn,) = written.execute("SELECT pg_current_wal_lsn()").fetchone() or ()
        wait_until(lambda: read.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]).fetchone() == (True,))


def test_a_standby_holds_back_what_its_primary_holds_back(declared: str, standby: str) -> None:
    _, cursor = told(standby)
    with db.connect(declared) as owner, connect(declared, "alice") as alice, db.connect(declared) as purging:
        alice.execute(ADD_TICKETS, [4, 4])
        (job,) = keep_and_claim(owner)
        record(owner, {job.id: job.lease_token}, [answered(owner, job.id, "urgent")])
        with purging.transaction():
            purging.execute("SELECT loracomp.purge_jobs('90 days')")  # copies the answer, and might still be deleting
            add(declared, 5, 5)
            catch_up(standby, declared)
            assert told(standby, cursor) == told(declared, cursor) == ([], cursor)
    catch_up(standby, declared)
    assert told(standby, cursor) == told(declared, cursor)
    assert told(standby, cursor)[0] == [4, 5]


def test_a_reader_begins_again_when_a_standby_has_taken_over_that_lacked_answers(declared: str, standby: str) -> None:
    """It uses transaction ids again that its primary had used for answers that the reader has."""
    with psycopg.connect(standby, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: connection.execute("SELECT count(*) FROM pg_stat_wal_receiver").fetchone() == (0,))
        use_up_transaction_ids(declared)
        add(declared, 4, 9)
        _, cursor = told(declared)
        connection.execute("SELECT pg_promote()")
    add(standby, 10, 12)
    use_up_transaction_ids(standby, 2)
    add(standby, 13, 13)
    keys, cursor = told(standby, cursor)
    assert sorted(keys) == [1, 2, 3, 10, 11, 12, 13]
    assert told(standby, cursor) == ([], cursor)


def use_up_transaction_ids(url: str, times: int = 1) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(500 * times):
            connection.execute("SELECT pg_current_xact_id()")
