"""The database's address: which forms are taken, and that no password in it is ever shown."""

import logging
import os
import subprocess
import traceback
from threading import Event

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from demo_fixtures import INSTALLED, ROOT
from forked import programs
from loracomp.config import libpq_form, load_settings
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.errors import DatabaseUnavailableError, UsageError
from loracomp.worker.link import Link

TAKEN = [
    "postgresql://joe:s3cret@db:5433/x?sslmode=require",
    "postgres://joe:s3cret@db:5433/x?sslmode=require",
    "postgresql+psycopg://joe:s3cret@db:5433/x?sslmode=require",
    "postgres+psycopg2://joe:s3cret@db:5433/x?sslmode=require",
    "host=db port=5433 user=joe password=s3cret dbname=x sslmode=require",
]
REFUSED = {
    "another database": "mysql://joe:s3cret@db/x",
    "no database": "s3cret",
    "an unknown parameter": "postgresql://joe:s3cret@db/x?colour=s3cret",
    "an at sign in the password": "postgresql://joe:half@s3cret@db/x",
    "a slash in the password": "postgresql://joe:s3cret/half@db/x",
    "a slash behind a number": "postgresql://joe:12/s3cret@db/x",
    "a slash and a question mark": "postgresql://joe:12/half?s3cret@db/x",
    "a percent sign in the password": "postgresql://joe:s3cret%zz@db/x",
    "a space in the password": "host=db password=half s3cret",
    "a port in words": "host=db port=s3cret",
}


def as_settings(monkeypatch: pytest.MonkeyPatch, url: str) -> str | None:
    monkeypatch.setenv("LORACOMP_DATABASE_URL", url)
    return load_settings().database_url


@pytest.mark.parametrize("url", TAKEN)
def test_urls_of_libpq_and_of_sqlalchemy_name_the_same_database(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    parameters = conninfo_to_dict(as_settings(monkeypatch, url) or "")
    assert parameters == {
        "host": "db", "port": "5433", "user": "joe", "password": "s3cret", "dbname": "x", "sslmode": "require"
    }  # fmt: skip
    assert "s3cret" not in repr(load_settings())


@pytest.mark.parametrize("address", ["", "service=mine", "postgresql://[::1]:5433,db:5432/x", "dbname=odd@name"])
def test_what_libpq_understands_is_left_as_it_is(address: str) -> None:
    assert libpq_form(address) == address


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED)
def test_another_form_is_refused_by_the_variables_name_and_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(UsageError, match="LORACOMP_DATABASE_URL: the database's address was not understood") as refused:
        as_settings(monkeypatch, url)
    with pytest.raises(UsageError, match="was not understood") as given:
        db.connect(url)
    with pytest.raises(UsageError, match="was not understood"):
        schema.initialize(url)
    assert "s3cret" not in "".join(traceback.format_exception(refused.value) + traceback.format_exception(given.value))


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://joe:s3cret@127.0.0.1:1/x", "mysql+pymysql://joe:s3cret@127.0.0.1:1/x"]
)
@pytest.mark.parametrize(
    "command",
    [
        ["loracomp", "init"],
        ["loracomp", "init", "--json"],
        ["loracomp", "doctor", "--json"],
        ["loracomp", "task", "list", "--json"],
        ["loracomp", "worker", "--drain"],
        ["loracomp", "db", "psql", "-c", "SELECT 1"],
    ],
    ids=" ".join,
)
def test_no_command_shows_a_password(command: list[str], url: str) -> None:
    environment = {
        **os.environ,
        "PATH": f"{programs()}:{INSTALLED}:{os.environ['PATH']}",
        "LORACOMP_DATABASE_URL": url,
        "LORACOMP_LOG_LEVEL": "debug",
        "LORACOMP_LOG_FORMAT": "json",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "s3cret" not in said and "Traceback" not in said
    assert ("LORACOMP_DATABASE_URL" if url.startswith("mysql") else "127.0.0.1") in said


def test_no_error_and_no_log_shows_a_password(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """The errors and logs are those of a worker, which tries again while the database is away, and logs why."""
    url = psycopg.conninfo.make_conninfo(database, password="s3cret", dbname="none such")
    tries = iter([False, True])
    link = Link(url, "loracomp", Event(), statement_timeout_s=5)
    with caplog.at_level(logging.DEBUG), pytest.raises(DatabaseUnavailableError, match="none such") as refused:
        link.call(lambda connection: connection.execute("SELECT 1"), give_up=lambda _: next(tries))
    assert "none such" in caplog.text
    assert "s3cret" not in caplog.text + "".join(traceback.format_exception(refused.value))
