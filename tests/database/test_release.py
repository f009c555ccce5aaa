"""A database of 1.0, with a few rows, as pg_dump wrote it: each later release upgrades it.

REWRITE=1 writes the dump, until 1.0 is tagged; from the tag on it stays as it is.
"""

import gzip
import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from answers_data import answer_all
from job_data import add_base_model, add_jobs, claim, prediction, statuses
from loracomp.database import connections as db
from loracomp.database import revision, schema
from loracomp.worker.record import record_predictions
from people_data import add_examples
from test_migrations import objects

DUMP = Path(__file__).with_name("release_1_0.sql.gz")
FROZEN = hashlib.sha256(
    (revision.packed_folder("migrations") / "versions" / "0001_tables.sql").read_bytes()
).hexdigest()
# What older servers and other keys than the dump's do not know.
OF_THIS_PG_DUMP = re.compile(r"^(\\(un)?restrict .*|SET transaction_timeout = 0;)\n", re.M)
DECLARED = """
    CREATE TABLE public.messages (id integer PRIMARY KEY, text text NOT NULL);
    INSERT INTO public.messages VALUES (1, 'A wire sparks.'), (2, 'My neighbour hums.');
    SELECT loracomp.create_answers('urgency', source => 'public.messages', prompt => '{text}', choices => '{yes,no}')
"""


def fill(url: str) -> None:
    """An answered job, a waiting one, examples, and a table whose rows wait for answers."""
    with db.connect(url) as connection:
        add_base_model(connection)
        add_base_model(connection, "toy", default=False)
        add_examples(connection, "rte")
        answered, _ = add_jobs(connection, "answered", "waiting")
        record_predictions(connection, claim(connection, 1), [prediction(answered, output="before")])
        connection.execute(DECLARED)


def ours(url: str) -> list[str]:
    """All objects but those of the declaration, and counters of submitters."""
    return [name for name in objects(url) if not re.search(r"messages|urgency|_1\b|place_", name)]


def test_a_database_of_1_0_is_upgraded(database: str, empty_database: str, programs: Path) -> None:
    if os.environ.get("REWRITE"):
        fill(database)
        text = subprocess.check_output([programs / "pg_dump", "--no-owner", database], text=True)
        DUMP.write_bytes(gzip.compress(f"-- {FROZEN}\n{OF_THIS_PG_DUMP.sub('', text)}".encode(), mtime=0))
        return
    dump = gzip.decompress(DUMP.read_bytes()).decode()
    if f"-- {FROZEN}\n" not in dump[:100]:
        pytest.skip("0001 has changed since the dump was made, so 1.0 is not tagged: REWRITE=1 makes it again")
    psql = [
        programs / "psql",
        "--no-psqlrc",
        "--quiet",
        "-v",
        "ON_ERROR_STOP=1",
        "-o",
        os.devnull,
        "-d",
        empty_database,
    ]
    subprocess.run(psql, input=dump, text=True, check=True)
    schema.initialize(empty_database)
    assert ours(empty_database) == ours(database)
    with db.connect(empty_database) as connection:
        outputs = connection.execute("SELECT output FROM loracomp.job_result WHERE status = 'succeeded'").fetchall()
        assert outputs == [{"output": "before"}]
        answer_all(connection, "yes")
        assert set(statuses(connection).values()) == {"succeeded"}
        answers = connection.execute("SELECT count(answer) AS count FROM public.urgency").fetchone()
        assert answers == {"count": 2}
