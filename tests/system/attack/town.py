"""A database in which one submitter is served while others attack: people, a tiny model's library, a worker.

The worker is a real one in a thread of this process. Its engine is a real one too, with a random model so small that a
job takes a millisecond. So what a role writes reaches all that a worker does with it.
"""

import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conftest import create_database, drop_database
from job_data import claim
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.engine import Engine
from loracomp.model.encoder import load_encoder
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.adapters import activate_adapter
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.examples import Example
from loracomp.registry.tasks import import_examples
from loracomp.worker.leases import release_jobs
from loracomp.worker.worker import Worker
from model_fixtures import as_base, letter_tokenizer, tiny_llama
from registry_data import MINILM, registered, write_adapter
from statements import OTHER_MODEL, OWN_TABLES

ROLES = {
    "alice": "submitter", "ana": "analyst", "wendy": "worker", "bob": "submitter", "walter": "worker", "adam": "admin",
}  # fmt: skip
"""Alice, Ana and Wendy attack; Walter's worker serves; Bob is served; Adam administers."""
ATTACKERS = ("alice", "ana", "wendy")
LATE_S = float(os.environ.get("LATE_S", "20"))
"""Seconds after which an answer of Bob's is late. Whatever delays the answer stays open, so waiting longer would not
help."""
STATEMENT_S = 3
"""Seconds after which a statement of the worker's is cancelled."""
LEASE_S = 6
"""Seconds after which jobs claimed by a call whose reply was lost are given to other workers."""
TASKS = ("tea", "milk", "rain")
CHOICES = ("yes", "no")
EVENTS = (
    "step_failed", "not_kept", "heartbeat_missed", "database_away", "batch_raised", "job_raised", "not_released",
    "hint_lost",
)  # fmt: skip
"""Log events of a worker one of whose calls has raised. None is caused by a job that is refused or fails by itself."""
RIGHTS = """
SELECT array_agg(line) AS lines FROM (
    SELECT concat_ws(' ', 'role', rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls)
    FROM pg_roles WHERE rolname ~ %(ours)s
    UNION ALL SELECT concat_ws(' ', 'member', roleid::regrole, member::regrole) FROM pg_auth_members
    WHERE member::regrole::text ~ %(ours)s
    UNION ALL SELECT concat_ws(' ', 'schema', nspname, nspowner::regrole, a.grantee::regrole, a.privilege_type)
    FROM pg_namespace CROSS JOIN aclexplode(nspacl) AS a WHERE nspname IN ('loracomp', 'bi', 'loracomp_parts')
    UNION ALL SELECT concat_ws(
        ' ', 'function', oid, proname, proargtypes, proowner::regrole, proacl, proconfig, prosrc, prosqlbody
    )
    FROM pg_proc WHERE pronamespace::regnamespace::text IN ('loracomp', 'bi') AND prokind = 'f'
    UNION ALL SELECT concat_ws(' ', 'table', oid, relname, relowner::regrole, relacl)
    FROM pg_class WHERE relnamespace::regnamespace::text IN ('loracomp', 'bi')
) AS s (line)
"""
VIEWS = """
SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind IN ('v', 'r', 'p')
"""
AFTERWARDS = (
    "SELECT loracomp.refresh_reports()",
    "SELECT * FROM loracomp.check_health()",
    "SELECT * FROM loracomp.database_metrics()",
    "SELECT * FROM loracomp.worker_demand()",
    "SELECT * FROM loracomp.list_answers()",
    "SELECT * FROM loracomp.list_measurements()",
    "SELECT * FROM loracomp.list_tasks()",
    "SELECT * FROM loracomp.make_partitions()",
    "SELECT count(loracomp.explain_job(id)) FROM loracomp.job",
    "SELECT loracomp.purge_jobs('0 seconds', force => true)",
)
"""Calls that administrators make."""
WATCHING = {
    "bob": ("SELECT * FROM loracomp.queue_health", "SELECT * FROM loracomp.list_answers()"),
    "walter": ("SELECT * FROM loracomp.database_metrics()",),
    "adam": (
        "SELECT * FROM loracomp.check_health()",
        "SELECT * FROM loracomp.worker_demand()",
        "SELECT * FROM loracomp.list_answers()",
        "SELECT * FROM loracomp.list_measurements()",
        "SELECT * FROM loracomp.worker_status",
    ),
}
"""Calls by which people and monitoring see how the queue is doing."""
UNEVEN = """
SELECT format('job %%s has status %%s and %%s answers', j.id, j.status, (
    SELECT count(*) FROM loracomp.prediction AS p WHERE p.job_id = j.id)) AS what
FROM loracomp.job AS j
WHERE (j.kind <> 'measure' AND (j.status = 'succeeded') <> EXISTS (
    SELECT FROM loracomp.prediction AS p WHERE p.job_id = j.id)) OR (j.submitted_by = %(bob)s AND j.status = 'failed')
UNION ALL
SELECT format('job %%s ended %%s times', e.entity_id, count(*)) FROM loracomp.audit_event AS e
WHERE e.entity = 'job' AND e.new_status = 'succeeded' GROUP BY e.entity_id HAVING count(*) > 1
"""
LAPSE = (
    "UPDATE loracomp.job SET lease_expires_at = now() - interval '1 second' WHERE status = 'running' AND id = ANY (%s)"
)
UNENDED = "SELECT FROM loracomp.job WHERE id = %(id)s AND finished_at IS NULL"
SECRET = "bobs-secret"
"""Stands in all that only Bob, workers and administrators may read: his texts, a tag that is not reported, and the
name, description and examples of a hidden task."""
_numbers = count()


