"""The benchmark's made-up weeks: as rows of real workers, so that what is measured on them holds."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest

from conftest import drop_database
from demo_fixtures import ROOT
from loracomp.database import connections as db

JOBS = 2000  # half of them must hold five weeks of evaluations, of 110 rows each
NAME = f"loracomp_volume_{os.getpid()}"
# Each would be 0 if a worker and the triggers had written the rows.
WRONG = {
    "answers without their job": "SELECT count(*) FROM loracomp.prediction AS p"
    " WHERE NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = p.job_id AND j.status = 'succeeded')",
    "jobs without their answer": "SELECT count(*) FROM loracomp.job AS j WHERE j.status = 'succeeded'"
    " AND NOT EXISTS (SELECT FROM loracomp.prediction AS p WHERE p.job_id = j.id)",
    "jobs out of order": "SELECT count(*) FROM loracomp.job"
    " WHERE NOT (created_at <= claimed_at AND claimed_at < finished_at)",
    "jobs of the future": "SELECT count(*) FROM loracomp.job WHERE finished_at > now()",
    "attempts that were not counted": "SELECT count(*) FROM loracomp.job AS j WHERE j.finished_at IS NOT NULL"
    " AND j.attempts <> (SELECT count(*) FROM loracomp.job_attempt AS a WHERE a.job_id = j.id)",
    "ends that differ": "SELECT count(*) FROM loracomp.job AS j JOIN loracomp.job_attempt AS a ON a.job_id = j.id"
    " AND a.attempt = j.attempts WHERE a.outcome <> j.status",
    "weights that don't sum to 1": "SELECT count(*) FROM loracomp.prediction AS p WHERE adapter_weights <> '{}'"
    " AND abs((SELECT sum(w) FROM unnest(p.adapter_weights) AS w) - 1) > 1e-9",
    "arrays of unlike lengths": "SELECT count(*) FROM loracomp.prediction AS p"
    " WHERE cardinality(example_ids) <> cardinality(similarities) OR cardinality(tasks) <> cardinality(weights)"
    " OR cardinality(adapter_ids) <> cardinality(adapter_weights) OR (adapter_ids = '{}') <> (fallback IS NOT NULL)",
    "answers that are no choice": "SELECT count(*) FROM loracomp.prediction AS p"
    " JOIN loracomp.job AS j ON j.id = p.job_id WHERE j.choices IS NOT NULL"
    " AND p.output IS DISTINCT FROM j.choices[p.choice_index]",
    "adapters before their time": "SELECT count(*) FROM loracomp.composed_adapter AS c"
    " JOIN loracomp.adapter AS a ON a.id = c.adapter_id JOIN loracomp.prediction AS p ON p.job_id = c.job_id"
    " WHERE a.activated_at > p.created_at + interval '1 minute'",
}


@pytest.fixture(scope="module")
def filled(server: str) -> Iterator[str]:
    """URL of a database that the command filled; dropped at the end."""
    try:
        url = volume(server, "--part-jobs", "1000")  # two parts
        assert url == psycopg.conninfo.make_conninfo(server, dbname=NAME)
        yield url
    finally:
        drop_database(server, NAME)


def volume(server: str, *options: str) -> str:
    """The URL that the command prints."""
    environment = {"LORACOMP_DATABASE_URL": server, "PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "120"}
    command = [sys.executable, "-m", "benchmarks.volume", "--jobs", str(JOBS), "--database", NAME, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_filled_is_left_as_it_is(server: str, filled: str) -> None:
    with db.connect(filled) as connection:
        before = connection.execute("SELECT count(*), max(id) FROM loracomp.job").fetchone()
        volume(server)
        assert connection.execute("SELECT count(*), max(id) FROM loracomp.job").fetchone() == before


def test_made_up_weeks_are_like_lived_ones(filled: str) -> None:
    with db.connect(filled) as connection:
        ended = connection.execute("SELECT count(*) AS n FROM loracomp.job WHERE finished_at IS NOT NULL").fetchone()
        assert ended == {"n": JOBS}
        for what, query in WRONG.items():
            assert connection.execute(query.encode()).fetchone() == {"count": 0}, what
        # No worker of these weeks is alive, and nothing was measured in them.
        views = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'bi'::regnamespace AND relkind = 'v'"
            " AND relname NOT IN ('worker_status', 'transfer')"
        )
        for view in views.fetchall():
            assert connection.execute(f"SELECT FROM bi.{view['relname']} LIMIT 1".encode()).fetchall(), view["relname"]
