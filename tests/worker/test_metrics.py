"""A worker's endpoint: metrics whose names, types and labels are a contract, and whether it is ready, with why not."""

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import make_conninfo

from job_data import BASE, REPORT, add_jobs, expire_leases, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp import metrics
from loracomp.composition.cache import ByteLimitedCache
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.engine.inflight import InFlight, lap
from loracomp.errors import UsageError
from loracomp.records import Job
from loracomp.worker import endpoint as served
from loracomp.worker.endpoint import DATABASE_METRICS, DatabaseSample, Endpoint
from loracomp.worker.worker import Worker
from queue_worker import Obedient
from worker_helpers import in_thread, wait_until, working

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(r"^\| `(loracomp_\w+)` \| (gauge|counter|histogram) \| (.*?) \| ", re.M)


@contextmanager
def serving(database: str, **settings: Any) -> Iterator[tuple[Endpoint, Worker]]:
    """Run a worker that serves its endpoint and reports every third of a second."""
    values = {"poll_s": 0.05, "batch_size": 2, "lease_s": 1, "listen": False, **settings}
    with Endpoint("127.0.0.1", 0) as endpoint:
        worker = Worker(database, Obedient(), base_model=BASE, settings=Settings(**values), sample=endpoint.sample)
        endpoint.problems = worker.problems
        with in_thread(worker):
            yield endpoint, worker