def login(name: str) -> str:
    return f"{name}_of_town_{os.getpid()}"


class Ground:
    """A server with a migrated template, on which towns are built: each a copy of one that is prepared once."""

    def __init__(self, server: str, template: str) -> None:
        self.server = server
        self.template = template
        self._open = ExitStack()

    def __enter__(self) -> "Ground":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def base(self) -> Any:
        return as_base(tiny_llama(), letter_tokenizer())

    @cached_property
    def encoder(self) -> Any:
        return load_encoder(MINILM)

    @cached_property
    def people(self) -> tuple[str, ...]:
        """Roles of the cluster, one for each of ROLES; they are dropped at the end."""
        with psycopg.connect(self.server, autocommit=True) as connection:
            for name, role in ROLES.items():
                connection.execute(f"CREATE ROLE {login(name)} LOGIN IN ROLE loracomp_{role}".encode())
        self._open.callback(self._drop_people)
        return tuple(ROLES)

    def _drop_people(self) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            for name in ROLES:
                connection.execute(f"DROP ROLE {login(name)}".encode())

    @cached_property
    def prepared(self) -> str:
        """Name of a database with people, a library and declarations. Nobody connects to it."""
        assert self.people
        name = f"town_{os.getpid()}"
        url = create_database(self.server, name, self.template)
        self._open.callback(drop_database, self.server, name)
        with db.connect(url) as owner, tempfile.TemporaryDirectory() as folder:
            registered(owner, *TASKS)
            owner.execute("UPDATE loracomp.base_model SET fingerprint = repeat('0', 64)")
            set_encoder(url, self.encoder)
            for seed, task in enumerate(TASKS):
                write_adapter(Path(folder) / task, seed=seed)
                activate_adapter(owner, stage_adapter(owner, Path(folder) / task, task=task).id)
                import_examples(owner, task, [example(task, number) for number in range(8)])
            owner.execute("SELECT loracomp.add_task(%s, 'other', %s, %s)", [SECRET, SECRET, login("bob")])
            import_examples(owner, SECRET, [example(SECRET, number) for number in range(3)])
            embed_examples(owner, self.encoder)
            settle(owner, url)
        return name

    @contextmanager
    def copy(self) -> Iterator[str]:
        """URL of a copy of the prepared database."""
        name = f"{self.prepared}_{next(_numbers)}"
        try:
            yield create_database(self.server, name, self.prepared)
        finally:
            drop_database(self.server, name)

    @contextmanager
    def empty(self) -> Iterator[str]:
        """URL of a copy of the template, in which only people may be."""
        assert self.people
        name = f"lot_{os.getpid()}_{next(_numbers)}"
        try:
            yield create_database(self.server, name, self.template)
        finally:
            drop_database(self.server, name)


def example(task: str, number: int) -> Example:
    ref = f"{task}/train#{number}"
    choices = CHOICES if number % 4 else None
    label = "as it was" if choices is None else CHOICES[number % 2]
    return Example("train", f"Is the {task} number {number}?", choices, label, sha256(ref.encode()).digest(), ref)


def settle(owner: Connection, url: str) -> None:
    """Add the people, each with their own objects."""
    everybody = ", ".join(map(login, ROLES))
    owner.execute(f"GRANT CREATE ON SCHEMA public TO {everybody}".encode())
    owner.execute("SELECT loracomp.set_reported_tags('{country}')")
    owner.execute(
        "INSERT INTO loracomp.base_model"
        " (name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)"
        f" VALUES ('{OTHER_MODEL}', 'nowhere', repeat('1', 64), 'Toy', 128, 1, '{{}}', false)".encode()
    )
    with connect(url, "alice") as alice:
        for name in OWN_TABLES:
            table = sql.Identifier("public", name)
            alice.execute(sql.SQL("CREATE TABLE {} (id integer PRIMARY KEY, body text)").format(table))
            alice.execute(sql.SQL("INSERT INTO {} SELECT i, 'text ' || i FROM generate_series(1, 50) i").format(table))
        alice.execute("SELECT loracomp.create_answers('said', 'notes', 'note {body}', choices => '{a,b}')")
    with connect(url, "bob") as bob:
        bob.execute("CREATE TABLE bobs_notes (id integer PRIMARY KEY, body text)")
        bob.execute(
            "SELECT loracomp.create_answers('bobs_answers', 'bobs_notes', 'is it {body}?', choices => '{yes,no}')"
        )


