"""Random work of two submitters, and the turns that a third has among it: jobs alone, without a model.

Alice and Adam submit, schedule, move, cancel and retry jobs of several kinds; workers, some of which know fewer kinds,
answer, fail, release and lose theirs. Every so often Bob has one job: new, scheduled, failed once, or lost with its
worker, several times over. At most one turn of each other submitter comes before it, whatever they add meanwhile, what
the statistics say, which advisory locks a login holds, and whether a claim looks from the start of the queue. The limit
of the queue is changed while transactions are open that have seen another. Ids are used up by the million, as INSERTs
do that are rolled back, and the ranges that this makes come and go. In the end each job has ended once, each of Bob's
keys still means its job, and nothing of Alice's is left in the database when she is erased.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import psycopg
from psycopg import sql

from corrections import ISOLATION
from job_data import add_base_model, claim, ended, keep, record_predictions
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight
from loracomp.records import KINDS, Failure, Job
from loracomp.worker.leases import release_jobs
from loracomp.worker.recorder import fail_jobs
from rounds import Round
from town import LAPSE, Ground, connect, login

MOVES = 60
OTHERS = ("alice", "adam")
TURNS = 4 * len(OTHERS)
"""Jobs of others that may come before one that is next. Each has a turn for new jobs, one for retries, and one for a
job that runs alone and that a batch went past; one more is to spare, because what starves waits for hundreds."""
BATCH_SIZES = (1, 4, 32)
SECRET = "alices-secret"
"""Stands in every text of Alice's jobs."""
SUBMIT = """
INSERT INTO loracomp.job (prompt, choices, tags, kind, priority, run_at, max_attempts, timeout_s, idempotency_key)
SELECT %(text)s || i, ARRAY['yes', %(text)s], jsonb_build_object('country', %(text)s), %(kind)s, %(priority)s,
    now() + %(later)s, %(max_attempts)s, 60, %(text)s || %(number)s || '.' || i
FROM generate_series(1, %(count)s) AS i
"""
SUBMIT_ONE = "INSERT INTO loracomp.job (prompt) VALUES (%s)"
UNDONE = (
    f"INSERT INTO loracomp.job (prompt) SELECT '{SECRET}' FROM generate_series(1, %s)",
    "SELECT loracomp.cancel_jobs(ids => ARRAY(SELECT id FROM loracomp.job WHERE status = 'queued' LIMIT %s))",
)
"""What is rolled back under a limit."""
WAITING = "SELECT count(*) AS jobs FROM loracomp.job WHERE submitted_by = %s AND status = 'queued'"
ASK = """
SELECT loracomp.submit_job(
    %(prompt)s, choices => '{yes,no}', idempotency_key => %(key)s, run_at => now() + %(later)s
) AS id
"""
DUE = "UPDATE loracomp.job SET run_at = now() WHERE status = 'queued' AND run_at > now() AND submitted_by = ANY (%s)"
AHEAD = """
SELECT
    j.expired_leases > 0 AS runs_alone,
    j.place - pg_sequence_last_value(loracomp.counter_name(b.id, false, 0, '')) AS turns,
    ARRAY(
        SELECT o.id FROM loracomp.job AS o
        WHERE (o.place, o.id) < (j.place, j.id) AND o.status = 'queued' AND NOT o.scheduled AND NOT o.background
    ) AS ids,
    ARRAY(SELECT o.id FROM loracomp.job AS o WHERE o.status = 'queued' AND o.kind <> j.kind) AS of_other_kinds
FROM loracomp.job AS j JOIN loracomp.base_model AS b ON b.name = j.base_model WHERE j.id = %s
"""
COUNTERS = """
SELECT hashtextextended(loracomp.counter_name(b.id, false, l.level, p.prefix || w.who), 0) AS key
FROM loracomp.base_model AS b CROSS JOIN generate_series(0, 10) AS l (level)
CROSS JOIN unnest(%s::text[]) AS w (who) CROSS JOIN (VALUES (''), ('retries of ')) AS p (prefix)
"""
"""Numbers of advisory locks that are named like counters. Any login can hold them."""
NEW = """
SELECT id FROM loracomp.job
WHERE status = 'queued' AND scheduled = %s AND attempts = 0 AND expired_leases = 0 AND priority <> %s
"""
UNEVEN = """
SELECT submitted_by, priority, count(*) AS jobs, max(place) - min(place) + 1 AS places FROM loracomp.job
WHERE id = ANY (%s) AND status = 'queued' AND NOT scheduled
GROUP BY submitted_by, priority, background HAVING count(*) <> max(place) - min(place) + 1
"""
PASSED_OVER = """
SELECT w.id AS waits, c.id AS claimed FROM loracomp.job AS c JOIN loracomp.job AS w
    ON w.status = 'queued' AND NOT w.scheduled AND w.expired_leases > 0 AND w.background = c.background
    AND w.kind = ANY (%s) AND w.place < c.place
WHERE c.id = ANY (%s) AND c.expired_leases > 0 LIMIT 1
"""
"""A job that runs alone, and one that was claimed before it although it comes later."""
UNENDED = "SELECT id, status FROM loracomp.job WHERE status IN ('queued', 'running')"
OTHERWISE_ENDED = """
SELECT format('job %s has ended %s times', entity_id, count(*)) AS what FROM loracomp.audit_event
WHERE entity = 'job' AND new_status = 'succeeded' GROUP BY entity_id HAVING count(*) > 1
"""
TABLES = """
SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi', 'loracomp_parts') AND c.relkind IN ('r', 'm')
"""


