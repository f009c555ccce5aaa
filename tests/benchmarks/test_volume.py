"""The benchmark's made-up weeks: as rows of real workers, so that what is measured on them holds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from benchmarks.volume import report
from conftest import drop_database
from demo_fixtures import ROOT
from loracomp.database import connections as db

JOBS = 1000
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


def volume(server: str, *options: str) -> str:
    """What the command prints."""
    return execute(server, "benchmarks.volume", "--jobs", str(JOBS), *options)


def execute(server: str, module: str, *options: str) -> str:
    done = run(server, module, "--database", NAME, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(server: str, module: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {"LORACOMP_DATABASE_URL": server, "PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "120"}
    command = [sys.executable, "-m", module, *options]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)


@pytest.fixture(scope="module")
def filled(server: str) -> Iterator[str]:
    """URL of a database that the command filled; dropped at the end."""
    try:
        assert "prediction_wide" in volume(server, "--repeats", "1", "--part-jobs", "500")  # two parts
        yield psycopg.conninfo.make_conninfo(server, dbname=NAME)
    finally:
        drop_database(server, NAME)


def test_what_is_filled_is_left_as_it_is(server: str, filled: str) -> None:
    with db.connect(filled) as connection:
        before = connection.execute("SELECT count(*), max(id) FROM loracomp.job").fetchone()
        assert f"job {before['count']:,} rows" in volume(server, "--repeats", "0")
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
            " AND relname NOT IN ('worker_status', 'transfer', 'expected_gain')"
        )
        for view in views.fetchall():
            assert connection.execute(f"SELECT FROM bi.{view['relname']} LIMIT 1".encode()).fetchall(), view["relname"]


def test_the_tables_of_scaling_are_what_was_kept() -> None:
    kept = json.loads((ROOT / "docs" / "performance" / report.RESULTS).read_text())
    results = {int(jobs): result for jobs, result in kept.items()}
    page = (ROOT / "docs" / "scaling.md").read_text()
    for rows in (report.sizes(results), report.views(results), report.refreshes(results)):
        assert report.as_markdown(rows) in page


def test_the_table_of_analysts_is_what_was_kept() -> None:
    kept = ROOT / "docs" / "performance" / report.ANALYSTS
    if not kept.is_file():
        pytest.skip("python -m benchmarks.volume.analysts --keep docs/performance makes it")
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert report.as_markdown(report.analysts(json.loads(kept.read_text()))) in page


def test_what_is_measured_fills_the_docs_tables(server: str, filled: str, tmp_path: Path) -> None:
    """Beside what was measured with another number of jobs."""
    folder, page = tmp_path / "performance", tmp_path / "scaling.md"
    folder.mkdir()
    page.write_text("".join(f"<!-- table: {name} -->\n<!-- end -->\n\n" for name in ("sizes", "views", "refreshes")))
    before = {
        "sizes": [{"name": name, "bytes": 2**30} for name in ("audit_event", "job", "prediction")],
        "refresh_ms": {"all_days": 5500.0, "a_day": 80.4, "no_day": 7.0},
        "views": [
            {"name": "accuracy", "query": "", "is_refreshed": False, "ms": 1234.5, "narrow_ms": 6.7},
            {"name": "dim_date", "query": "", "is_refreshed": False, "ms": None},
        ],
    }
    (folder / "volume.json").write_text(json.dumps({"50": before}))
    volume(server, "--repeats", "1", "--keep", str(folder))
    kept = json.loads((folder / "volume.json").read_text())
    assert [*kept] == ["50", str(JOBS)]
    lines = page.read_text().splitlines()
    assert "| 50 | 1,024 | 1,024 | 1,024 | 64424.5 |" in lines
    assert "| 50 | 5,500 | 80 | 7 |" in lines
    assert "| view | 50 jobs | of that, a part | 1,000 jobs | of that, a part |  |" in lines
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    assert next(row[1:3] for row in rows if row[0] == "`accuracy`") == ["1,234", "7"]
    slow = {f"`{view['name']}`" for view in kept[str(JOBS)]["views"] if report.is_slow(view)}
    assert next(row[1:3] for row in rows if row[0] == "`dim_date`") == ["too long", ""]
    assert {row[0] for row in rows} == slow | {"`accuracy`", "`dim_date`"}


@pytest.mark.parametrize("name", ["no_such_database", "postgres"])
def test_analysts_need_something_to_read(server: str, name: str) -> None:
    done = run(server, "benchmarks.volume.analysts", "--database", name)
    assert done.returncode == 1
    assert done.stderr.startswith(f"database {name} can't be measured: ")
    assert "`make volume`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_queue_runs_beside_analysts(server: str, filled: str, tmp_path: Path) -> None:
    """Last: it adds jobs."""
    folder, page = tmp_path / "performance", tmp_path / "scaling.md"
    folder.mkdir()
    page.write_text("<!-- table: analysts -->\n<!-- end -->\n")
    options = ("--seconds", "1", "--rounds", "2", "--analysts", "1", "--json", "--keep", str(folder))
    rows = json.loads(execute(server, "benchmarks.volume.analysts", *options))
    assert len(rows) == 3
    assert all(row["jobs_s"] > 0 for row in rows)
    kept = json.loads((folder / report.ANALYSTS).read_text())
    assert (kept["jobs"], kept["rounds"], kept["rows"]) == (JOBS, 2, rows)
    assert report.as_markdown(report.analysts(kept)) in page.read_text()
    assert f"| nobody reads | {rows[0]['jobs_s']:,.0f} |" in page.read_text()