def connect(url: str, name: str, options: str = "") -> Connection:
    """Connect as one of ROLES."""
    return db.connect(make_conninfo(url, user=login(name), **({"options": options} if options else {})), vectors=False)


class Watch(logging.Handler):
    """Watches what a worker logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[1] if record.exc_info else None
        self.lines.append(f"{record.getMessage()} {raised or ''}")

    def raised(self) -> list[str]:
        """Return the lines about calls that have raised an error, each only once."""
        lines, self.lines = self.lines, []
        return [line[:600] for line in lines if line.split()[0].removeprefix("event=") in EVENTS]

    @contextmanager
    def open(self) -> Iterator[None]:
        log = logging.getLogger("loracomp")
        before = log.propagate, log.level
        log.addHandler(self)
        log.propagate = False
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(self)
            log.propagate = before[0]
            log.setLevel(before[1])


class Bob:
    """A submitter who is served: jobs, rows of a declared table, changed rows and corrections."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.number = 0
        self.done: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._cursor: str | None = None
        self._connection = connect(url, "bob", f"-c statement_timeout={LATE_S:.0f}s")

    def close(self) -> None:
        self._connection.close()

    def is_served(self) -> list[str]:
        """Send some of each and wait for the answers; returns what was late, wrong or raised an error."""
        began = time.monotonic()
        try:
            found = self._waited(*self._sent(), began + LATE_S)
        except psycopg.Error as error:
            found = [f"a statement of bob's raised {type(error).__name__}: {error}"]
        took = time.monotonic() - began
        self.slowest_s = max(self.slowest_s, took)
        if took > LATE_S:
            found.append(f"bob was served after {took:.1f} s")
        return found

    def _sent(self) -> tuple[list[int], list[int]]:
        ask = self._connection.execute
        self.number += 1
        here = self.number
        jobs = [
            row["id"]
            for row in ask(
                "INSERT INTO loracomp.job (prompt, choices, max_new_tokens, tags)"
                " VALUES (%(text)s, '{yes,no}', NULL, %(tags)s::jsonb), (%(text)s, NULL, 2, '{\"country\": \"DE\"}')"
                " RETURNING id",
                {"text": f"{SECRET} question", "tags": json.dumps({"private": SECRET, SECRET: "1"})},
            )
        ]
        rows = [here]
        ask("INSERT INTO bobs_notes VALUES (%s, %s || %s::int)", [here, f"{SECRET} text ", here])
        if here > 1:
            ask("UPDATE bobs_notes SET body = body || ' more' WHERE id = %s", [here - 1])
            rows.append(here - 1)
        if here > 2:
            ask("UPDATE bobs_answers SET correct = 'yes' WHERE id = %s", [here - 2])
        self.done.update(jobs=len(jobs), rows=len(rows))
        return jobs, rows

    def _waited(self, jobs: list[int], rows: list[int], deadline: float) -> list[str]:
        ask = self._connection.execute
        left: list[str] = ["not looked yet"]
        while left and time.monotonic() < deadline:
            time.sleep(0.03)
            ended = ask("SELECT id, status, error FROM loracomp.job WHERE id = ANY (%s)", [jobs]).fetchall()
            answered = ask("SELECT id, status, reason FROM bobs_answers WHERE id = ANY (%s)", [rows]).fetchall()
            left = [f"job of bob's: {each}" for each in ended if each["status"] != "succeeded"]
            left += [f"row of bob's: {each}" for each in answered if each["status"] != "answered"]
            if len(ended) + len(answered) < len(jobs) + len(rows):
                left.append(f"of {jobs} and rows {rows} there are only {ended} and {answered}")
        ask("SELECT loracomp.explain_job(id) FROM loracomp.job WHERE id = ANY (%s)", [jobs])
        ask("SELECT * FROM loracomp.job_result WHERE job_id = ANY (%s)", [jobs])
        ask("SELECT * FROM loracomp.list_answers()")
        if self.number > 2:
            (kept,) = ask("SELECT correct FROM bobs_answers WHERE id = %s", [self.number - 2])
            if kept["correct"] != "yes":
                left.append(f"a correction of bob's is lost: row {self.number - 2}")
        return left


