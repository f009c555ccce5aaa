"""`make bench-queue`, tiny, the whole of it: what it calls is still there, and every figure comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.queue.report import beside_others
from benchmarks.queue.systems.loracomp import BASE_MODEL, NoModel
from demo_fixtures import ROOT
from job_data import add_base_model, add_jobs, claim
from loracomp.database.connections import Connection
from loracomp.worker.recorder import record_predictions

SYSTEMS = {"awa", "bare", "loracomp", "pgmq", "pgq", "pgqueuer", "procrastinate"}
TINY = "--seconds 0.2 --rounds 1 --depth 0 --claims 4 --minutes 0.05"


def test_what_stands_in_for_the_model_is_recorded(connection: Connection) -> None:
    add_base_model(connection, BASE_MODEL)
    ids = add_jobs(connection, *"ab", base_model=BASE_MODEL)
    jobs = claim(connection, base_model=BASE_MODEL)
    flights = NoModel().ended(connection, jobs)
    assert flights[0].decision.trace != flights[1].decision.trace
    assert record_predictions(connection, flights) == set(ids)
    expected = {"job WHERE status = 'succeeded'": 2, "prediction": 2}
    for rows_of, number in expected.items():
        assert connection.execute(f"SELECT count(*) FROM loracomp.{rows_of}").fetchone() == {"count": number}


@pytest.mark.slow
def test_every_part_is_measured_and_written(tmp_path: Path) -> None:
    out = tmp_path / "queue.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.queue", *TINY.split(), "--out", str(out)],
        cwd=ROOT, env={**os.environ, "SETTLE_S": "0"}, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = {part: found["rows"] for part, found in json.loads(out.read_text()).items()}
    rates = {row["system"]: row["jobs_per_s"] for row in figures["throughput"]}
    assert {"bare", "loracomp"} <= rates.keys() <= SYSTEMS  # the libraries where they are installed
    assert all(rate > 0 for rate in rates.values())
    for row in figures["throughput"]:
        assert row["server_ms_a_job"] > 0 < row["wal_bytes_a_job"], row
        assert row["client_ms_a_job"] >= 0 < row["commits_a_job"], row
    assert [row["submitters"] for row in figures["submitters"]] == [1, 10, 100, 1000]
    assert all(row["claim_p50_ms"] > 0 < row["record_p50_ms"] for row in figures["submitters"])
    under = {(row["system"], row["snapshot"]): row["jobs_per_s"] for row in figures["snapshot"]}
    assert {("bare", "none"), ("bare", "held"), ("loracomp", "none"), ("loracomp", "held")} <= under.keys()
    assert all(rate > 0 for rate in under.values())
    results = json.loads(out.read_text())
    ours = next(row for row in beside_others(results) if row[0] == "ours")
    assert (ours[1], ours[2], ours[4]) == (f"{many_a_batch(results):,}", "1.00 x", "1.00 x")


def many_a_batch(results: dict) -> int:
    """Our jobs per second in batches of 64."""
    rows = results["throughput"]["rows"]
    return next(row["jobs_per_s"] for row in rows if (row["system"], row["batch"]) == ("loracomp", 64))
