"""One embedded Postgres for each session, and a database for each test, cloned from a migrated template."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from psycopg import sql

import forked
import memory
from loracomp.database import connections as db
from loracomp.database import embedded, schema

pytest_plugins = ["demo_fixtures", "model_fixtures", "people_fixtures", "registry_data"]

# Programs that tests start also run this tree's code; pytest's setting `pythonpath` changes only pytest's own process.
_ROOT = Path(__file__).parents[1]
_FOLDERS = [str(_ROOT / folder) for folder in (".", "packages/lab", "packages/library")]
os.environ["PYTHONPATH"] = os.pathsep.join([*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])

# Each run draws the same examples, and none has to be fast, so that a change never fails by chance. LORACOMP_FUZZ draws
# others.
hypothesis.settings.register_profile("repeatable", derandomize="LORACOMP_FUZZ" not in os.environ, deadline=None)
hypothesis.settings.load_profile("repeatable")

TEMPLATE = "loracomp_template"
_numbers = count()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        os.environ["FORKED_PROGRAMS"] = str(forked.programs())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Start xdist's workers as forks, because importing torch and its dependencies would take each of them ten
    seconds."""
    for spec in specs:
        spec.python = f"{forked.programs() / 'script'} worker"


LONGEST = ("docs", "demo", "test_processes.py", "test_worker.py")
"""Groups that take longest. If they came last, one process would work alone at the end."""


def group_of(item: pytest.Item) -> str:
    """Return the group of a test. One process runs all tests of a group, because they share what takes long to make:
    the demo, of which the docs' pages have one to themselves, or the database of a file."""
    if "demo" in getattr(item, "fixturenames", ()):
        return "docs" if item.get_closest_marker("docs") else "demo"
    return item.path.name


@pytest.hookimpl(tryfirst=True)  # must come before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = {item: group_of(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))
    if "LORACOMP_TEST_POOLER" in os.environ:
        for item in items:
            if item.get_closest_marker("session"):
                item.add_marker(pytest.mark.skip(reason="a pooler in transaction mode keeps no session"))


@contextmanager
def place_for_a_server() -> Iterator[Path]:
    """Make a data folder for an embedded server, which must be stopped before the context ends. It is not below
    pytest's own folder, because each run of pytest as root closes that folder to the servers' user, even for other
    runs.
    """
    with tempfile.TemporaryDirectory("", "loracomp-test-", memory.folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "postgres"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of the maintenance database, as superuser: LORACOMP_TEST_SERVER, or an embedded server."""
    given = os.environ.get("LORACOMP_TEST_SERVER")
    if given:
        yield given
        return
    with place_for_a_server() as data:
        url = embedded.start(data)
        with psycopg.connect(url, autocommit=True) as connection:
            # Nothing needs to survive a crash of the machine, and without fsync, databases are created and dropped many
            # times faster.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url
        embedded.stop(data)


@pytest.fixture(scope="session")
def programs(server: str) -> Path:
    """Folder with pg_dump and other programs of the server's release, from the package or from Debian."""
    with psycopg.connect(server) as connection:
        release = connection.info.server_version // 10000
    for folder in (embedded.psql_path().parent, Path(f"/usr/lib/postgresql/{release}/bin")):
        program = folder / "pg_dump"
        if program.exists() and f" {release}." in subprocess.check_output([program, "--version"], text=True):
            return folder
    pytest.skip(f"no pg_dump of PostgreSQL {release}")


def url_of(server: str, name: str, user: str | None = None) -> str:
    """Return the connection string of another database on the same server, optionally as another role."""
    parameters = {**psycopg.conninfo.conninfo_to_dict(server), "dbname": name, **({"user": user} if user else {})}
    return psycopg.conninfo.make_conninfo(**parameters)


def create_database(server: str, name: str, template: str = "template0") -> str:
    # Without fsync, this strategy takes half as long as the default.
    copy = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(copy.format(sql.Identifier(name), sql.Identifier(template)))
    return url_of(server, name)


def drop_database(server: str, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """Name of a migrated database that nobody connects to."""
    name = f"{TEMPLATE}_{os.getpid()}"
    schema.initialize(create_database(server, name))
    yield name
    drop_database(server, name)


@pytest.fixture
def database(server: str, template: str) -> Iterator[str]:
    """URL of a fresh migrated database, as superuser."""
    name = f"loracomp_{os.getpid()}_{next(_numbers)}"
    yield create_database(server, name, template)
    drop_database(server, name)


@pytest.fixture
def empty_database(server: str) -> Iterator[str]:
    """URL of a fresh, empty database."""
    name = f"loracomp_{os.getpid()}_{next(_numbers)}"
    yield create_database(server, name)
    drop_database(server, name)


@pytest.fixture
def connection(database: str) -> Iterator[db.Connection]:
    """Autocommit connection to a fresh migrated database, as superuser; rows are dicts."""
    with db.connect(database) as opened:
        yield opened
