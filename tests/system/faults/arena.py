"""A separate server with worker processes, and a check at the end that counts lost and doubled jobs."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

import routing_data
from conftest import create_database
from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database import embedded, schema
from loracomp.database.tables import DIMENSIONS
from loracomp.model.encoder import INPUT_FORMAT_VERSION

ROOT = Path(__file__).parents[3]
ENDED = "status IN ('succeeded', 'failed', 'cancelled')"
MADE_UP_WEIGHTS = """
WITH weighed AS (
    UPDATE loracomp.adapter AS a SET byte_count = octet_length(name || '@' || version)
    WHERE NOT EXISTS (SELECT FROM loracomp.adapter_part AS w WHERE w.adapter_id = a.id)
    RETURNING id, convert_to(name || '@' || version, 'UTF8') AS bytes
)
INSERT INTO loracomp.adapter_part SELECT id, 0, bytes FROM weighed
"""
"""A statement that gives adapters without weights some: their name and version, so that no two adapters have the same
weights."""
ANY_ADAPTER_WRITES = "UPDATE loracomp.policy SET text_adapters = 'all' WHERE name = 'default'"
"""With it, jobs without choices have traces with adapters too."""


@dataclass
class Account:
    """The result of a fault."""

    jobs: int
    lost: int
    doubled: int
    recovery_s: float | None
    """Seconds from the fault's end to the first answer recorded after it; None if nothing had to recover."""
    note: str = ""