@dataclass
class Turns:
    """A queue, who works on it, and what has been seen."""

    url: str
    draw: random.Random
    owner: Connection
    people: dict[str, Connection]
    batches: list[tuple[Job, ...]] = field(default_factory=list)
    released: set[int] = field(default_factory=set)
    """Jobs that were claimed and given back: they keep their places, which are before everybody's new ones."""
    asked: dict[str, int] = field(default_factory=dict)
    """Bob's jobs by their keys."""
    looks_from_start: bool = True
    done: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    # --- others

    def text(self, who: str) -> str:
        return f"{SECRET} " if who == "alice" else "adams "

    def submit(self) -> None:
        who = self.draw.choice(OTHERS)
        values = {
            "text": self.text(who),
            "number": len(self.done),
            "count": self.draw.choice((1, 3, 30, 300)),
            "kind": self.draw.choice(("predict", "predict", "predict", "route")),
            "priority": self.draw.choice((0, 0, 0, -1, -10)),
            "later": timedelta(seconds=self.draw.choice((0, 0, -3600, 0.05, 3600))),
            "max_attempts": self.draw.randint(1, 3),
        }
        self.people[who].execute(SUBMIT, values)
        about = "{count} to {kind} at priority {priority}, in {later}".format(**values)
        self.done.append(f"{who} submits {about}")

    def change(self) -> None:
        """Somebody moves, cancels or retries some of their jobs."""
        who = self.draw.choice(OTHERS)
        rows = self.owner.execute(
            "SELECT id, status FROM loracomp.job WHERE submitted_by = %s ORDER BY md5(id::text || %s) LIMIT %s",
            [login(who), str(self.draw.random()), self.draw.choice((1, 5, 100))],
        ).fetchall()
        ids = [row["id"] for row in rows]
        match self.draw.choice(("move", "cancel", "retry")):
            case "move":
                priority = self.draw.choice((0, 0, -1, -5))
                new = {row["id"] for row in self.owner.execute(NEW, [False, priority])}
                self.people[who].execute("SELECT loracomp.set_priority(%s, ids => %s)", [priority, ids])
                self.check_places([*new & {*ids}])
                self.released -= {*ids}
                self.done.append(f"{who} moves up to {len(ids)} jobs to priority {priority}")
            case "cancel":
                self.people[who].execute("SELECT loracomp.cancel_jobs(ids => %s, reason => %s)", [ids, self.text(who)])
                self.done.append(f"{who} cancels up to {len(ids)} jobs")
            case _:
                for row in rows:
                    if row["status"] in ("failed", "cancelled"):
                        self.people[who].execute("SELECT loracomp.retry_job(%s)", [row["id"]])
                        self.released.discard(row["id"])
                self.done.append(f"{who} retries some of {len(ids)} jobs")

    # --- workers

    def claim(self) -> tuple[Job, ...]:
        """A worker may be of a release that knows fewer kinds of jobs."""
        kinds = self.draw.choice((KINDS, KINDS, ("predict",)))
        with patch("loracomp.worker.leases.KINDS", kinds):
            self.looks_from_start = not self.looks_from_start or self.draw.random() < 0.5
            jobs = claim(self.owner, self.draw.choice(BATCH_SIZES), from_start=self.looks_from_start)
        unknown = [job for job in jobs if job.kind not in kinds]
        assert not unknown, f"a worker that knows {kinds} has claimed {unknown}"
        passed_over = self.owner.execute(PASSED_OVER, [[*kinds], [job.id for job in jobs]]).fetchall()
        assert not passed_over, f"a job that lost its worker comes out of its turn: {passed_over}"
        self.released -= {job.id for job in jobs}
        self.done.append(f"a worker claims {[job.id for job in jobs]}")
        return jobs

    def work(self) -> None:
        if jobs := self.claim():
            self.batches.append(jobs)

    def end(self) -> None:
        """A batch comes to one of its ends."""
        if self.batches:
            self.end_batch(self.batches.pop(self.draw.randrange(len(self.batches))))

    def end_batch(self, jobs: tuple[Job, ...]) -> None:
        ids, how = [job.id for job in jobs], self.draw.choice(("answered", "answered", "failed", "released", "lost"))
        self.done.append(f"{ids} are {how}")
        match how:
            case "answered":
                record_predictions(self.owner, jobs, [ended_as(job) for job in jobs])
            case "failed":
                fail_jobs(self.owner, jobs, [Failure(job.id, "odd", "it was odd", True) for job in jobs])
            case "released":
                self.released |= release_jobs(self.owner, jobs)
            case _:
                self.owner.execute(LAPSE, [ids])

    def use_up_ids(self) -> None:
        """The jobs before and after are in different ranges; those between them have no jobs and are dropped."""
        for _ in range(self.draw.choice((1, 3))):
            self.owner.execute("SELECT setval('loracomp.job_id_seq', last_value + 1000000) FROM loracomp.job_id_seq")
            self.owner.execute("SELECT loracomp.make_partitions()")
        if self.draw.random() < 0.3:
            self.owner.execute("SELECT loracomp.purge_jobs('1 day')")
        self.counts["ids used up"] += 1
        self.done.append("ids are used up")

    def time_passes(self) -> None:
        self.owner.execute(DUE, [[login(who) for who in OTHERS]])
        self.done.append("what was scheduled is due")
        woken = [row["id"] for row in self.owner.execute(NEW, [True, 1])]
        keep(self.owner)
        self.check_places(woken)

    def check_places(self, ids: list[int]) -> None:
        """New jobs that are queued or moved together take one place each; what more they took, others would gain."""
        uneven = self.owner.execute(UNEVEN, [ids]).fetchall()
        assert not uneven, f"jobs that have taken another number of places: {uneven}"

    def limit(self) -> None:
        """A lower limit holds for the next INSERT, whatever was inserted under the old one while it was changed."""
        (row,) = self.owner.execute(WAITING, [login("alice")])
        older, is_changed_first = connect(self.url, "alice"), self.draw.random() < 0.5
        self.owner.execute("SELECT loracomp.set_queue_limits(%s)", [row["jobs"] + self.draw.choice((2, 1000, 10**8))])
        with older, older.transaction():
            if is_changed_first:
                older.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                older.execute("SELECT FROM loracomp.job LIMIT 1")
            with self.owner.transaction():
                self.owner.execute("SELECT loracomp.set_queue_limits(%s)", [max(1, row["jobs"])])
                if not is_changed_first:
                    older.execute(SUBMIT_ONE, [SECRET])
            if is_changed_first:
                older.execute(SUBMIT_ONE, [SECRET])
        try:
            for _ in range(2):  # the second is one more if no job waited before
                self.people["alice"].execute(SUBMIT_ONE, [SECRET])
        except psycopg.errors.ConfigurationLimitExceeded:
            self.counts["limits"] += 1
        else:
            raise AssertionError(f"alice may have {max(1, row['jobs'])} jobs waiting and has more")
        finally:
            self.owner.execute("SELECT loracomp.set_queue_limits(NULL)")
        self.done.append("the limit of the queue changes")

    def undo(self) -> None:
        """What a transaction did that is rolled back, under any isolation level, makes no room under a limit."""
        alice = self.people["alice"]
        alice.execute(UNDONE[0].encode(), [5])
        (row,) = self.owner.execute(WAITING, [login("alice")])
        most = row["jobs"] + self.draw.choice((0, 0, 3))
        self.owner.execute("SELECT loracomp.set_queue_limits(%s)", [most])
        for _ in range(self.draw.randint(2, 5)):
            with suppress(psycopg.errors.ConfigurationLimitExceeded), alice.transaction(force_rollback=True):
                alice.execute(f"SET TRANSACTION ISOLATION LEVEL {self.draw.choice(ISOLATION)}".encode())
                for _ in range(self.draw.randint(2, 4)):
                    with alice.transaction(force_rollback=self.draw.random() < 0.3):
                        alice.execute(self.draw.choice(UNDONE).encode(), [self.draw.choice((1, 5, 50))])
            with suppress(psycopg.errors.ConfigurationLimitExceeded):
                for _ in range(most - row["jobs"] + 2):
                    alice.execute(SUBMIT_ONE, [SECRET])
            (row,) = self.owner.execute(WAITING, [login("alice")])
            assert row["jobs"] <= most, f"alice may have {most} jobs waiting and has {row['jobs']}"
        self.owner.execute("SELECT loracomp.set_queue_limits(NULL)")
        self.counts["limits"] += 1
        self.done.append("what is rolled back under a limit makes no room")

    def mislead(self) -> None:
        """Statistics may be of a queue that was empty, or of one that was much longer."""
        pages, rows = self.draw.choice(((0, 0), (1000, 0), (1000, 1), (1000, 1000), (10, 1e6)))
        self.owner.execute(
            "UPDATE pg_class SET relpages = %s, reltuples = %s WHERE oid = 'loracomp.job'::regclass", [pages, rows]
        )
        self.done.append(f"the statistics say that {rows} jobs are on {pages} pages")

    # --- Bob

    def ask(self, later: float = 0) -> int:
        key = f"bob {len(self.asked)}"
        values = {"prompt": key, "key": key, "later": timedelta(seconds=later)}
        (row,) = self.people["bob"].execute(ASK, values)
        self.asked[key] = row["id"]
        return int(row["id"])

    def ask_again(self) -> None:
        """A key means its job, whatever has become of it meanwhile."""
        if not self.asked:
            return
        key, job_id = self.draw.choice([*self.asked.items()])
        if self.draw.random() < 0.5:
            self.people["bob"].execute("SELECT loracomp.set_priority(%s, ids => %s)", [0, [job_id]])
        (row,) = self.people["bob"].execute(ASK, {"prompt": key, "key": key, "later": timedelta()})
        assert row["id"] == job_id, f"the job with key {key!r} was {job_id}, and submitted again is {row['id']}"
        try:
            self.people["bob"].execute(ASK, {"prompt": "another", "key": key, "later": timedelta()})
        except psycopg.Error as error:
            assert "idempotency_key" in str(error), error
        else:
            raise AssertionError(f"another payload with key {key!r} was taken")
        self.counts["asked again"] += 1

    def probe(self) -> None:
        kind = self.draw.choice(("new", "scheduled", "failed", "lost"))
        self.done.append(f"bob has a {kind} job")
        job_id = self.ask(0.01 if kind == "scheduled" else 0)
        if kind in ("failed", "lost"):
            for _ in range(1 if kind == "failed" else self.draw.choice((1, 1, 2))):
                self.wait_for_its_place(job_id)
                held = self.served(job_id)
                if kind == "failed":
                    fail_jobs(self.owner, held, [Failure(job.id, "odd", "it was odd", True) for job in held])
                else:
                    others = self.claim()  # a few are lost too, most of them for the first time
                    self.owner.execute(LAPSE, [[job.id for job in (*held, *others[:3])]])
                    record_predictions(self.owner, others[3:], [ended_as(job) for job in others[3:]])
                    keep(self.owner)
                    self.time_passes()
                self.owner.execute(DUE, [[login("bob")]])
        self.wait_for_its_place(job_id)
        jobs = self.served(job_id)
        record_predictions(self.owner, jobs, [ended_as(job) for job in jobs])
        self.counts["probes"] += 1

    def wait_for_its_place(self, job_id: int) -> None:
        """The keeper wakes a few jobs of everybody at a time, so nobody's schedule holds up another's."""
        time.sleep(0.02)
        for _ in range(3):
            keep(self.owner)
            (row,) = self.owner.execute("SELECT scheduled FROM loracomp.job WHERE id = %s", [job_id])
            if not row["scheduled"]:
                return
        raise AssertionError("bob's job is due, and three rounds of the keeper have not woken it")

    def served(self, job_id: int) -> tuple[Job, ...]:
        """Claim until Bob's job is claimed, while others go on submitting; the batch that it is in.

        Bob's job has a place so many turns after the last that was claimed: one, unless his own jobs were retried
        before. What was released may come again and again before it, and what workers of an older release passed over
        comes when a newer one claims.
        """
        (row,) = self.owner.execute(AHEAD, [job_id])
        most = TURNS * max(row["turns"], 1) + len({*row["ids"]} & self.released | {*row["of_other_kinds"]})
        if row["runs_alone"]:
            most += max(BATCH_SIZES)  # a batch that begins before it may go beyond it
        passed = set[int]()
        while True:
            if self.draw.random() < 0.5:
                self.submit()
            jobs = self.claim()
            assert jobs or not self.looks_from_start, "nothing is claimed though bob's job waits"
            ids = [job.id for job in jobs]
            is_served = job_id in ids
            passed |= {*(ids[: ids.index(job_id)] if is_served else ids)}
            assert len(passed) <= most, f"{len(passed)} jobs of others came before bob's; {most} might"
            if is_served:
                return jobs
            self.end_batch(jobs)

    # --- the end

    def finish(self) -> None:
        """Whatever happened, each job comes to its end, and only once."""
        for jobs in self.batches:
            self.end_batch(jobs)
        for _ in range(10_000):
            self.owner.execute("UPDATE loracomp.job SET run_at = now() WHERE status = 'queued' AND run_at > now()")
            jobs = claim(self.owner, 500)
            record_predictions(self.owner, jobs, [ended_as(job) for job in jobs])
            self.owner.execute("SELECT loracomp.rescue_jobs()")
            if not jobs and not self.owner.execute(UNENDED).fetchall():
                break
        left = self.owner.execute(UNENDED).fetchall()
        assert not left, f"these never end: {left[:10]}"
        twice = self.owner.execute(OTHERWISE_ENDED).fetchall()
        assert not twice, twice

    def erase(self) -> None:
        """Nothing of a submitter is left once the submitter is erased."""
        self.owner.execute("SELECT loracomp.refresh_reports()")
        self.owner.execute("SELECT * FROM loracomp.erase_submitter(%s)", [login("alice")])
        for table in self.owner.execute(TABLES).fetchall():
            name = sql.Identifier(table["schema"], table["name"])
            left = self.owner.execute(
                sql.SQL("SELECT x::text AS row FROM {} AS x WHERE strpos(x::text, %s) > 0 LIMIT 1").format(name),
                [SECRET],
            ).fetchone()
            assert left is None, f"alice is erased, and {table['schema']}.{table['name']} still has {left}"


