"""A bare table: it claims with SKIP LOCKED and inserts a batch's results by one statement, without fence tokens,
leases, audit or fairness."""

import os

import psycopg

from .command import BODY_BYTES, PROMPT, RESULTS, command

TABLE = """
CREATE TABLE job (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status text NOT NULL DEFAULT 'queued', prompt text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), worker text, claimed_at timestamptz, finished_at timestamptz
) WITH (fillfactor = 80)
"""
QUEUE = "CREATE INDEX job_queue ON job (id) WHERE status = 'queued'"
CLAIM = """
UPDATE job SET status = 'running', worker = %s, claimed_at = now()
WHERE id = ANY (ARRAY(SELECT id FROM job WHERE status = 'queued' ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING id, prompt
"""
RECORD = """
WITH written AS (INSERT INTO result SELECT * FROM unnest(%b::bigint[], %b::bytea[]) RETURNING job_id)
UPDATE job SET status = 'succeeded', finished_at = now() FROM written WHERE id = job_id
"""


def install(url: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in (TABLE, QUEUE, RESULTS):
            connection.execute(statement)


def insert(url: str, count: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO job (prompt) SELECT %s FROM generate_series(1, %s)", (PROMPT, count))


def work(url: str, batch: int) -> None:
    body = os.urandom(BODY_BYTES)
    with psycopg.connect(url, autocommit=True) as connection:
        while jobs := connection.execute(CLAIM, ("bare", batch)).fetchall():
            connection.execute(RECORD, ([job[0] for job in jobs], [body] * len(jobs)))


if __name__ == "__main__":
    command(install, insert, work)
