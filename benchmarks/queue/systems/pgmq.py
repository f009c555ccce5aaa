"""pgmq, installed by the SQL in its Python package. A read hides messages for some seconds; one transaction writes
results and deletes messages."""

import os

import psycopg
from pgmq import get_embedded_install_sql
from psycopg.types.json import Jsonb

from .command import BODY_BYTES, PROMPT, add_results, command

SEND = "SELECT FROM pgmq.send_batch('answer', array_fill(%s::jsonb, ARRAY[%s::integer]))"
READ = "SELECT msg_id, message FROM pgmq.read('answer', 60, %s)"
RECORD = """
WITH written AS (INSERT INTO result SELECT * FROM unnest(%b::bigint[], %b::bytea[]) RETURNING job_id)
SELECT FROM pgmq.delete('answer', ARRAY(SELECT job_id FROM written))
"""


def install(url: str) -> None:
    add_results(url)
    with psycopg.connect(url) as connection:
        connection.execute(get_embedded_install_sql().encode())
        connection.execute("SELECT pgmq.create('answer')")


def insert(url: str, count: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(SEND, (Jsonb({"prompt": PROMPT}), count))


def work(url: str, batch: int) -> None:
    body = os.urandom(BODY_BYTES)
    with psycopg.connect(url, autocommit=True) as connection:
        while jobs := connection.execute(READ, (batch,)).fetchall():
            connection.execute(RECORD, ([job[0] for job in jobs], [body] * len(jobs)))


if __name__ == "__main__":
    command(install, insert, work)
