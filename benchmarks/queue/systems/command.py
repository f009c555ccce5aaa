"""What all systems are asked on the command line."""

import sys
from collections.abc import Callable

RESULTS = """
CREATE TABLE result (job_id bigint PRIMARY KEY, body bytea NOT NULL);
ALTER TABLE result ALTER COLUMN body SET STORAGE EXTERNAL;
"""
ADD_RESULT = "INSERT INTO result (job_id, body) VALUES (%s, %s)"
BODY_BYTES = 3850
"""Makes a result as large, in its table and indexes, as a prediction of ours: the report has both."""
PROMPT = "Question: what is the capital of a country that has two seas, three rivers and one very long name?\nAnswer:"


def command(
    install: Callable[[str], None], insert: Callable[[str, int], None], work: Callable[[str, int], None]
) -> None:
    """Run what the command line says: make the tables, insert so many jobs, or claim so many at once until killed."""
    verb, url, *number = sys.argv[1:]
    if verb == "install":
        install(url)
    else:
        {"insert": insert, "work": work}[verb](url, int(number[0]))
