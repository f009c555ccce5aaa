"""Databases of the benchmarks' own, batches, and how long a call takes."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from loracomp.database import connections as db
from loracomp.database import schema

ANALYST = "loracomp_bench_analyst"
Rows = TypeVar("Rows", bound=Any)


def create_database(server: str, name: str, *, replace: bool = False) -> str:
    """Create a database with this release's schema, and return its URL.

    A database of that name that already exists is upgraded and kept; with `replace` it is dropped first.
    """
    with psycopg.connect(server, autocommit=True) as connection:
        if replace:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchall():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = psycopg.conninfo.make_conninfo(server, dbname=name)
    schema.initialize(url)
    return url


@contextmanager
def analyst(owner: db.Connection, *, limited: bool = True) -> Iterator[str]:
    """URL of the owner's database for a new analyst, with the limits of `limit_analyst`; dropped at the end."""
    role, password = sql.Identifier(ANALYST), secrets.token_urlsafe()
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE loracomp_analyst").format(role, password))
    try:
        if limited:
            owner.execute("SELECT loracomp.limit_analyst(%s)", [ANALYST])
        yield psycopg.conninfo.make_conninfo(owner.info.dsn, user=ANALYST, password=password)
    finally:
        owner.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [ANALYST])
        owner.execute(sql.SQL("DROP ROLE {}").format(role))


def batches(rows: Rows, size: int) -> list[Rows]:
    """Split the rows into batches of `size`; the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    start = perf_counter()
    work()
    return (perf_counter() - start) * 1000
