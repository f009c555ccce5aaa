"""A primary that dies under load: each trial takes a lab and says what was lost and doubled."""

import random
import time
from collections import Counter
from contextlib import nullcontext

from arena import Arena
from lab import Lab, Outcome, first_answer_after, recorded, wait_for_answers
from servers import wait


def failover_synchronous(lab: Lab, failovers: int = 3) -> Outcome:
    """The primary dies under load, commits wait for the standby: the standby takes over, the dead one comes back."""
    return fail_over_under_load(lab, failovers, synchronous=True)


def failover_asynchronous(lab: Lab, failovers: int = 3) -> Outcome:
    """The same with commits that do not wait, and a standby that had lost touch a second before."""
    return fail_over_under_load(lab, failovers, synchronous=False)


BEHIND_S = 1.0
"""Seconds for which the standby has not heard from the asynchronous primary when the primary dies."""


def fail_over_under_load(lab: Lab, failovers: int, *, synchronous: bool) -> Outcome:
    chance = random.Random(failovers)
    direct, pooled = (lab.host(name) for name in ("direct", "pooled"))
    with lab.arena() as arena, lab.pair.commits_wait() if synchronous else nullcontext():
        lab.pair.wait_for_standby()
        lab.start_workers(arena, [lab.host(f"worker{number}") for number in range(2)], MODEL_S=0.1, BATCH_SIZE=8)
        database = lab.database(arena)
        with (
            lab.application(arena, direct, lab.url(arena), "direct", 30) as first,
            lab.application(arena, pooled, lab.pooler.url(database), "pooled", 10) as second,
        ):
            wait(lambda: first.acknowledged and second.acknowledged)
            took, windows = [], []
            for number in range(failovers):
                time.sleep(chance.uniform(1, 3))
                windows.append(kill_primary(lab, vanishes=number % 2 == 1, behind_s=0 if synchronous else BEHIND_S))
                lab.pair.fail_over()
                lab.pooler.follow(lab.pair.primary)
                took.append(first_answer_after(arena, windows[-1][1]))
                if not synchronous:
                    for application in (first, second):
                        said = application.acknowledged
                        application.submit_again([key for key, _, at in said if within(at, windows[-1:])])
                lab.pair.standby.host.plug()
                lab.pair.take_back()
            for application in (first, second):
                application.stop()
            wait_for_answers(arena)
            said = first.acknowledged + second.acknowledged
        return judged(arena, said, windows, took, synchronous=synchronous)


def kill_primary(lab: Lab, *, vanishes: bool, behind_s: float) -> tuple[float, float]:
    """Kill the primary by SIGKILL, or cut its host off and then kill it. Returns when the standby last heard from it,
    and when it died."""
    since = time.time()
    if behind_s:
        lab.pair.standby.host.cut()
        time.sleep(behind_s)
    if vanishes:
        lab.pair.primary.host.cut()
    lab.pair.primary.kill()
    at = time.time()
    if behind_s:
        lab.pair.standby.host.plug()
    return since, at


def within(at: float, windows: list[tuple[float, float]]) -> bool:
    """Return whether a job acknowledged at this time may be lost; an acknowledgement is noted a moment after its
    commit."""
    return any(since - 0.5 <= at <= until + 0.5 for since, until in windows)


def judged(
    arena: Arena, said: list[tuple[str, int, float]], windows: list[tuple[float, float]], took: list[float],
    *, synchronous: bool,
) -> Outcome:  # fmt: skip
    """Check that every acknowledged job exists or, without a synchronous standby, every job acknowledged outside the
    windows."""
    with arena.connect() as connection:
        rows = connection.execute(
            "SELECT j.id, j.idempotency_key AS key, p.worker FROM loracomp.job AS j"
            " LEFT JOIN loracomp.prediction AS p ON p.job_id = j.id"
        ).fetchall()
    jobs = {row["key"]: row["id"] for row in rows}
    keys = {key for key, _, _ in said}
    arena.accepted = len(keys)
    moved = {(key, job) for key, job, _ in said if jobs.get(key) != job}
    outside = [key for key, job, at in said if jobs.get(key) != job and (synchronous or not within(at, windows))]
    answers = {row["id"]: row["worker"] for row in rows}
    gone = [(worker, job) for worker, job in recorded(arena) if answers.get(job) != worker]
    # As the account counts them: a job that was recorded three times, after two failovers, is one job.
    again = sum(times > 1 for times in Counter(job for _, job in recorded(arena)).values())
    unclaimed = arena.one(UNCLAIMED)
    assert unclaimed == 0, f"{unclaimed} answers were written by a worker that had not claimed the job here"
    account = arena.account()
    doubled = account.doubled - (0 if synchronous else again)
    lost = account.lost + len(outside) + (len(gone) if synchronous else 0)
    note = f"{len(windows)} failovers"
    if not synchronous:
        note += (
            f", standby {BEHIND_S:g} s behind: {len(moved)} acknowledged jobs lost, all of that time, and submitted"
            f" again by their keys; {len(gone)} answers lost and asked again"
        )
    return Outcome(len(keys), lost, doubled, took, note)


UNCLAIMED = """
SELECT count(*) FROM (
    SELECT new_status, worker, lag(new_status) OVER w AS before, lag(worker) OVER w AS claimed_by
    FROM loracomp.audit_event WHERE entity = 'job' WINDOW w AS (PARTITION BY entity_id ORDER BY id)
) AS e WHERE new_status = 'succeeded' AND (before IS DISTINCT FROM 'running' OR claimed_by IS DISTINCT FROM worker)
"""
"""A query for answers whose worker had not claimed the job on this timeline."""