def get(endpoint: Endpoint, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def scraped(endpoint: Endpoint) -> dict[str, Metric]:
    """Return loracomp's metrics, by the name that their samples have."""
    families = text_string_to_metric_families(get(endpoint, "/metrics")[1])
    named = {f"{each.name}_total" if each.type == "counter" else each.name: each for each in families}
    return {name: each for name, each in named.items() if name.startswith("loracomp_")}


def steps(endpoint: Endpoint) -> set[str]:
    return {each.labels["step"] for each in scraped(endpoint)["loracomp_step_seconds"].samples}


def problems(endpoint: Endpoint) -> dict[str, str]:
    status, body = get(endpoint, "/ready")
    answer = json.loads(body)
    assert (status, answer["ready"]) in [(200, True), (503, False)]
    assert answer["ready"] == (not answer["problems"])
    return answer["problems"]


def sample(connection: Connection) -> dict[tuple[str, ...], float]:
    """Return the database's metrics: name and values of labels -> value."""
    collector = DatabaseSample()
    collector.update(connection.execute(QUERIES["database_metrics"]))
    return {(each.name, *each.labels.values()): each.value for metric in collector.collect() for each in metric.samples}


def test_names_types_and_labels_are_those_of_the_docs(connection: Connection, database: str) -> None:
    """Dashboards and alerts rest on them."""
    add_jobs(connection, "a", "refuse")
    ByteLimitedCache[int, str](10, "adapters").put(1, "", 1)
    ByteLimitedCache[int, str](10, "adapters").get(1)
    with serving(database) as (endpoint, _):
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded", "failed"})
        wait_until(lambda: scraped(endpoint)["loracomp_jobs_failed_total"].samples)
        wait_until(lambda: "loracomp_queue_jobs" in scraped(endpoint))
        found = scraped(endpoint)
    documented = {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in ROW.findall(DOCS.read_text())}
    assert len(documented) > 30
    labels = {
        name: {label for each in metric.samples for label in each.labels} - {"le"} for name, metric in found.items()
    }
    assert {name: (metric.type, labels[name]) for name, metric in found.items()} == documented


def test_numbers_of_a_worker(connection: Connection, database: str) -> None:
    before, began = metrics.totals(), time.time()
    ended = before["failed"] + before["succeeded"]
    add_jobs(connection, *"abc", "refuse", "raise", max_attempts=1)
    with serving(database, worker="counted", batch_size=5) as (endpoint, _):
        wait_until(lambda: not {"queued", "running"} & set(statuses(connection).values()))
        wait_until(lambda: {"claim", "ready", "record"} <= steps(endpoint))
        wait_until(lambda: metrics.totals()["failed"] + metrics.totals()["succeeded"] == ended + 5)
        text = get(endpoint, "/metrics")[1]
        found = scraped(endpoint)
    totals = {name: value - before[name] for name, value in metrics.totals().items()}
    assert totals == {"claimed": 5, "succeeded": 3, "failed": 2, "released": 0, "dropped": 0}
    assert 'loracomp_jobs_failed_total{reason="prompt_too_long",retry="false"}' in text
    assert 'loracomp_jobs_failed_total{reason="internal_error",retry="true"}' in text
    assert 'worker="counted"' in text and "process_resident_memory_bytes" in text
    looked = found["loracomp_last_look_timestamp_seconds"].samples[0].value
    assert began <= looked <= time.time()


class OneByOne(Obedient):
    """An engine that ends each job in a step of its own."""

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        for step in ("encode", "route", "load"):
            lap(flights, step)

    def step(self) -> list[InFlight]:
        joining = self.schedule()
        for step in ("compose", "calibrate"):
            lap(joining, step)
        flight = self.flights.pop()
        self.end(flight)
        lap([flight], "predict")
        return [flight]


def observed() -> Counter[str]:
    """Return how often each step was observed."""
    (steps,) = metrics.STEP_SECONDS.collect()
    return Counter({each.labels["step"]: int(each.value) for each in steps.samples if each.name.endswith("_count")})


def test_steps_of_a_claim_are_observed_once_though_its_jobs_end_one_by_one(
    connection: Connection, database: str
) -> None:
    before = observed()
    add_jobs(connection, *"abc")
    with working(database, OneByOne(), batch_size=3):
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    once = ("claim", "encode", "route", "load", "ready", "compose", "calibrate")
    assert observed() - before == {**dict.fromkeys(once, 1), "predict": 3, "record": 3}


def test_what_is_done_for_a_whole_claim_is_divided_among_its_jobs_though_they_join_the_model_one_by_one() -> None:
    """And only among the jobs of this claim, although the model may have many more."""
    flights = [InFlight(Job(number, 0, "predict", "a", None, None), since=0.0) for number in range(4)]
    lap(flights, "encode")
    lap(flights[:1], "compose")
    encode, compose = flights[0].timings["encode"], flights[0].timings["compose"]
    assert flights[0].timings["share"] == pytest.approx(encode / 4 + compose)
    assert flights[1].timings["share"] == pytest.approx(encode / 4)


def test_numbers_of_the_queue(connection: Connection) -> None:
    empty = sample(connection)
    assert empty["loracomp_queue_jobs", BASE, "0", "false", "due"] == 0
    assert empty["loracomp_workers", BASE, "alive"] == 0
    assert empty["loracomp_rows_waiting", BASE] == empty["loracomp_declarations_in_trouble",] == 0
    add_jobs(connection, "a", "b", priority=7)
    add_jobs(connection, "c", run_at=datetime.now(UTC) + timedelta(hours=1))
    add_jobs(connection, "d", priority=-1)
    connection.execute(
        "UPDATE loracomp.job SET run_at = now() - interval '1 hour', created_at = now() - interval '2 hours'"
        " WHERE prompt = 'a'"
    )
    connection.execute(QUERIES["report_worker"], REPORT)
    connection.execute(QUERIES["report_worker"], {**REPORT, "name": "gone"})
    connection.execute(QUERIES["report_worker"], {**REPORT, "name": "done", "status": "stopped"})
    connection.execute("UPDATE loracomp.worker SET seen_at = now() - interval '1 hour' WHERE name = 'gone'")
    found = sample(connection)
    assert found["loracomp_queue_jobs", BASE, "7", "false", "due"] == 2
    assert found["loracomp_queue_jobs", BASE, "0", "false", "scheduled"] == 1
    assert found["loracomp_queue_jobs", BASE, "0", "false", "due"] == 0
    assert found["loracomp_queue_jobs", BASE, "-1", "true", "due"] == 1
    assert 3600 <= found["loracomp_queue_oldest_due_seconds", BASE, "7", "false"] < 3700
    assert found["loracomp_workers", BASE, "alive"] == found["loracomp_workers", BASE, "gone"] == 1


def test_rescues_are_counted(connection: Connection) -> None:
    before = sample(connection)["loracomp_jobs_rescued_total",]
    add_jobs(connection, "a", "b")
    connection.execute("SELECT * FROM loracomp.claim_jobs('w', %s, 2, '1 minute')", [BASE])
    expire_leases(connection)
    assert sample(connection)["loracomp_expired_leases", BASE] == 2
    assert sample(connection)["loracomp_running_jobs", BASE] == 2
    connection.execute("SELECT loracomp.rescue_jobs()")
    after = sample(connection)
    assert after["loracomp_jobs_rescued_total",] - before == 2
    assert after["loracomp_expired_leases", BASE] == 0


@pytest.mark.session
def test_the_oldest_snapshot_is_seen(connection: Connection, database: str) -> None:
    with db.connect(database) as other:
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1")
        age = ("loracomp_oldest_snapshot_seconds", "session")
        wait_until(lambda: sample(connection)[age] >= 1)
        (row,) = connection.execute("SELECT * FROM loracomp.oldest_snapshots() WHERE kind = 'session'")
        assert f"process {other.info.backend_pid} of" in row["holder"] and "idle in transaction" in row["holder"]


def test_every_metric_of_the_database_is_known(connection: Connection) -> None:
    rows = connection.execute(QUERIES["database_metrics"]).fetchall()
    assert {row["metric"] for row in rows} <= DATABASE_METRICS.keys()
    for row in rows:
        assert set(row["labels"]) == set(DATABASE_METRICS[row["metric"]].labels)


OF_LATER_WORKERS = "CREATE OR REPLACE FUNCTION loracomp.oldest_worker() RETURNS text LANGUAGE sql RETURN '9.9'"


def test_ready_says_why_not(connection: Connection, database: str) -> None:
    with serving(database) as (endpoint, worker):
        wait_until(lambda: problems(endpoint) == {})
        assert scraped(endpoint)["loracomp_worker_ready"].samples[0].value == 1
        connection.execute("UPDATE loracomp.alembic_version SET version_num = '9' || version_num")
        connection.execute(OF_LATER_WORKERS)
        wait_until(lambda: "the database's schema (9" in problems(endpoint).get("schema", ""))
        connection.execute("UPDATE loracomp.alembic_version SET version_num = substr(version_num, 2)")
        wait_until(lambda: problems(endpoint) == {})
        worker.stop()
        assert problems(endpoint)["claims"] == "the worker is stopping"


@pytest.mark.session
def test_a_database_that_is_away_is_seen(connection: Connection, database: str) -> None:
    name = connection.info.dbname
    with serving(database) as (endpoint, _):
        wait_until(lambda: scraped(endpoint)["loracomp_database_up"].samples[0].value == 1)
        with db.connect(make_conninfo(database, dbname="postgres"), vectors=False) as outside:
            outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            try:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                wait_until(lambda: "not currently accepting" in problems(endpoint).get("database", ""))
                assert scraped(endpoint)["loracomp_database_up"].samples[0].value == 0
                assert "loracomp_queue_jobs" not in scraped(endpoint)
            finally:
                outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_until(lambda: problems(endpoint) == {})


BROKEN = """
CREATE OR REPLACE FUNCTION loracomp.database_metrics() RETURNS TABLE (metric text, labels jsonb, value double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM nextval('loracomp.samples'), pg_sleep(0.3); -- it is tried again after 99 times as long
    RAISE division_by_zero;
END
$$
"""


def test_numbers_that_cannot_be_taken_keep_no_worker_from_being_ready_and_are_not_tried_at_once(
    connection: Connection, database: str
) -> None:
    (whole,) = connection.execute("SELECT pg_get_functiondef('loracomp.database_metrics'::regproc) AS text")
    connection.execute("CREATE SEQUENCE loracomp.samples")
    connection.execute(BROKEN)
    seen = "SELECT seen_at FROM loracomp.worker WHERE status = 'idle'"
    try:
        with serving(database) as (endpoint, _):
            times: set[datetime] = set()
            wait_until(lambda: times.update(row["seen_at"] for row in connection.execute(seen)) or len(times) >= 4)
            assert problems(endpoint) == {}
            assert scraped(endpoint)["loracomp_database_up"].samples[0].value == 0
            assert "loracomp_queue_jobs" not in scraped(endpoint)
        (tried,) = connection.execute("SELECT last_value FROM loracomp.samples")
        assert tried == {"last_value": 1}
    finally:
        connection.execute(whole["text"])
        connection.execute("DROP SEQUENCE loracomp.samples")


def test_a_claim_loop_that_stands_still_is_seen(connection: Connection, database: str) -> None:
    with serving(database) as (endpoint, _):
        wait_until(lambda: problems(endpoint) == {})
        with connection.transaction():
            connection.execute("LOCK TABLE loracomp.job")
            wait_until(lambda: "has not asked for jobs" in problems(endpoint).get("claims", ""))
        wait_until(lambda: problems(endpoint) == {})


def test_idle_connections_use_up_no_more_than_their_share_of_the_workers_files(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(served, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(served._Silent, "timeout", 2)
    with Endpoint("127.0.0.1", 0) as endpoint, ExitStack() as opened:
        for _ in range(3):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=10))
            client.sendall(b"GET /ready HTTP/1.0\r\nX: ")
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=1) as further:
            assert further.recv(1) == b""
        assert client.recv(1) == b"", "the endpoint closes it"
        wait_until(lambda: "model" in problems(endpoint))
    assert capfd.readouterr().err == ""


def test_it_listens_on_addresses_of_both_families() -> None:
    for host in ("::1", "localhost"):
        with (
            Endpoint(host, 0) as endpoint,
            urllib.request.urlopen(f"http://{f'[{host}]' if ':' in host else host}:{endpoint.port}/metrics") as answer,
        ):
            assert answer.status == 200


def test_a_model_that_loads_is_not_ready() -> None:
    with Endpoint("127.0.0.1", 0) as endpoint:
        assert "loading" in problems(endpoint)["model"]
        assert scraped(endpoint)["loracomp_worker_ready"].samples[0].value == 0
        assert get(endpoint, "/else")[0] == 404
        with pytest.raises(UsageError, match="cannot be listened on"):
            Endpoint("127.0.0.1", endpoint.port)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", endpoint.port))