class Walter:
    """Walter serves: he is a worker in a thread, who is hired again when he has left."""

    def __init__(self, ground: Ground, url: str) -> None:
        self._ground = ground
        self._url = make_conninfo(url, user=login("walter"))
        self._threads = ThreadPoolExecutor(1)
        self.hire()

    def hire(self) -> None:
        """Start a worker, whose memory has nothing of an earlier worker."""
        self.engine = Engine("tiny", self._ground.base, self._ground.encoder)
        settings = Settings(
            poll_s=0.05, batch_size=8, lease_s=LEASE_S, worker="walter", statement_timeout_s=STATEMENT_S
        )
        self._worker = Worker(self._url, self.engine, base_model="tiny", settings=settings)
        self._working = self._threads.submit(self._worker.run)

    def leave(self) -> None:
        self._worker.stop()
        with suppress(Exception):  # whoever wants to know asks `ended`
            self._working.result(60)

    def close(self) -> None:
        self.leave()
        self._threads.shutdown()

    @property
    def ended(self) -> str | None:
        """How the worker has ended, if it has."""
        return repr(self._working.exception()) if self._working.done() else None


@dataclass
class Town:
    """A copy of the prepared database, a worker that serves it, and what it has come to so far."""

    url: str
    bob: Bob
    walter: Walter
    watch: Watch
    rights: set[str]
    counts: Counter[str] = field(default_factory=Counter)

    def is_served(self) -> list[str]:
        """Check that bob is served and that no call of the worker has raised an error; returns what was wrong."""
        found = self.bob.is_served()
        self.counts["served"] += 1
        found += [f"a call of the worker raised: {line}" for line in self.watch.raised()]
        if self.walter.ended:
            found.append(f"the worker ended: {self.walter.ended}")
        return found

    def is_watched(self) -> list[str]:
        """Check that nobody waits who looks at the queue; returns what raised or was cancelled."""
        found = []
        for name, statements in WATCHING.items():
            with connect(self.url, name, f"-c statement_timeout={LATE_S:.0f}s") as watcher:
                found += [f"{name}: {line}" for each in statements for line in raised(watcher, sql.SQL(each))]
        return found

    def rescues(self) -> list[str]:
        """A job whose worker has died is given to another, whatever was done to the queue; returns what was late."""
        self.walter.leave()
        with db.connect(self.url) as owner, connect(self.url, "bob") as bob:
            (row,) = bob.execute("SELECT loracomp.submit_job('its worker has died', choices => '{yes,no}') AS id")
            jobs = claim(owner, 10_000, base_model="tiny")
            release_jobs(owner, [job for job in jobs if job.id != row["id"]])
            owner.execute(LAPSE, [[row["id"]]])
            self.walter.hire()
            deadline = time.monotonic() + LATE_S
            while owner.execute(UNENDED, row).fetchone():
                if time.monotonic() > deadline:
                    return [f"job {row['id']}, whose worker has died, waits for another"]
                time.sleep(0.1)
        self.counts["rescued"] += 1
        return []

    def is_whole(self) -> list[str]:
        """Check rights, answers, administrators' functions and all views after everything; returns what is broken."""
        with db.connect(self.url, vectors=False) as owner:
            after = rights_of(owner)
            found = [f"is other than before: {line[:300]}" for line in after ^ self.rights]
            uneven = owner.execute(UNEVEN, {"bob": login("bob")}).fetchall()
            found += [row["what"] for row in uneven]
            relations = owner.execute(VIEWS).fetchall()
        for name in ROLES:
            with connect(self.url, name, "-c statement_timeout=60s") as reader:
                if name == "adam":
                    found += [f"adam: {line}" for each in AFTERWARDS for line in raised(reader, sql.SQL(each))]
                for relation in relations:
                    read = sql.SQL("SELECT count(x::text) FROM {} AS x").format(
                        sql.Identifier(relation["schema"], relation["name"])
                    )
                    found += [f"{name}: {line}" for line in raised(reader, read) if "permission denied" not in line]
        return found


def rights_of(owner: Connection) -> set[str]:
    row = owner.execute(RIGHTS, {"ours": f"_of_town_{os.getpid()}$"}).fetchone()
    assert row
    return set(row["lines"])


def raised(connection: Any, statement: sql.Composable) -> list[str]:
    """Run a statement and undo its effects; returns its error."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except psycopg.Error as error:
        return [f"{statement.as_string(None)[:200]}: {error}"]
    return []


@contextmanager
def town_of(ground: Ground) -> Iterator[Town]:
    """Build a town, let a worker serve it, and tear it down."""
    with ground.copy() as url, ExitStack() as stack:
        with db.connect(url, vectors=False) as owner:
            for name in ROLES:  # settings of a role outlive a database
                owner.execute(f"ALTER ROLE {login(name)} RESET ALL".encode())
            rights = rights_of(owner)
        watch = Watch()
        stack.enter_context(watch.open())
        walter = Walter(ground, url)
        stack.callback(walter.close)
        bob = Bob(url)
        stack.callback(bob.close)
        yield Town(url, bob, walter, watch, rights)
