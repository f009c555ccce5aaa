"""A database with people in it: logins of every role, and jobs of two submitters."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from conftest import create_database, drop_database
from loracomp.database import connections as db
from people_data import answer, load, one, submit

LOGINS = {
    "alice": "loracomp_submitter",
    "bob": "loracomp_submitter",
    "wendy": "loracomp_worker",
    "ana": "loracomp_analyst",
    "adam": "loracomp_admin",
    "nobody": None,
}


@dataclass(frozen=True)
class Scene:
    """A database in which alice and bob have an answered job each, and another job of alice's waits."""

    url: str
    owner: db.Connection
    alices: int
    bobs: int
    waiting: int

    def connect(self, name: str) -> db.Connection:
        return connect(self.url, name)


def login(name: str) -> str:
    return f"{name}_{os.getpid()}"


def connect(url: str, name: str) -> db.Connection:
    """Connect as one of LOGINS."""
    return db.connect(make_conninfo(url, user=login(name)))


@pytest.fixture(scope="module")
def logins(server: str) -> Iterator[None]:
    """Create roles of the cluster: a login for each of LOGINS, readers of a secret task, and a pool that may become
    alice."""
    statements = [f"CREATE ROLE {login(name)} LOGIN" for name in LOGINS]
    statements += [f"GRANT {role} TO {login(name)}" for name, role in LOGINS.items() if role]
    statements += [f"CREATE ROLE {login('readers')} NOLOGIN", f"CREATE ROLE {login('pool')} LOGIN NOINHERIT"]
    statements += [f"GRANT {login(name)} TO {login('pool')}" for name in ("alice", "bob")]
    with psycopg.connect(server, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        yield
        for name in ("pool", "readers", *LOGINS):
            connection.execute(f"DROP ROLE {login(name)}")


@pytest.fixture(scope="module")
def scene(server: str, template: str, logins: None) -> Iterator[Scene]:
    """Make the scene. Tests must not change what other tests look at."""
    name = f"roles_{os.getpid()}"
    url = create_database(server, name, template)
    with db.connect(url) as owner:
        examples = load(owner)
        jobs = {}
        for person in ("alice", "bob"):
            with connect(url, person) as connection:
                prompt = f"{person}'s SECRET"
                jobs[person] = submit(connection, prompt, idempotency_key=f"{person}'s key", choices=["SECRET", "b"])
            answer(owner, jobs[person], examples, output="SECRET")
        with connect(url, "alice") as connection:
            waiting = submit(connection, "alice waits")
        yield Scene(url, owner, jobs["alice"], jobs["bob"], waiting)
    drop_database(server, name)


def value(connection: db.Connection, statement: str, parameters: Any = None) -> Any:
    """Return the only column of the only row."""
    return next(iter(one(connection, statement, parameters).values()))


def values(connection: db.Connection, statement: str, parameters: Any = None) -> set[Any]:
    """Return the only column."""
    return {value for row in connection.execute(statement, parameters) for value in row.values()}
