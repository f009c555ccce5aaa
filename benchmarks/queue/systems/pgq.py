"""PgQ from Debian's package. A batch is everything that arrived between two ticks, so each INSERT of 64 jobs ends with
a tick."""

import os
from pathlib import Path

import psycopg

from .command import BODY_BYTES, PROMPT, add_results, command

SQL = Path("/usr/share/postgresql/17/contrib/pgq_pl_only.sql")
BATCH = 64
MAKE = """
SELECT pgq.create_queue('answer'), pgq.set_queue_config('answer', 'ticker_max_count', '1'),
    pgq.register_consumer('answer', 'worker')
"""
INSERT = "SELECT pgq.insert_event('answer', 'answer', %s) FROM generate_series(1, %s)"
TICK = "SELECT pgq.ticker('answer')"
NEXT = "SELECT pgq.next_batch('answer', 'worker')"
EVENTS = "SELECT ev_id, ev_data FROM pgq.get_batch_events(%s)"
RECORD = """
WITH written AS (INSERT INTO result SELECT * FROM unnest(%b::bigint[], %b::bytea[]))
SELECT pgq.finish_batch(%s)
"""


def install(url: str) -> None:
    add_results(url)
    with psycopg.connect(url) as connection:
        connection.execute(SQL.read_bytes())
        connection.execute(MAKE)


def insert(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for first in range(0, count, BATCH):
            connection.execute(INSERT, (PROMPT, min(BATCH, count - first)))
            connection.execute(TICK)


def work(url: str, batch: int) -> None:
    """`batch` is not used, because PgQ's ticks decide the size."""
    body = os.urandom(BODY_BYTES)
    with psycopg.connect(url, autocommit=True) as connection:
        while (row := connection.execute(NEXT).fetchone()) and row[0]:
            jobs = connection.execute(EVENTS, row).fetchall()
            connection.execute(RECORD, ([job[0] for job in jobs], [body] * len(jobs), *row))


if __name__ == "__main__":
    command(install, insert, work)
