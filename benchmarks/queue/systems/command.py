"""The command line of all compared systems."""

import sys
from collections.abc import Callable

import psycopg

RESULTS = """
CREATE TABLE result (job_id bigint PRIMARY KEY, body bytea NOT NULL);
ALTER TABLE result ALTER COLUMN body SET STORAGE EXTERNAL;
"""
ADD_RESULT = "INSERT INTO result (job_id, body) VALUES ($1, $2)"
"""The INSERT of a result, with asyncpg's placeholders."""
BODY_BYTES = 2200
"""Size of a result, such that with indexes it is as large as a prediction of loracomp; the report shows both sizes."""
PROMPT = "Question: what is the capital of a country that has two seas, three rivers and one very long name?\nAnswer:"


def add_results(url: str) -> None:
    """Make the table of results."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(RESULTS)


def command(
    install: Callable[[str], None], insert: Callable[[str, int], None], work: Callable[[str, int], None]
) -> None:
    """Run the command line: make the tables, insert jobs, or claim jobs in batches until killed."""
    verb, url, *number = sys.argv[1:]
    if verb == "install":
        install(url)
    else:
        {"insert": insert, "work": work}[verb](url, int(number[0]))
