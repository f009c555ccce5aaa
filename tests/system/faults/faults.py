"""Real faults in real processes. Each function takes an arena, causes the fault, and returns a remark.

The arena checks what must hold after every fault; what must hold after one fault is asserted in its function.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from statistics import quantiles
from threading import Barrier, Event
from typing import TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo

import declarations
import keeping
import routing_data
from arena import MADE_UP_WEIGHTS, ROOT, Arena, Server, python_path
from conftest import create_database, drop_database
from dying_worker import LARGEST_BATCH, POINTS
from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database import revision, schema
from loracomp.database.queries import QUERIES
from loracomp.errors import DeviceHungError
from proxy import Proxy

Fault: TypeAlias = Callable[[Server, Arena], str]


class SkippedError(Exception):
    """A program that the fault needs is not installed."""


CLAIMS = (
    "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM loracomp.audit_event"
    " WHERE new_status = 'running' GROUP BY entity_id) AS each"
)


def killed(_: Server, arena: Arena) -> str:
    """Workers get SIGKILL at each step of a batch, twice."""
    arena.insert(arena.size, max_attempts=100)
    points = deque(POINTS * 2)
    kills = 0
    workers = [arena.start_worker(BATCH_SIZE=8, die_at=points.popleft(), die_after=1 + n) for n in range(3)]
    while not all_ended(arena):
        for place, process in enumerate(workers):
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, arena.log(process)
                kills += 1
                die_at = points.popleft() if points else ""
                workers[place] = arena.start_worker(BATCH_SIZE=8, die_at=die_at)
                arena.fault_ends()
        time.sleep(0.05)
    assert kills >= len(POINTS), f"only {kills} workers were killed before the jobs were done: use more jobs"
    claims = arena.one(CLAIMS)
    assert claims <= kills + 1
    assert arena.counts()["succeeded"] == arena.size
    return f"{kills} kills, at most {claims} claims a job"


def poisoned(_: Server, arena: Arena) -> str:
    """A job that kills its process, and one that hangs, in the middle of full batches."""
    arena.may_fail = 2
    arena.columns["timeout_s"] = (
        5 if arena.model == "none" else 60
    )  # for both jobs; on a busy machine, a batch takes a part of this time
    half = max(8, arena.size // 2)
    arena.insert(half, max_attempts=1)
    arena.insert(1, "die", max_attempts=2)
    arena.insert(half, max_attempts=1)
    arena.insert(1, "hang", max_attempts=1)
    arena.insert(half, max_attempts=1)
    workers = [arena.start_worker(HANG_S=1) for _ in range(2)]
    ends = set()
    while not all_ended(arena):
        for place, process in enumerate(workers):
            if process.poll() is not None:
                # Start the worker again, as a process manager does.
                ends.add(process.returncode)
                workers[place] = arena.start_worker(HANG_S=1)
        time.sleep(0.05)
    # The job that hangs may fail a second before the worker that ran it alone ends.
    arena.wait(lambda: DeviceHungError.exit_code in ends | {process.poll() for process in workers}, 30)
    ends |= {process.returncode for process in workers if process.returncode is not None}
    assert ends == {-signal.SIGKILL, DeviceHungError.exit_code}
    bad = "SELECT string_agg(prompt || ' ' || error_code || ' ' || attempts, ', ' ORDER BY id) FROM loracomp.job"
    assert arena.one(f"{bad} WHERE status <> 'succeeded'") == "die lease_expired 2, hang timed_out 1"
    assert arena.one("SELECT max(attempts) FROM loracomp.job WHERE prompt = 'ask'") == 1
    return "both failed with the reason; no other job was charged"


def frozen(_: Server, arena: Arena) -> str:
    """A worker gets SIGSTOP until its lease has expired and another worker has finished its jobs, and then SIGCONT."""
    arena.insert(arena.size)
    (sleeper,) = arena.start_workers(1, MODEL_S=1)
    arena.wait(lambda: arena.counts()["running"])
    sleeper.send_signal(signal.SIGSTOP)
    (other,) = arena.start_workers(1)
    arena.wait_for(1)
    other.send_signal(signal.SIGTERM)
    other.wait(30)
    sleeper.send_signal(signal.SIGCONT)
    arena.fault_ends()
    arena.insert(5)
    arena.wait_for(1)
    assert arena.says(sleeper, "fence_void") or arena.says(sleeper, "leases_lost")
    return "its late result changed nothing, and it carried on"


def server_restarts(server: Server, arena: Arena) -> str:
    """The server crashes and restarts under load, twice."""

    def harm() -> None:
        for _ in range(2):
            server.crash_and_restart()
            wait_for_progress(arena)

    return under_load(arena, harm)


def connections_cut(_: Server, arena: Arena) -> str:
    """Every connection is cut by pg_terminate_backend, five times."""

    def harm() -> None:
        for _ in range(5):
            arena.one(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            time.sleep(0.3)

    return under_load(arena, harm)


def server_down(server: Server, arena: Arena) -> str:
    """The server is down for longer than a lease."""
    seconds = float(os.environ.get("DOWN_S", "8"))

    def harm() -> None:
        server.crash()
        time.sleep(seconds)
        server.start()

    return f"{seconds:g} s; {under_load(arena, harm)}"


HELD_BACK_S = 16
"""Seconds that are longer than a lease, an answer and an attempt to connect together."""


def half_open(server: Server, arena: Arena) -> str:
    """A proxy swallows packets, then holds them back for longer than a lease."""
    with Proxy(server.socket) as proxy:
        url = make_conninfo(arena.url, host="127.0.0.1", port=proxy.port)
        arena.insert(arena.size)
        (cut_off,) = arena.start_workers(1, url=url, MODEL_S=0.5)
        arena.wait(lambda: arena.counts()["running"])
        proxy.swallows = True
        started = time.monotonic()
        arena.wait(lambda: arena.says(cut_off, "no answer within"), 15)
        noticed = time.monotonic() - started
        proxy.heal()
        arena.fault_ends()
        arena.wait_for(1)
        arena.insert(64, max_new_tokens=1)  # answered before the leases end, so that the answers are sent
        # Once some are answered, others are in the model.
        arena.wait(lambda: (counts := arena.counts())["running"] >= 32 and counts["succeeded"] > arena.size)
        encoder = arena.one("SELECT DISTINCT encoder FROM loracomp.prediction")
        proxy.hold()
        time.sleep(1)  # what had come through by then is written
        held = arena.one("SELECT array_agg(id) FROM loracomp.job WHERE status = 'running'")
        time.sleep(HELD_BACK_S)
        (other,) = arena.start_workers(1)
        arena.wait_for(1)
        other.send_signal(signal.SIGTERM)
        other.wait(30)
        proxy.heal()  # the statements of a worker that gave up on them arrive now
        # Of a worker's statements, only the one that records has the encoder's name.
        arena.wait(lambda: encoder.encode() in proxy.late, 30)
        arena.insert(5)
        arena.wait_for(1)
    by = arena.one("SELECT array_agg(DISTINCT worker) FROM loracomp.prediction WHERE job_id = ANY (%s)", held)
    assert by == ["w1"], f"{by} answered what the other worker had taken over"
    return f"noticed after {noticed:.1f} s of at most 3; {len(held)} jobs held; what came late changed nothing"


def clock_off(_: Server, arena: Arena) -> str:
    """Workers whose clocks are two hours fast or slow work beside a worker whose clock is right."""
    if shutil.which("faketime") is None:
        raise SkippedError("faketime is not installed")
    for offset in ("+2h", "-2h"):
        arena.wrapper = ("env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", offset)
        arena.start_workers(1, MODEL_S=0.2)
    arena.wrapper = ()
    arena.start_workers(1, MODEL_S=0.2)
    arena.insert(arena.size)
    arena.wait_for(1)
    assert arena.one(CLAIMS) == 1
    assert arena.one("SELECT count(DISTINCT worker) FROM loracomp.prediction") == 3
    off = "SELECT count(*) FROM loracomp.job WHERE abs(extract(epoch FROM now() - finished_at)) > 1800"
    assert arena.one(off) == 0
    return "no lease ran out, and every time is the server's"


def terminated(_: Server, arena: Arena) -> str:
    """Workers get SIGTERM in mid-batch: they finish within the grace time, exceed it, or get a second SIGTERM."""
    arena.insert(arena.size)
    codes = []
    for model_s, grace_s, twice in [(1, 10, False), (60, 2, False), (60, 30, True)]:
        (process,) = arena.start_workers(1, MODEL_S=model_s, GRACE_S=grace_s)
        arena.wait(lambda: arena.counts()["running"])
        process.send_signal(signal.SIGTERM)
        if twice:
            arena.wait(partial(arena.says, process, "stopping"))
            process.send_signal(signal.SIGTERM)
        codes.append(process.wait(15))
        assert arena.counts()["running"] == 0
    assert codes == [0, 0, 128 + signal.SIGTERM]
    assert arena.one("SELECT max(attempts) FROM loracomp.job WHERE status = 'queued'") == 0
    arena.fault_ends()
    arena.start_workers(1)
    arena.wait_for(1)
    return "exit codes 0, 0, 143; attempts given back"


def inserts(_: Server, arena: Arena) -> str:
    """Fifty concurrent inserts with one key, a COPY, and a transaction that is rolled back."""
    copied = arena.size * 20
    barrier = Barrier(50)

    def submit(_: int) -> int:
        with arena.connect() as own:
            barrier.wait(60)
            row = own.execute("SELECT loracomp.submit_job('ask', idempotency_key => 'once') AS id").fetchone()
            assert row is not None
            return int(row["id"])

    arena.start_workers(2, BATCH_SIZE=128, MODEL_S=0)
    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(submit, range(50)))) == 1
    arena.accepted += 1
    with arena.connect() as connection:
        with connection.transaction(force_rollback=True):
            connection.execute("INSERT INTO loracomp.job (prompt) SELECT 'undone' FROM generate_series(1, 100)")
        with connection.cursor() as cursor, cursor.copy("COPY loracomp.job (prompt) FROM STDIN") as copy:
            copy.write("ask\n" * copied)
    arena.accepted += copied
    arena.wait_for(1, 600)
    assert arena.counts()["succeeded"] == copied + 1
    return f"one job of fifty calls; {copied} rows copied"


def hints_lost(_: Server, arena: Arena) -> str:
    """Notifications are turned off, and listening connections are cut off."""
    poll_s = 1.0
    name = psycopg.conninfo.conninfo_to_dict(arena.url)["dbname"]
    with arena.connect() as connection:
        connection.execute(f"ALTER DATABASE {name} SET loracomp.notify = 'off'".encode())
    arena.start_workers(1, POLL_S=poll_s)
    arena.one(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name LIKE 'loracomp heartbeat%%' AND datname = current_database()"
    )
    for _number in range(5):
        arena.insert(1)
        arena.wait_for(1, 30)
    slowest = arena.one("SELECT extract(epoch FROM max(claimed_at - created_at))::float8 FROM loracomp.job")
    assert slowest <= poll_s + 1, slowest
    return f"claimed {slowest:.2f} s after the insert at most, with POLL_S=1"


def old_snapshots(_: Server, arena: Arena) -> str:
    """A long query and an idle transaction hold old snapshots; then no connection is left while jobs wait."""
    held_s = float(os.environ.get("HELD_S", "10"))
    arena.insert(arena.size * 20)
    before = claim_ms(arena)
    during = []
    with ExitStack() as stack:
        own = stack.enter_context(arena.connect())
        hold_snapshots(arena, stack)
        workers = arena.start_workers(2, BATCH_SIZE=64, MODEL_S=0.05)
        ends = time.monotonic() + held_s
        while time.monotonic() < ends:
            if arena.counts()["queued"] < 10 * arena.size:
                arena.insert(10 * arena.size)
            during.append(claim_ms(arena))
            time.sleep(0.5)
        oldest, behind = arena.one(OLDEST_SNAPSHOT), arena.counts()["succeeded"]
        assert oldest >= held_s, f"a snapshot is {held_s} s old, and metrics say {oldest}"
        assert arena.one(HOLDERS, held_s) == 2
        taken = take_all_connections(arena, own, stack)
        arena.insert(arena.size, by=own)
        arena.wait(lambda: all("too many clients" in arena.log(each) for each in workers))
    arena.fault_ends()
    arena.wait_for(1, 300)
    assert running(workers) == workers
    worst = max(during)
    assert worst <= 10 * before + 50, f"a claim took {before:.1f} ms before and {worst:.1f} ms with old snapshots"
    return (
        f"claim p90 {before:.1f} ms before, {during[0]:.1f} at first, {during[-1]:.1f} at last, {worst:.1f} at worst,"
        f" {held_s:g} s of old snapshots; {behind} jobs done; metrics said {oldest:.0f} s; {taken} connections taken"
    )


def full_and_out_of_memory(server: Server, arena: Arena) -> str:
    """The disk of predictions is full, and memory runs out in the model."""
    arena.may_fail = 1
    arena.insert(arena.size, "much")
    arena.insert(1, "too-much", max_attempts=2)
    with small_disk(arena.folder / "disk") as disk:
        with arena.connect() as connection:
            connection.execute(f"CREATE TABLESPACE fault_{server.databases} LOCATION '{disk}'".encode())
            move_answers(connection, f"fault_{server.databases}")
        filler = disk / "filler"
        fill(filler)
        try:
            (worker,) = arena.start_workers(1)
            arena.wait(lambda: arena.says(worker, "database_away") and "No space left" in arena.log(worker))
            assert arena.one("SELECT count(*) FROM loracomp.prediction") == 0
            filler.unlink()
            arena.fault_ends()
            arena.wait_for(1)
        finally:
            arena.end_workers()
            with arena.connect() as connection:
                move_answers(connection, "pg_default")
                connection.execute(f"DROP TABLESPACE fault_{server.databases}".encode())
    assert arena.one("SELECT error_code || attempts FROM loracomp.job WHERE prompt = 'too-much'") == "out_of_memory2"
    assert arena.counts()["succeeded"] == arena.size
    # The real model runs out of memory when jobs join a batch, which may hold more jobs than can join at once.
    assert server.model == "real" or arena.one("SELECT max(batch_size) FROM loracomp.prediction") <= LARGEST_BATCH
    return "jobs waited for room; the one that never fits failed with the reason"


def other_versions(_: Server, arena: Arena) -> str:
    """A worker and a schema of different releases; sql/ applied anew while workers run."""
    command = [sys.executable, "-c", "from loracomp.cli import main; main()", "worker", "--drain"]
    environment = {**os.environ, "LORACOMP_DATABASE_URL": arena.url, "LORACOMP_HOME": str(arena.folder)}
    current = revision.head()
    arena.one("UPDATE loracomp.alembic_version SET version_num = '9999' RETURNING 1")
    with arena.connect() as connection:
        connection.execute("CREATE OR REPLACE FUNCTION loracomp.oldest_worker() RETURNS text LANGUAGE sql RETURN '9.9'")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "newer" in done.stderr
    arena.one("UPDATE loracomp.alembic_version SET version_num = %s RETURNING 1", current)

    def harm() -> None:
        for _ in range(3):
            arena.one(
                "UPDATE loracomp.sql_object SET checksum = repeat('0', 64)"
                " WHERE path = (SELECT min(path) FROM loracomp.sql_object) RETURNING 1"
            )
            assert schema.initialize(arena.url)

    return f"refused in words with exit code 4; {under_load(arena, harm)}"


def upgrades(server: Server, arena: Arena) -> str:
    """Workers of this code, and then of code with one more migration, on the schema that it leads to."""
    checkouts = [ROOT, with_another_migration(arena.folder / "next")]
    name = str(psycopg.conninfo.conninfo_to_dict(arena.url)["dbname"])
    drop_database(server.url, name)
    create_database(server.url, name)
    load = "load_shipped" if arena.model == "real" else "load_made_up"
    initialize(checkouts[0], arena.url)
    run_python(checkouts[0], f"import sys, arena; arena.{load}(sys.argv[1])", arena.url)
    workers = []
    for checkout in checkouts:
        initialize(checkout, arena.url)
        workers.append(arena.start_worker(code=checkout, BATCH_SIZE=8, MODEL_S=0.1))
        arena.wait(lambda: arena.says(workers[-1], "started"), 60)
        wait_for_progress(arena)
    arena.fault_ends()
    busy = "SELECT count(DISTINCT worker) FROM loracomp.prediction WHERE created_at > to_timestamp(%s)"
    arena.wait(lambda: keep_busy(arena) and arena.one(busy, arena.fault_over) == len(running(workers)))
    arena.wait_for(1)
    assert arena.one("SELECT max(attempts) FROM loracomp.job") == 1
    assert workers[-1] in running(workers)
    ended = [process for process in workers if process not in running(workers)]
    assert all(process.returncode > 0 and "Error" in arena.log(process) for process in ended)
    return "the older worker ended in words" if ended else "the older worker went on with the newer schema"


def activations(_: Server, arena: Arena) -> str:
    """Adapters are activated, two at a time, and all of sql/ applied, three at a time, while jobs that use them run."""
    if arena.model == "real":
        arena.columns = {"choices": ["yes", "no"]}  # whose scores tell versions apart
    stage = stage_next if arena.model == "real" else stage_made_up
    with arena.connect() as connection:
        rows = connection.execute("SELECT name FROM loracomp.adapter WHERE status = 'active' ORDER BY id")
        names = [row["name"] for row in rows]
    done = Event()

    def activate(first: int) -> int:
        activated = 0
        with db.connect(arena.url) as connection:
            for version in takewhile(lambda _: not done.is_set(), count(first, 2)):
                for name in names:
                    staged = stage(connection, name, version)
                    connection.execute(QUERIES["activate_adapter"], {"adapter_id": staged, "force": False})
                    activated += 1
        return activated

    def harm() -> None:
        for _ in range(2):
            with ThreadPoolExecutor(3) as pool:
                done_by = list(pool.map(lambda _: schema.initialize(arena.url, again=True), range(3)))
            assert all(done_by), "sql/ was not applied"

    with ThreadPoolExecutor(2) as pool:
        activating = [pool.submit(activate, first) for first in (2, 3)]
        try:
            remark = under_load(arena, harm)
        finally:
            done.set()
    activated = sum(each.result() for each in activating)
    inconsistent = (
        "SELECT count(*) FROM loracomp.prediction AS p WHERE EXISTS ("
        " SELECT FROM unnest(p.adapter_ids, p.adapter_sha256, p.composed_tasks) AS u (id, sha256, task)"
        " LEFT JOIN loracomp.adapter AS a ON a.id = u.id AND a.sha256 = u.sha256"
        " LEFT JOIN loracomp.task AS t ON t.id = a.task_id WHERE t.name IS DISTINCT FROM u.task)"
    )
    assert arena.one(inconsistent) == 0
    versions = (
        "SELECT count(DISTINCT a.version) FROM loracomp.prediction AS p, unnest(p.adapter_ids) AS u (id)"
        " JOIN loracomp.adapter AS a ON a.id = u.id"
    )
    used = arena.one(versions)
    assert used > 1
    if arena.model == "real":
        assert replayed(arena) == {"equal"}
    else:
        assert arena.one(OTHER_WEIGHTS) == 0
    return f"{activated} activations, {used} versions used, each answer by the weights that its trace names; {remark}"


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "poisoned": poisoned,
    "frozen": frozen,
    "server_restarts": server_restarts,
    "connections_cut": connections_cut,
    "server_down": server_down,
    "terminated": terminated,
    "half_open": half_open,
    "inserts": inserts,
    "hints_lost": hints_lost,
    "old_snapshots": old_snapshots,
    "activations": activations,
    "clock_off": clock_off,
    "other_versions": other_versions,
    "upgrades": upgrades,
    "full_and_out_of_memory": full_and_out_of_memory,
    **declarations.FAULTS,
    **keeping.FAULTS,
}


# --- used by several faults


def move_answers(connection: db.Connection, tablespace: str) -> None:
    """Move all partitions of prediction."""
    parts = connection.execute("SELECT relid::text AS name FROM pg_partition_tree('loracomp.prediction')").fetchall()
    for part in parts:
        connection.execute(f"ALTER TABLE {part['name']} SET TABLESPACE {tablespace}".encode())


NEXT_MIGRATION = '''"""A made-up next migration."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "9998", "{head}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("made_up", sa.Integer(), comment="Made up."), schema="loracomp")
'''


def with_another_migration(checkout: Path) -> Path:
    """Copy this code, and add a migration to the copy."""
    for name in ("loracomp", "migrations", "sql", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "migrations/versions/9998_next.py").write_text(NEXT_MIGRATION.format(head=revision.head()))
    return checkout


def initialize(checkout: Path, url: str) -> None:
    """Run `loracomp init` with a checkout's code: its modules may have been elsewhere then."""
    run_python(checkout, "from loracomp.cli import main; main()", "init", LORACOMP_DATABASE_URL=url)


def run_python(checkout: Path, source: str, *arguments: str, **variables: str) -> None:
    """Run a line of Python with a checkout's code."""
    environment = {**os.environ, "PYTHONPATH": python_path(checkout), **variables}
    command = [sys.executable, "-c", source, *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def running(workers: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [process for process in workers if process.poll() is None]


def keep_busy(arena: Arena) -> bool:
    """Insert more jobs whenever the queue would run empty."""
    if arena.counts()["queued"] < 64:
        arena.insert(64)
    return True


def stage_made_up(connection: db.Connection, name: str, version: int) -> int:
    """Stage a made-up adapter, whose weights are its name and version; an answer contains their digest."""
    with connection.transaction():
        staged = routing_data.add_adapter(connection, name, version=version, status="staged")
        connection.execute(MADE_UP_WEIGHTS)
    return staged


OTHER_WEIGHTS = """
SELECT count(*) FROM loracomp.prediction AS p WHERE composition_digest IS DISTINCT FROM (
    SELECT encode(sha256(string_agg(w.bytes, '' ORDER BY u.place)), 'hex')
    FROM unnest(p.adapter_ids) WITH ORDINALITY AS u (id, place)
    JOIN loracomp.adapter_part AS w ON w.adapter_id = u.id
)
"""
"""A query for predictions that were made with other weights than those of the adapters in their traces."""


def replayed(arena: Arena) -> set[str]:
    """Answer some jobs again by their traces; returns the outcomes."""
    from loracomp.replay import replay
    from loracomp.worker.start import load_engine

    with db.connect(arena.url) as connection:
        engine = load_engine(load_settings().model_copy(update={"database_url": arena.url}), connection)
        traces = connection.execute(QUERIES["sample_traces"], {"since": "-infinity", "sample": 20}).fetchall()
        return {replay(engine, connection, trace).outcome for trace in traces}


def stage_next(connection: db.Connection, name: str, version: int) -> int:
    """Stage the first version's weights, multiplied by another factor, as the next version, whose scores differ from
    the other versions' scores."""
    row = connection.execute(
        "INSERT INTO loracomp.adapter (task_id, base_model_id, name, version, rank, alpha, use_rslora, scaling,"
        " target_modules, parameter_count, byte_count, sha256, digest, config)"
        " SELECT task_id, base_model_id, name, %(version)s, rank, alpha * %(factor)s, use_rslora, scaling * %(factor)s,"
        " target_modules, parameter_count, byte_count, sha256, encode(sha256(%(digest)s), 'hex'), config"
        " FROM loracomp.adapter WHERE name = %(name)s AND version = 1 RETURNING id",
        {"version": version, "name": name, "factor": 1 + version % 4, "digest": f"{name}@{version}".encode()},
    ).fetchone()
    assert row is not None
    staged = int(row["id"])
    connection.execute(
        "INSERT INTO loracomp.adapter_part"
        " SELECT %s, w.part, w.bytes FROM loracomp.adapter AS a"
        " JOIN loracomp.adapter_part AS w ON w.adapter_id = a.id WHERE a.name = %s AND a.version = 1",
        [staged, name],
    )
    return staged


def all_ended(arena: Arena) -> bool:
    counts = arena.counts()
    return counts["queued"] + counts["running"] == 0


def wait_for_progress(arena: Arena) -> None:
    """Wait until another answer is recorded, to a waiting job or to a new one."""
    if arena.counts()["queued"] < arena.size // 2:
        arena.insert(arena.size)
    before = arena.counts()["succeeded"]
    arena.wait(lambda: arena.counts()["succeeded"] > before)


def under_load(arena: Arena, harm: Callable[[], None]) -> str:
    """Cause a fault while two workers are busy. Without help, they must return to 95 % of their earlier rate."""
    arena.insert(arena.size)
    workers = arena.start_workers(2, BATCH_SIZE=8, MODEL_S=0.1)
    wait_for_progress(arena)
    before = rate(arena)
    harm()
    arena.fault_ends()
    arena.insert(arena.size)
    wait_for_progress(arena)
    after = [rate(arena)]

    def is_back() -> bool:
        after.append(rate(arena))
        return after[-1] >= 0.95 * before

    arena.wait(lambda: after[-1] >= 0.95 * before or is_back())
    arena.wait_for(1)
    assert all(process.poll() is None for process in workers), [arena.log(process)[-2000:] for process in workers]
    return f"{before:.0f} jobs/s before, {', '.join(f'{each:.0f}' for each in after)} after"


def wait_for_suspects(arena: Arena) -> None:
    """Wait until all jobs that must run alone after an expiry have ended."""
    suspects = "SELECT count(*) FROM loracomp.job WHERE status <> 'succeeded' AND expired_leases > 0"
    arena.wait(lambda: not arena.one(suspects))


def rate(arena: Arena) -> float:
    """Return the jobs recorded per second, over some seconds in which the queue is not empty, after all suspects have
    ended."""
    wait_for_suspects(arena)
    seconds = 20 if arena.model == "real" else 3
    before = arena.counts()["succeeded"]
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        keep_busy(arena)
        time.sleep(0.05)
    return (arena.counts()["succeeded"] - before) / passed


def claim_ms(arena: Arena) -> float:
    """Return the 90th percentile of the milliseconds that a claim of 16 jobs takes; the jobs are given back."""
    times = []
    base_model = arena.one("SELECT name FROM loracomp.base_model WHERE is_default")
    with arena.connect() as connection:
        for _ in range(20):
            with connection.transaction(force_rollback=True):
                started = time.perf_counter()
                connection.execute(
                    "SELECT * FROM loracomp.claim_jobs('probe', %s, 16, interval '1 minute')",
                    (base_model,),
                ).fetchall()
                times.append((time.perf_counter() - started) * 1000)
    return quantiles(times, n=10)[-1]


OLDEST_SNAPSHOT = """
SELECT value FROM loracomp.database_metrics()
WHERE metric = 'loracomp_oldest_snapshot_seconds' AND labels ->> 'kind' = 'session'
"""
HOLDERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_xmin IS NOT NULL AND xact_start < now() - make_interval(secs => %s)
"""


def hold_snapshots(arena: Arena, stack: ExitStack) -> None:
    """Hold an idle transaction and a running query open until the stack is closed."""
    idle, asking = (stack.enter_context(arena.connect()) for _ in range(2))
    stack.enter_context(idle.transaction())
    idle.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    idle.execute("SELECT count(*) FROM loracomp.job")
    asking.pgconn.send_query(b"SELECT count(*) FROM loracomp.job, pg_sleep(3600)")
    stack.callback(asking.pgconn.finish)
    stack.callback(asking.cancel)


def take_all_connections(arena: Arena, own: db.Connection, stack: ExitStack) -> int:
    """Cut the workers off and take all connections, so that they can't come back; returns the number of connections
    taken."""
    cut = (
        "SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'loracomp %'"
    )
    taken = 0
    while True:
        more = [stack.enter_context(each) for each in connections_until_refused(arena)]
        taken += len(more)
        row = own.execute(cut).fetchone()
        if not more and row is not None and row["n"] == 0:
            return taken


def connections_until_refused(arena: Arena) -> list[db.Connection]:
    taken: list[db.Connection] = []
    with suppress(Exception):
        while len(taken) < 1000:
            taken.append(arena.connect())
    return taken


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mount a file system of 4 MB for the server's user; this needs the right to mount."""
    if os.geteuid() != 0:
        raise SkippedError("only root can mount a small file system")
    place.mkdir()
    place.parent.chmod(0o711)  # the server's user passes through
    options = "size=4m,mode=700,uid=pgserver,gid=pgserver"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SkippedError(f"a small file system can't be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fill(file: Path) -> None:
    """Write until no room is left."""
    with suppress(OSError), file.open("wb", buffering=0) as output:
        while True:
            output.write(b"\0" * 4096)