@dataclass
class Arena:
    """One migrated database with a small library, and the workers that run on it."""

    folder: Path
    url: str
    size: int
    """Number of jobs for a fault; faults may use a multiple or a fraction of it."""
    model: str = "none"
    """The worker's model: 'none' or 'real'."""
    wrapper: tuple[str, ...] = ()
    """Prefix of the worker's command, such as faketime."""
    python: Path | str = sys.executable
    """The Python that runs the worker's script."""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    fault_over: float | None = None
    accepted: int = 0
    """Jobs whose INSERT was committed. Code that does not insert them with `insert` adds them here."""
    may_fail: int = 0
    """Jobs that the fault means to fail."""
    columns: dict[str, Any] = field(default_factory=dict)
    """The default settings of inserted jobs."""

    def __post_init__(self) -> None:
        self.columns.setdefault("max_new_tokens", 12 if self.model == "real" else 1)

    def start_worker(
        self, *, url: str | None = None, die_at: str = "", die_after: int = 1, code: Path = ROOT, **settings: Any
    ) -> Any:
        """Start a worker process of a checkout. Settings are LORACOMP_* variables, and MODEL_S, the seconds that a
        batch takes."""
        values = {"POLL_S": 0.2, "LEASE_S": 3, "BATCH_SIZE": 16, "GRACE_S": 10, "STATEMENT_TIMEOUT_S": 3, **settings}
        model_s = str(values.pop("MODEL_S", 0.02))
        environment = {
            **os.environ,
            **{f"LORACOMP_{name}": str(value) for name, value in values.items()},
            "LORACOMP_WORKER": f"w{len(self.workers)}",
            "PYTHONPATH": python_path(code),
            "MODEL_S": model_s,
            "DIE_AT": die_at,
            "DIE_AFTER": str(die_after),
            "OMP_NUM_THREADS": "1",
        }
        log = self.folder / f"w{len(self.workers)}.log"
        program = str(code / "tests" / "system" / "faults" / "dying_worker.py")
        command = [*self.wrapper, self.python, program, url or self.url, self.model]
        with log.open("wb") as output:
            # The process has a group of its own, because a wrapper would have the worker as its child.
            process = subprocess.Popen(command, env=environment, stderr=output, start_new_session=True)
        self.workers.append(process)
        self.logs.append(log)
        return process

    def start_workers(self, count: int, **settings: Any) -> list[Any]:
        """Start several workers at once; returns when they look for jobs."""
        started = [self.start_worker(**settings) for _ in range(count)]
        for process in started:
            self.wait(partial(self.says, process, "started"), 60)
        return started

    def says(self, process: Any, text: str) -> bool:
        """Return whether a worker's log contains a text, such as an event's name."""
        assert process.poll() is None or "started" not in text, self.log(process)
        return text in self.log(process)

    def log(self, process: Any) -> str:
        return self.logs[self.workers.index(process)].read_text(errors="replace")

    def end_workers(self) -> None:
        for process in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def connect(self) -> db.Connection:
        return db.connect(self.url, vectors=False)

    def insert(self, count: int, prompt: str = "ask", *, by: db.Connection | None = None, **columns: Any) -> None:
        """Insert jobs on an open connection, or on a new one."""
        columns = {**self.columns, **columns}
        names, values = list(columns), list(columns.values())
        statement = (
            f"INSERT INTO loracomp.job (prompt{''.join(f', {name}' for name in names)})"
            f" SELECT %s{', %s' * len(names)} FROM generate_series(1, %s)"
        )
        with nullcontext(by) if by else self.connect() as connection:
            connection.execute(statement.encode(), [prompt, *values, count])
        self.accepted += count

    def one(self, statement: str, *parameters: Any) -> Any:
        """Run a query; returns the only column of its only row."""
        with self.connect() as connection:
            row = connection.execute(statement.encode(), parameters).fetchone()
        assert row is not None
        return next(iter(row.values()))

    def counts(self) -> Counter[str]:
        with self.connect() as connection:
            rows = connection.execute("SELECT status, count(*) AS n FROM loracomp.job GROUP BY status").fetchall()
        return Counter({row["status"]: row["n"] for row in rows})

    def wait(self, condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds * (5 if self.model == "real" else 1)
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s: {self.counts()}"
            time.sleep(0.05)

    def wait_for(self, share: float, seconds: float = 120) -> None:
        """Wait until this share of the jobs has ended."""
        jobs = self.one("SELECT count(*) FROM loracomp.job")
        ended = f"SELECT count(*) FROM loracomp.job WHERE {ENDED}"
        self.wait(lambda: self.one(ended) >= share * jobs, seconds)

    def fault_ends(self) -> None:
        """Set the time from which the recovery is counted."""
        self.fault_over = self.one("SELECT extract(epoch FROM clock_timestamp())::float8")

    def account(self, note: str = "") -> Account:
        """Count lost and doubled jobs. Lost: an accepted job that is gone, has not ended, has failed although it should
        not, or has succeeded without answer and trace.

        Doubled: a job that exists although it was not accepted, or that ended or was recorded more than once.
        """
        recorded = Counter(
            int(job)
            for log in self.logs
            for ids in re.findall(r" recorded jobs=([\d,]+)", log.read_text(errors="replace"))
            for job in ids.split(",")
        )
        lost = self.one(
            f"SELECT count(*) FROM loracomp.job AS j LEFT JOIN loracomp.prediction AS p ON p.job_id = j.id"
            f" WHERE NOT {ENDED} OR (status = 'succeeded') <> (p.job_id IS NOT NULL AND p.output IS NOT NULL"
            f" AND (p.output = upper(j.prompt) OR %s)"
            f" AND cardinality(p.example_ids) > 0 AND cardinality(p.adapter_ids) > 0)",
            self.model == "real",
        )
        there = self.one("SELECT count(*) FROM loracomp.job")
        gave_up = self.one("SELECT count(*) FROM loracomp.job WHERE status IN ('failed', 'cancelled')")
        lost += max(0, self.accepted - there) + max(0, gave_up - self.may_fail)
        doubled = max(0, there - self.accepted) + self.one(
            "SELECT count(*) FROM (SELECT entity_id FROM loracomp.audit_event"
            " WHERE entity = 'job' AND new_status IN ('succeeded', 'failed', 'cancelled')"
            " GROUP BY entity_id HAVING count(*) > 1) AS twice"
        )
        doubled += sum(times > 1 for times in recorded.values())
        recovery = None
        if self.fault_over is not None:
            first = self.one(
                "SELECT min(extract(epoch FROM created_at))::float8 FROM loracomp.prediction"
                " WHERE created_at > to_timestamp(%s)",
                self.fault_over,
            )
            recovery = None if first is None else first - self.fault_over
        return Account(self.accepted, lost, doubled, recovery, note)


@dataclass
class Server:
    """An embedded server that the faults may restart and stop."""

    folder: Path
    url: str
    model: str = "none"
    databases: int = 0

    @property
    def socket(self) -> Path:
        """Return the path of the server's socket, to which a proxy forwards connections."""
        parameters = psycopg.conninfo.conninfo_to_dict(self.url)
        return Path(str(parameters["host"])) / f".s.PGSQL.{parameters.get('port', 5432)}"

    def crash_and_restart(self) -> None:
        """Like `pg_ctl restart -m immediate`: no orderly shutdown, then recovery from the log."""
        self.crash()
        self.start()

    def crash(self) -> None:
        embedded._run(self.folder, "pg_ctl", "stop", "-m", "immediate", "-w")

    def start(self) -> None:
        embedded.start(self.folder)

    @contextmanager
    def arena(self, size: int) -> Iterator[Arena]:
        """Make an arena with a fresh database; workers that were started are killed at the end."""
        self.databases += 1
        url = create_database(self.url, f"fault_{self.databases}", "fault_template")
        with tempfile.TemporaryDirectory(prefix="loracomp-fault-") as logs:
            arena = Arena(Path(logs), url, size, self.model)
            try:
                yield arena
            finally:
                arena.end_workers()


def python_path(code: Path) -> str:
    """Return environment variables with which Python finds a checkout's package and the modules of its tests."""
    return os.pathsep.join(map(str, [code, code / "tests", code / "tests" / "system" / "faults"]))


def load_made_up(url: str) -> None:
    """Load five tasks of 40 examples, and a made-up encoder."""
    with db.connect(url) as connection:
        routing_data.load(connection, 0, [40] * 5)
        connection.execute(
            "INSERT INTO loracomp.encoder (name, source, fingerprint, identity, dimensions, input_version)"
            " VALUES ('none', 'nowhere', repeat('e', 64), repeat('e', 64), %s, %s)",
            (DIMENSIONS, INPUT_FORMAT_VERSION),
        )
        connection.execute(MADE_UP_WEIGHTS)
        connection.execute(ANY_ADAPTER_WRITES)


def load_shipped(url: str) -> None:
    """Load the shipped library, with its base model and encoder."""
    from loracomp.registry.library import load_library

    # The encoder goes into the database that the settings name, which would otherwise be the user's own.
    with db.connect(url) as connection:
        load_library(connection, settings=load_settings().model_copy(update={"database_url": url}))
        connection.execute(ANY_ADAPTER_WRITES)


@contextmanager
def own_server(model: str = "none") -> Iterator[Server]:
    """Start a server with a migrated template database, which has a library unless it is `bare`. Writes are safe, as in
    production."""
    with tempfile.TemporaryDirectory(prefix="loracomp-faults-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "postgres"
        server = Server(data, embedded.start(data), model)
        try:
            if model != "bare":
                url = create_database(server.url, "fault_template")
                schema.initialize(url)
                (load_shipped if model == "real" else load_made_up)(url)
            yield server
        finally:
            embedded.stop(data)
