"""A restore to a moment, by a base back-up and archived WAL, while jobs run."""

import time
from dataclasses import dataclass
from typing import Any

from arena import Arena
from lab import Application, Lab, Outcome, first_answer_after, recorded, wait_for_answers
from network import Host
from servers import Postgres, wait

LOAD_S = 4.0
"""Seconds of load from the back-up to the moment, and from the moment to the loss."""
WORKER = {"MODEL_S": 0.1, "BATCH_SIZE": 8}
JOBS_A_SECOND = 40


@dataclass
class Before:
    """The state of the database, and an application's acknowledgements, until the database was lost."""

    moment: float
    said: list[tuple[str, int, float]]
    answers: dict[int, Any]
    """The answers that existed at the moment to which the database is restored, by job."""
    answered: set[int]
    """Jobs that were answered before the loss."""

    def keys(self, since: float = 0) -> set[str]:
        return {key for key, _, at in self.said if at > since}


def restore_to_a_moment(lab: Lab) -> Outcome:
    """The database is restored on another host as it was seconds before; jobs since then are submitted again."""
    application, worker = lab.host("application"), lab.host("worker")
    new = Postgres.on(lab.host("restored"), lab.folder / "restored", lab.pair.primary.archive)
    with lab.arena() as arena:
        before = load_until_loss(lab, arena, application, worker, new)
        lost_at = time.time()
        url = new.url(lab.database(arena))
        try:
            new.restore(before.moment)
            with lab.arena_at(arena.folder / "restored", new.url(lab.database(arena), by_socket=True)) as restored:
                lab.start_workers(restored, [worker], url=url, **WORKER)
                with lab.application(restored, application, url, "after", JOBS_A_SECOND) as after:
                    # An acknowledgement is noted a moment after its commit.
                    after.submit_again(sorted(before.keys(since=before.moment - 0.5)))
                    took = first_answer_after(restored, lost_at)
                    wait(lambda: before.keys(since=before.moment) <= keys_of(after))
                    after.stop()
                wait_for_answers(restored)
                return judged(restored, before, after, took)
        finally:
            new.stop()


def load_until_loss(lab: Lab, arena: Arena, application: Host, worker: Host, new: Postgres) -> Before:
    """Run jobs until the loss, with a base backup for the new server; at the end the archive has all WAL."""
    lab.start_workers(arena, [worker], **WORKER)
    with lab.application(arena, application, lab.url(arena), "before", JOBS_A_SECOND) as submitter:
        wait(lambda: submitter.acknowledged)
        new.copy(lab.pair.primary)
        time.sleep(LOAD_S)
        answers, moment = answers_of(arena), time.time()
        time.sleep(LOAD_S)
        submitter.stop()
    arena.end_workers()
    lab.pair.primary.archive_all()
    return Before(moment, submitter.acknowledged, answers, {job for _, job in recorded(arena)})


def answers_of(arena: Arena) -> dict[int, Any]:
    with arena.connect() as connection:
        rows = connection.execute("SELECT job_id, to_jsonb(p) AS answer FROM loracomp.prediction AS p").fetchall()
    return {row["job_id"]: row["answer"] for row in rows}


def keys_of(application: Application) -> set[str]:
    return {key for key, _, _ in application.acknowledged}


def judged(arena: Arena, before: Before, after: Application, took: float) -> Outcome:
    """Check that jobs and answers from before the moment are unchanged, and that every key has one job with one
    answer."""
    with arena.connect() as connection:
        rows = connection.execute("SELECT idempotency_key AS key, id FROM loracomp.job").fetchall()
    jobs = {row["key"]: row["id"] for row in rows}
    moved = [key for key, job, at in before.said if at <= before.moment and jobs.get(key) != job]
    now = answers_of(arena)
    changed = [job for job, answer in before.answers.items() if now.get(job) != answer]
    arena.accepted = len(before.keys() | keys_of(after))
    account = arena.account()
    note = (
        f"{len(before.answers) - len(changed)} answers unchanged, {len(before.keys() & keys_of(after))} jobs submitted"
        f" again, {len(before.answered - before.answers.keys())} answers lost and asked again"
    )
    return Outcome(account.jobs, account.lost + len(moved) + len(changed), account.doubled, [took], note)
