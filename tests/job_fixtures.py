"""One database for all tests of a module, cleared for each test. A module imports these fixtures in place of
conftest's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from job_data import clear, shared_database
from loracomp.database import connections as db
from loracomp.database.connections import Connection


@pytest.fixture(scope="module", name="database")
def database_of_a_module(server: str, template: str) -> Iterator[str]:
    with shared_database(server, template) as url:
        yield url


@pytest.fixture(name="gate")
def gate_of_a_test(tmp_path: Path) -> Path:
    """A file that the prompt "until FILE" waits for, so that the model is busy until the test creates the file."""
    return tmp_path / "open"


@pytest.fixture(name="connection")
def cleared_connection(database: str) -> Iterator[Connection]:
    with db.connect(database) as opened:
        clear(opened)
        yield opened