def ended_as(job: Job) -> InFlight:
    return ended(job.id, output=None if job.kind == "route" else "yes")


def moves_of(turns: Turns) -> list[Callable[[], None]]:
    t = turns
    return [
        t.submit,
        t.submit,
        t.submit,
        t.change,
        t.work,
        t.work,
        t.work,
        t.end,
        t.end,
        t.time_passes,
        t.use_up_ids,
        t.limit,
        t.undo,
        t.mislead,
        t.probe,
        t.probe,
        t.ask_again,
    ]


def turns(ground: Ground, seed: int, size: float = 1) -> Round:
    """One queue. The log of what was done is what a failure is told with."""
    made, opened = Round(), dict[str, Any]()
    with ground.empty() as url, db.connect(url) as owner:
        add_base_model(owner)
        claim(owner)  # the first claim makes the queue's counters
        owner.execute("SELECT loracomp.set_reported_tags('{country}')")
        opened = {name: connect(url, name) for name in (*OTHERS, "bob", "ana")}
        keys = [row["key"] for row in owner.execute(COUNTERS, [[*map(login, (*OTHERS, "bob"))]])]
        opened["ana"].execute("SELECT pg_advisory_lock(key) FROM unnest(%s::bigint[]) AS key", [keys])
        queue = Turns(url, random.Random(seed), owner, opened)
        try:
            moves = moves_of(queue)
            for _ in range(round(size * MOVES)):
                queue.draw.choice(moves)()
            queue.finish()
            queue.erase()
        except (AssertionError, psycopg.Error) as error:
            made.failures += [f"{type(error).__name__}: {error}", *queue.done[-25:]]
        finally:
            for connection in opened.values():
                connection.close()
        (row,) = owner.execute(
            "SELECT count(DISTINCT entity_id) AS jobs FROM loracomp.audit_event WHERE entity = 'job'"
        )
        queue.counts["jobs"] += row["jobs"]
    made.counts.update(queue.counts)
    made.counts.update(queues=1, rounds=1)
    return made
