"""Creates databases for benchmarks, splits rows into batches, and times calls."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from loracomp.database import schema

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


def batches(rows: Rows, size: int) -> list[Rows]:
    """Split the rows into batches of `size`; the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that a call takes."""
    start = perf_counter()
    work()
    return (perf_counter() - start) * 1000
